"""Signs, for the queues that a process consumes, that their consumers live.

Only queues with a limited life (``x-expires``, ``auto_delete``) need it; for all others nothing
happens here.  A thread signs, because the event loop stands still while a task runs under the
solo pool, and such a queue must not be deleted meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import redis.exceptions

from kombu_reliable.errors import ReliableError
from kombu_reliable.scripts import Call
from kombu_reliable.store import Store

__all__ = ('Attendance',)

logger = logging.getLogger('kombu_reliable')

#: Pause after an attempt that failed, in seconds.
RETRY = 1.0

_FAILURES = (redis.exceptions.RedisError, OSError, ReliableError)


@dataclass(slots=True, eq=False)
class _Attended:
    """A queue that somebody here consumes.

    Args:
        declaration: what declares the queue and its bindings once more, should it have been
            deleted while we could not sign.
        interval: seconds between two signs.
        due: when the next one is due, on the monotonic clock.
        holders: channels that consume it; whoever is dropped without being closed counts no more.
    """

    declaration: tuple[Call[Any], ...]
    interval: float
    due: float
    holders: weakref.WeakSet[Any] = field(default_factory=weakref.WeakSet)


class Attendance:
    """The consumers of one process on one server.

    Args:
        open_store: gives the store; called when it is needed.
    """

    def __init__(self, open_store: Callable[[], Store]) -> None:
        self._open_store = open_store
        self._reset()
        _attendances.add(self)

    @cached_property
    def _store(self) -> Store:
        return self._open_store()

    def _reset(self) -> None:
        self._consumer = secrets.token_urlsafe(6)
        self._attended: dict[str, _Attended] = {}
        self._lock = threading.RLock()  # consumers are cancelled in signal handlers as well
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def enter(self, queue: str, holder: Any, declaration: Sequence[Call[Any]]) -> None:
        """A consumer begins."""
        attended = self._attended.get(queue)
        if attended is None:
            interval = self._store.repeat(self._store.operations.attend(queue, self._consumer))
            if interval is None:
                return
            attended = _Attended((), interval, time.monotonic() + interval)
            with self._lock:
                attended = self._attended.setdefault(queue, attended)
        attended.declaration = tuple(declaration) or attended.declaration
        attended.holders.add(holder)
        self._ensure_thread()
        self._changed.set()

    def leave(self, queue: str, holder: Any) -> None:
        """A consumer ends; if it was the last one, its queue may go."""
        attended = self._attended.get(queue)
        if attended is None or holder not in attended.holders:
            return
        attended.holders.discard(holder)
        if not attended.holders:
            with contextlib.suppress(*_FAILURES):  # then its last sign tells how long it lives
                self._end(queue)

    def leave_all(self, holder: Any) -> None:
        """A holder ends altogether."""
        for queue in list(self._attended):
            self.leave(queue, holder)

    def drop(self, holder: Any) -> None:
        """A holder was lost; nothing is said to the server before the next sign is due."""
        for attended in list(self._attended.values()):
            attended.holders.discard(holder)

    def forget(self, queue: str) -> None:
        """The queue is gone, or needs no signs any more."""
        with self._lock:
            self._attended.pop(queue, None)
        self._changed.set()  # the thread ends with the last one

    def _end(self, queue: str) -> None:
        self.forget(queue)
        self._store.repeat(self._store.operations.leave(queue, self._consumer))

    # -- the thread --------------------------------------------------------------

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(
                    target=self._run, name='kombu-attendance', daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while self._wait():
            try:
                self._sign()
            except _FAILURES:
                time.sleep(RETRY)  # whoever consumes tells the log about lost connections
            except Exception:
                logger.exception('unexpected error while signing for queues')
                time.sleep(RETRY)

    def _wait(self) -> bool:
        """Sleeps until a sign is due; False ends the thread, which nobody needs any more."""
        while True:
            self._changed.clear()
            with self._lock:
                if not self._attended:
                    self._thread = None
                    return False
                due = min(one.due for one in self._attended.values())
            if (pause := due - time.monotonic()) <= 0:
                return True
            self._changed.wait(pause)

    def _sign(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [(queue, one) for queue, one in self._attended.items() if one.due <= now]
        for queue, one in due:
            if not one.holders:
                self._end(queue)
                continue
            interval = self._store.repeat(self._store.operations.attend(queue, self._consumer))
            if interval is None:
                interval = self._restore(queue, one)
            one.interval = interval
            one.due = time.monotonic() + interval

    def _restore(self, queue: str, one: _Attended) -> float:
        """Declares anew what was deleted while we were away."""
        if one.declaration and queue in self._attended:
            for call in one.declaration:
                self._store.run(call)
            logger.warning('queue %r was deleted while its consumer was away, declared anew', queue)
            again = self._store.repeat(self._store.operations.attend(queue, self._consumer))
            if again is not None:
                return again
        return one.interval


_attendances: weakref.WeakSet[Attendance] = weakref.WeakSet()


def _forget_in_child() -> None:
    """What a process consumes is not its children's."""
    for attendance in list(_attendances):
        attendance._reset()


os.register_at_fork(after_in_child=_forget_in_child)
