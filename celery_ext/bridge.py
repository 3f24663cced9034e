"""Tells the transport what only Celery's worker knows: what has started, and what idles.

It also mends two things in Celery's prefork pool that would cost tasks time or run them twice.

When a worker shuts down, Celery drops the requests that its pool has not got yet and keeps
their messages unsettled until the last running task has ended.  The transport asks here which
ones will still run and gives the others back at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery import bootsteps, signals
from celery.worker import state

from celery_ext import settling
from kombu_reliable import set_hooks

__all__ = ('connect',)

#: How soon, in seconds, and how often a process that closed its pipe is looked at again.
REAP_PAUSE = 0.02
REAP_TRIES = 50

_consumer: weakref.ref[Any] | None = None


def connect() -> None:
    """Installs the hooks as soon as a worker of this process is ready; idempotent."""
    signals.celeryd_init.connect(settling.install, weak=False, dispatch_uid='kombu_reliable')
    signals.worker_shutdown.connect(settling.finish, weak=False, dispatch_uid='kombu_reliable')
    signals.worker_ready.connect(_on_worker_ready, weak=False, dispatch_uid='kombu_reliable')


def _on_worker_ready(sender: Any, **_: Any) -> None:
    global _consumer
    _consumer = weakref.ref(sender)
    set_hooks(started=_started, idle_slots=_idle_slots)
    _keep_written_jobs(sender.pool)
    _notice_dead_processes(sender.pool, sender.hub)


def _jobs(pool: Any) -> dict[int, Any] | None:
    """The jobs of a prefork pool that writes to its processes by itself; else None."""
    inner = getattr(pool, '_pool', None)
    return getattr(inner, '_cache', None) if hasattr(inner, 'outbound_buffer') else None


def _keep_written_jobs(pool: Any) -> None:
    """A pool that is flushed forgets the jobs whose start it has not heard of yet.

    Those that were written to a process run all the same, and their end must count: they are
    marked as started before the pool looks.
    """
    flush: Callable[[], None] | None = getattr(pool, 'flush', None)
    if flush is None or _jobs(pool) is None or getattr(flush, 'keeps_written_jobs', False):
        return

    def flush_others() -> None:
        for job in list((_jobs(pool) or {}).values()):
            if job._write_to is not None:
                job._accepted = True
        flush()

    flush_others.keeps_written_jobs = True  # type: ignore[attr-defined]
    pool.flush = flush_others


def _notice_dead_processes(pool: Any, hub: Any) -> None:
    """Celery looks once when a pool process closes its pipe, often a moment before the process
    can be reaped, and then not for five seconds: so look again until it is gone."""
    inner: Any = getattr(pool, '_pool', None)
    if hub is None or _jobs(pool) is None or not hasattr(inner, '_event_process_exit'):
        return
    look_once = inner._event_process_exit

    def look_again(process: Any, tries: int) -> None:
        if process in inner._pool and tries:
            inner.maintain_pool()
            hub.call_later(REAP_PAUSE, look_again, process, tries - 1)

    def look(hub: Any, process: Any) -> None:
        look_once(hub, process)
        hub.call_later(REAP_PAUSE, look_again, process, REAP_TRIES)

    inner._event_process_exit = look
    for process in inner._pool:
        # Those that run already are watched with the method that was replaced.
        inner._untrack_child_process(process, hub)
        del process._sentinel_poll
        inner._track_child_process(process, hub)


def _started(tokens: frozenset[str]) -> Iterable[str]:
    consumer = _consumer() if _consumer is not None else None
    if consumer is None or consumer.blueprint.state not in (bootsteps.CLOSE, bootsteps.TERMINATE):
        # A queue was cancelled, not the worker: what was prefetched still runs here.
        return tokens
    jobs = _jobs(consumer.pool)
    if jobs is None:
        # Other pools run everything that they were given.
        return tokens
    return {request.message.delivery_tag for request in _kept(jobs)}


def _kept(jobs: dict[int, Any]) -> Iterator[Any]:
    """The requests that Celery has not given up, and those that its pool cannot give up."""
    yield from state.active_requests
    for job in list(jobs.values()):
        request = getattr(job._accept_callback, '__self__', None)
        if request is not None and (job._accepted or job._write_to is not None):
            yield request


def _idle_slots() -> int | None:
    consumer = _consumer() if _consumer is not None else None
    slots = getattr(getattr(consumer, 'pool', None), 'num_processes', None)
    return None if slots is None else slots - len(state.reserved_requests)
