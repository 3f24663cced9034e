"""Feels the server's pulse: a machine has stalls that nobody has made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import redis

__all__ = ('Pulse',)

#: Seconds between two pings, and how long one may take before it is told.
PAUSE, SLOW = 0.1, 0.5


class Pulse:
    """Tells when the server, or this machine, stood still.

    Args:
        connect: opens a client of the server.
        tell: called, in a thread of its own, with the beginning of each stall once it is over.
    """

    def __init__(self, connect: Callable[[], redis.Redis], tell: Callable[[float], None]) -> None:
        self._connect = connect
        self._tell = tell
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        client = self._connect()
        while not self._stopped.wait(PAUSE):
            begin = time.monotonic()
            try:
                client.ping()
            except (redis.RedisError, OSError):
                continue  # that was us
            if time.monotonic() - begin > SLOW:
                self._tell(begin)
        client.close()
