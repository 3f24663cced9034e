"""What all connections of a process to one server share."""

from __future__ import annotations

import os
import threading
import time
import weakref
from dataclasses import fields, replace
from functools import cached_property

import redis
import redis.exceptions

from kombu_reliable.client import connect_client, open_connection
from kombu_reliable.errors import AccessRefused, InvalidURL
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.scripts import translate
from kombu_reliable.store import Operations, Store
from kombu_reliable.transport.attendance import Attendance
from kombu_reliable.transport.examination import examine
from kombu_reliable.transport.keeper import Keeper
from kombu_reliable.transport.line import REFUSALS, Line, ServerLine, SimulatedLine
from kombu_reliable.transport.notices import Notices
from kombu_reliable.urls import ServerURL

__all__ = ('Endpoint', 'endpoint_for')


class Endpoint:
    """A server and namespace, its store and its keeper.

    Args:
        url: the server, with its password.
        options: parsed transport options.
    """

    def __init__(self, url: ServerURL, options: Options) -> None:
        self.url = url
        self.options = options
        self._verified = False
        #: Earliest moment of the next attempt to connect, by whomever, on the monotonic clock.
        self.retry_at = 0.0
        #: Those who have lost a connection for the event loop and have no new one yet.
        self.bereft: weakref.WeakSet[object] = weakref.WeakSet()
        self._loop_thread: tuple[int, int] | None = None
        self._ahead: float | None = None
        self.operations = Operations(Keys(url.db, options.global_keyprefix), options)

    @cached_property
    def store(self) -> Store:
        return Store(connect_client(self.url, self.options), self.operations)

    @cached_property
    def keeper(self) -> Keeper:
        # A client of its own: the keeper must not wait for publishers' connections, and a dead
        # one must leave it the time to renew on a new one.
        url, operations, lease = self.url, self.operations, self.options.lease
        options = replace(
            self.options,
            # It does not publish, and a publish may wait for its confirmation for longer.
            confirm_replicas=0,
            confirm_fsync=False,
            socket_timeout=min(self.options.socket_timeout, lease / 3),
            socket_connect_timeout=min(self.options.socket_connect_timeout, lease / 3),
        )
        return Keeper(lambda: Store(connect_client(url, options), operations), lease)

    @cached_property
    def attendance(self) -> Attendance:
        return Attendance(lambda: self.store)

    @cached_property
    def notices(self) -> Notices:
        return Notices(lambda: self.store)

    def open_line(self, connect_timeout: float | None = None) -> Line:
        """Opens a connection for the event loop."""
        if self.url.kind == 'fakeredis':
            return SimulatedLine(connect_client(self.url, self.options))
        return ServerLine(open_connection(self.url, self.options, connect_timeout=connect_timeout))

    def learn_time(self, server: int, asked_at: float) -> None:
        """A claim that left at a moment of the monotonic clock has told the server's time."""
        self._ahead = server / 1000 - asked_at

    def server_time(self, at: float | None = None) -> float | None:
        """The server's time in seconds at a moment of the monotonic clock, now unless given; None
        if nothing was claimed yet."""
        if self._ahead is None:
            return None
        return (time.monotonic() if at is None else at) + self._ahead

    def serve_in_loop(self, served: bool) -> None:
        """Notes that an event loop in this thread serves this endpoint, or none any more."""
        self._loop_thread = (os.getpid(), threading.get_ident()) if served else None

    @property
    def must_not_wait(self) -> bool:
        """Whether the caller is the event loop, on which all tasks of a worker depend."""
        loop = self._loop_thread
        # A forked child has its parent's thread numbers, but not its duties.
        return loop is not None and loop == (os.getpid(), threading.get_ident())

    def verify(self) -> None:
        """Connects and makes sure that this server and its data can be used.

        What does not change is asked once per process: every script refuses foreign data by
        itself, and one that a server does not know is loaded when it is needed.

        Raises:
            AccessRefused: wrong password or missing rights.
            UnsupportedServer: the server is too old.
            LayoutError: the data is of another version.
            InvalidURL: the server has no database of that number.
            redis.exceptions.ConnectionError: nobody answers; waiting may help.
        """
        try:
            if self._verified:
                self.store.client.ping()
                return
            if self.url.kind != 'fakeredis':
                examine(self.store.client, self.url)
            self.store.check_layout()
            self._verified = True
        except REFUSALS as error:
            raise AccessRefused(f'{self.url} refuses access: {error}') from None
        except redis.exceptions.ResponseError as error:
            if 'DB index' not in str(error):
                raise translate(error) from None
            raise InvalidURL(f'{self.url} names a database that the server does not have') from None


_endpoints: weakref.WeakValueDictionary[object, Endpoint] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def endpoint_for(url: ServerURL, options: Options) -> Endpoint:
    """The endpoint of this process for a URL; equal ones are shared."""
    parts = tuple(repr(getattr(options, entry.name)) for entry in fields(options))
    key = (url.format(url.password), parts)
    with _lock:
        endpoint = _endpoints.get(key)
        if endpoint is None:
            endpoint = _endpoints[key] = Endpoint(url, options)
        return endpoint
