"""A thread of the operating system, also where gevent or eventlet made threads into greenlets.

A greenlet that computes stops all others of its process for as long as it likes.  What must go
on all the same needs a real thread.  It shares memory with the greenlets, and an event loop of
its own serves its sockets; but it must not meet them at a lock: a patched lock wakes its waiters
through the event loop of whoever releases it, which cannot switch to another thread.  So the
locks here are real ones, held for moments only, and a native thread leaves what it has to log
to somebody else, because logging is full of locks.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ('Log', 'Native', 'NativeThread', 'Wake', 'native')

logger = logging.getLogger('kombu_reliable')


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Native:
    """What the operating system offers, whoever has patched the standard library.

    Args:
        green: threads are greenlets here.
        start: starts a thread that does not keep the process alive.
        allocate_lock: makes a lock; whoever waits for it stops all greenlets of his thread.
        allocate_rlock: makes one that its holder may take again, as a signal handler does.
        sleep: stops all greenlets of the thread for some seconds.
        get_ident: number of the thread, the same for all its greenlets.
        leave: ends what a green thread library has set up in the calling thread.
    """

    green: bool
    start: Callable[[Callable[[], None]], None]
    allocate_lock: Callable[[], Any]
    allocate_rlock: Callable[[], Any]
    sleep: Callable[[float], None]
    get_ident: Callable[[], int]
    leave: Callable[[], None] = _nothing


def native() -> Native:
    """The way to real threads in this process, as it is patched now."""
    gevent = sys.modules.get('gevent.monkey')
    if gevent is not None and gevent.is_module_patched('threading'):
        return _beneath_gevent(gevent)
    eventlet = sys.modules.get('eventlet.patcher')
    if eventlet is not None and eventlet.is_monkey_patched('thread'):
        return _beneath_eventlet(eventlet)
    return Native(
        False, _start_plainly, threading.Lock, threading.RLock, time.sleep, threading.get_ident
    )


def _start_plainly(run: Callable[[], None]) -> None:
    threading.Thread(target=run, name='kombu-keeper', daemon=True).start()


def _beneath_gevent(monkey: Any) -> Native:
    start, allocate_lock, allocate_rlock, get_ident = monkey.get_original(
        '_thread', ['start_new_thread', 'allocate_lock', 'RLock', 'get_ident']
    )

    def leave() -> None:
        import gevent

        gevent.get_hub().destroy(destroy_loop=True)

    sleep = monkey.get_original('time', 'sleep')
    return Native(
        True, lambda run: start(run, ()), allocate_lock, allocate_rlock, sleep, get_ident, leave
    )


def _beneath_eventlet(patcher: Any) -> Native:
    thread = patcher.original('_thread')

    def leave() -> None:
        from eventlet import hubs

        hub = hubs.get_hub()
        if hub.running:  # or it would start now, and never end
            hub.abort(wait=True)

    return Native(
        True,
        lambda run: thread.start_new_thread(run, ()),
        thread.allocate_lock,
        thread.RLock,
        patcher.original('time').sleep,
        thread.get_ident,
        leave,
    )


class Wake:
    """Ends the sleep of one native thread, from any thread or greenlet.

    Args:
        native: where the sleeper comes from.
    """

    def __init__(self, native: Native) -> None:
        self._lock = native.allocate_lock()
        self._lock.acquire()

    def set(self) -> None:
        """Ends the sleep, or the next one if nobody sleeps; never blocks."""
        with contextlib.suppress(RuntimeError):  # it was set already
            self._lock.release()

    def wait(self, timeout: float) -> bool:
        """Sleeps until somebody calls :meth:`set`; False if nobody did for ``timeout`` seconds."""
        return bool(self._lock.acquire(True, timeout))


class NativeThread:
    """A thread of the operating system; it starts at once.

    Args:
        native: how to start it.
        target: what it runs.
    """

    def __init__(self, native: Native, target: Callable[[], None]) -> None:
        self._native = native
        self._target = target
        self._alive = True
        native.start(self._run)

    def is_alive(self) -> bool:
        return self._alive

    def _run(self) -> None:
        try:
            self._target()
            self._native.leave()
        finally:
            self._alive = False

    def join(self, timeout: float) -> None:
        """Waits for its end; other greenlets go on meanwhile."""
        deadline = time.monotonic() + timeout
        while self._alive and time.monotonic() < deadline:
            time.sleep(0.005)


class Log:
    """Warnings: those of a native thread wait until a greenlet can say them.

    Args:
        native: in which surroundings.
    """

    def __init__(self, native: Native) -> None:
        self._native = native
        self._unsaid: deque[tuple[Any, ...]] = deque()
        self._discreet: int | None = None

    def be_discreet(self) -> None:
        """From now on the calling thread leaves its warnings to others, where it has to."""
        if self._native.green:
            self._discreet = self._native.get_ident()

    def warning(self, *words: Any) -> None:
        """A warning, now or as soon as possible."""
        if self._discreet is not None and self._native.get_ident() == self._discreet:
            self._unsaid.append(words)
        else:
            logger.warning(*words)

    def speak(self) -> None:
        """Says what has waited; to be called now and then by those who may log."""
        if self._unsaid and self._native.get_ident() != self._discreet:
            while self._unsaid:
                logger.warning(*self._unsaid.popleft())
