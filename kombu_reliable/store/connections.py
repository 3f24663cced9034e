"""Lends the connections of a redis-py pool to those who send calls."""

from __future__ import annotations

import os
import time
from collections import deque

import redis
from redis.connection import Connection

__all__ = ('Connections',)

#: A connection that was used so recently, in seconds, is lent again as it is.  The pool makes
#: sure each time that the server has not hung up, which costs more than a whole publish.
FRESH = 1.0


class Connections:
    """Keeps what was just used at hand; safe to share between threads and across forks.

    Args:
        pool: opens connections, limits their number, and looks after those that have idled.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self._used: deque[tuple[float, Connection]] = deque()

    def take(self) -> Connection:
        """Lends a connection.

        Raises:
            redis.exceptions.ConnectionError: the server cannot be reached, or
                ``max_connections`` are in use.
        """
        if os.getpid() != self._pid:
            self._start_anew()  # the parent's connections are not ours
        while self._used:
            try:
                since, connection = self._used.pop()
            except IndexError:
                break  # another thread was faster
            if time.monotonic() - since < FRESH:
                return connection
            self._pool.release(connection)
        return self._pool.get_connection()

    def give_back(self, connection: Connection) -> None:
        """Takes back a connection that has answered all that it was asked."""
        self._used.append((time.monotonic(), connection))

    def give_back_broken(self, connection: Connection) -> None:
        """Takes back a connection on which an answer may still be under way."""
        connection.disconnect()
        self._pool.release(connection)
