"""Lends the connections of a redis-py pool to those who send calls."""

from __future__ import annotations

import inspect
import os
import socket
import struct
import time
from collections import deque
from typing import Any

import redis
from redis.connection import Connection

__all__ = ('Connections',)

#: A connection that was used so recently, in seconds, is lent again as it is.  The pool makes
#: sure each time that the server has not hung up, which costs more than a whole publish.
FRESH = 1.0

#: What a pool is asked for a connection with: before redis-py 5.3 it wanted to be told a command.
_ASKED = inspect.signature(redis.ConnectionPool.get_connection).parameters.get('command_name')
_WITH = ('_',) if _ASKED is not None and _ASKED.default is inspect.Parameter.empty else ()


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
        connection = self._pool.get_connection(*_WITH)
        _time_out_in_kernel(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Takes back a connection that has answered all that it was asked."""
        if 2 * len(self._used) >= self._pool.max_connections - 1:
            # The pool lends to others as well, and must not be empty for our convenience.
            self._pool.release(connection)
        else:
            self._used.append((time.monotonic(), connection))

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            for _, connection in self._used:
                self._pool.release(connection)

    def give_back_broken(self, connection: Connection) -> None:
        """Takes back a connection on which an answer may still be under way."""
        connection.disconnect()
        self._pool.release(connection)


def _time_out_in_kernel(connection: Connection) -> None:
    """Has the kernel watch the time: Python would ask it twice per command whether it may go on.

    A socket that belongs to an event loop or to TLS is left as it is.
    """
    sock: Any = connection._sock
    limit = connection.socket_timeout
    if type(sock).__module__ != 'socket' or not limit or sock.gettimeout() is None:
        return
    timeval = struct.pack('ll', int(limit), round(limit % 1 * 1e6))
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    except OSError:
        return  # another platform, another format
    sock.settimeout(None)
