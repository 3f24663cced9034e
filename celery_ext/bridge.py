"""Tells the transport what only Celery's worker knows: what has started, and what idles.

It also mends what in Celery's pools would cost tasks time, run them twice, or drop them.

When a worker shuts down, Celery drops the requests that its pool has not got yet and keeps
their messages unsettled until the last running task has ended.  The transport asks here which
ones will still run and gives the others back at once.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps, signals
from celery.concurrency import thread
from celery.worker import state

from celery_ext import settling
from kombu_reliable import set_hooks

__all__ = ('connect',)

logger = logging.getLogger('kombu_reliable')

#: What Celery's pools of greenlets report of one that was killed.
KILLED = (False, None, None)

#: How soon, in seconds, and how often a process that closed its pipe is looked at again.
REAP_PAUSE = 0.02
REAP_TRIES = 50

_consumer: weakref.ref[Any] | None = None

#: Requests that a pool without processes of its own was given; those of the threads pool with
#: their futures.
_given: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _current() -> Any | None:
    return _consumer() if _consumer is not None else None


def _transport() -> Any | None:
    connection = getattr(_current(), 'connection', None)
    # A closed connection would make itself a new one.
    return connection.transport if connection is not None and connection.connected else None


def connect() -> None:
    """Installs the hooks as soon as a worker of this process is ready; idempotent."""
    signals.celeryd_init.connect(settling.install, weak=False, dispatch_uid='kombu_reliable')
    signals.worker_shutdown.connect(settling.finish, weak=False, dispatch_uid='kombu_reliable')
    signals.worker_ready.connect(_on_worker_ready, weak=False, dispatch_uid='kombu_reliable')


def _on_worker_ready(sender: Any, **_: Any) -> None:
    global _consumer
    _consumer = weakref.ref(sender)
    green = sender.pool.is_green
    set_hooks(
        started=_started,
        idle_slots=_idle_slots,
        room=_room if green else None,
        stopping=_stopping,
    )
    if green:
        signals.task_postrun.connect(_on_task_postrun, weak=False, dispatch_uid='kombu_reliable')
    _watch_what_is_given(sender.pool)
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
    consumer = _current()
    if consumer is None or consumer.blueprint.state not in (bootsteps.CLOSE, bootsteps.TERMINATE):
        # A queue was cancelled, not the worker: what was prefetched still runs here.
        return tokens
    if consumer.task_consumer is None:
        return tokens
    # A task may consume messages by itself.
    others: frozenset[str] = tokens - consumer.task_consumer.channel.qos.tags
    jobs = _jobs(consumer.pool)
    kept = _not_withdrawn(tokens) if jobs is None else _kept(jobs)
    return others | {request.message.delivery_tag for request in kept}


def _kept(jobs: dict[int, Any]) -> Iterator[Any]:
    """The requests that Celery has not given up, and those that its pool cannot give up."""
    yield from state.active_requests
    for job in list(jobs.values()):
        request = getattr(job._accept_callback, '__self__', None)
        if request is not None and (job._accepted or job._write_to is not None):
            yield request


def _watch_what_is_given(pool: Any) -> None:
    """Notes what a pool without processes gets, and settles what Celery leaves unsettled there."""
    apply: Callable[..., Any] = pool.on_apply
    if _jobs(pool) is not None or getattr(apply, 'is_watched', False):
        return

    def on_apply(*args: Any, **kwargs: Any) -> Any:
        request = getattr(kwargs.get('accept_callback'), '__self__', None)
        callback = kwargs.get('callback')
        if request is None or callback is None:
            return apply(*args, **kwargs)
        _given[request] = None
        target, *others = args
        result = apply(
            partial(_run, request, target), *others,
            **(kwargs | {'callback': partial(_ended, request, callback)}),
        )  # fmt: skip
        _given[request] = result.f if isinstance(result, thread.ApplyResult) else None
        return result

    on_apply.is_watched = True  # type: ignore[attr-defined]
    pool.on_apply = on_apply


def _run(request: Any, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Nobody hears of a task that ran out of memory in a thread or a greenlet."""
    try:
        return target(*args, **kwargs)
    except MemoryError as error:
        fail: Callable[..., None] | None = getattr(request, 'fail_for_good', None)
        if fail is None:
            _run_again(request)
        else:
            fail('out-of-memory', error, ExceptionInfo())
        raise


def _ended(request: Any, callback: Callable[[Any], None], outcome: Any) -> None:
    """Celery counts a greenlet that was killed as a success, and forgets a task that raised
    SystemExit: neither has ended well, so they run again, up to the delivery limit.

    A task that was revoked is settled already.
    """
    if outcome == KILLED:
        _run_again(request)
        return
    try:
        callback(outcome)
    except BaseException:
        _run_again(request)
        raise


def _run_again(request: Any) -> None:
    state.task_ready(request)
    request.reject(requeue=True)


def _not_withdrawn(tokens: frozenset[str]) -> Iterator[Any]:
    """The requests that run or will run.

    The threads pool drops what waits for a thread when it stops, so that is withdrawn here.
    Other pools run everything that they were given.
    """
    yield from state.active_requests
    for request, future in list(_given.items()):
        if request.message.delivery_tag in tokens and not (future and future.cancel()):
            yield request


def _room(transport: Any) -> bool:
    """Whether a pool of greenlets can take one more message of Celery's.

    It blocks its caller otherwise, and that is Celery's event loop: remote control and
    shutdown would have to wait for a task to end.  The autoscaler, however, goes by that.
    """
    consumer = _current()
    if consumer is None or transport is not _transport():
        return True
    if getattr(consumer.controller, 'autoscaler', None) is not None:
        return True
    greenlets = consumer.pool._pool
    free = getattr(greenlets, 'free_count', None) or getattr(greenlets, 'free', None)
    return free is None or free() > 0


def _on_task_postrun(**_: Any) -> None:
    """There will be room in a moment: whoever waits for it should look."""
    reactor = getattr(_transport(), 'reactor', None)
    if reactor is not None:
        reactor.flush_soon()


def _stopping(transport: Any) -> bool | None:
    """Whether Celery's loop, which drains this transport, will end as soon as it looks."""
    if transport is not _transport():
        return None
    told = (state.should_stop, state.should_terminate)
    # An exit code of 0 says yes.
    return any(word is not None and word is not False for word in told)


def _idle_slots() -> int | None:
    consumer = _current()
    slots = getattr(getattr(consumer, 'pool', None), 'num_processes', None)
    return None if slots is None else slots - len(state.reserved_requests)
