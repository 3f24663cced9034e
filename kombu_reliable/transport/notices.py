"""Queues that are published to although nobody may have declared them."""

from __future__ import annotations

import time
from collections.abc import Callable

import redis.exceptions

from kombu_reliable.errors import ReliableError
from kombu_reliable.store import Store

__all__ = ('Notices',)

#: Seconds after which a queue is told again: it may have been forgotten, or the server emptied.
AGAIN = 600.0

#: ... or if it could not be told.
AFTER_A_FAILURE = 10.0

#: Queues kept in mind; whoever publishes to more tells some of them more often.
KEPT = 10_000


class Notices:
    """Tells the server of each such queue once in a while, so that it can be listed.

    That costs one command per process, queue and ten minutes.  What the publish of a message
    does cannot tell: to note the name there would cost each message as much.

    Args:
        store: returns where to tell.
        patience: seconds after which one is told again of which the server could not be told.
    """

    def __init__(self, store: Callable[[], Store], patience: float = AFTER_A_FAILURE) -> None:
        self._store = store
        self._patience = patience
        #: Until when a queue need not be told, on the monotonic clock.
        self._told: dict[str, float] = {}

    def add(self, queue: str) -> None:
        """Notices a queue; a server that is away is not waited for a second time."""
        now = time.monotonic()
        if self._told.get(queue, 0.0) > now:
            return
        if len(self._told) >= KEPT:
            self._told.clear()
        self._told[queue] = now + AGAIN
        try:
            self._store().notice(queue)
        except (ReliableError, redis.exceptions.RedisError, OSError):
            self._told[queue] = now + self._patience
