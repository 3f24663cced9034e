"""What one Flower knows of one broker: who asks it, in which threads, and what was just read."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import redis.exceptions

import kombu_reliable
from celery_ext.away import AWAY
from celery_ext.ends import ENDS
from celery_ext.installation import Extension
from kombu_reliable import (
    AccessRefused,
    ConnectionLost,
    InvalidOption,
    LayoutError,
    ServerFull,
    UnsupportedServer,
    WrongState,
)

__all__ = ('LIMIT', 'Onlooker', 'Progress', 'Unavailable', 'Watch')

logger = logging.getLogger('celery_ext')

T = TypeVar('T')

#: How long a page waits for the server, in seconds.
LIMIT = 2.5

#: ... and for what is nice to have, such as results from a backend of its own.
EXTRAS_LIMIT = 1.0

#: No thread waits longer than that for one reply.
TIMEOUTS = {'socket_timeout': 2.0, 'socket_connect_timeout': 1.0, 'confirm_timeout': 1.0}

#: What was read so recently, in seconds, serves all who look at the same.
FRESH = 1.0

#: Threads that ask the server, those that ask for extras, and those that act on many jobs.
THREADS, EXTRAS, LONG = 8, 2, 2

#: What means that the server cannot answer now, or not for us.
UNABLE = (
    *AWAY, redis.exceptions.RedisError, ConnectionLost, LayoutError, AccessRefused,
    UnsupportedServer, ServerFull,
)  # fmt: skip


class Unavailable(Exception):
    """The server did not answer in time, or refuses to."""


class Onlooker(Extension):
    """The extension of an app as Flower uses it: it waits for nobody for long, and changes no
    settings."""

    @cached_property
    def store(self) -> kombu_reliable.Store:
        store = kombu_reliable.open_store(self._connection())
        if 'celery_ext' in self.app.__dict__:
            # Only workers of such apps read of the ends that no worker sees.
            store.tell_ends_to(ENDS)
        return store

    def _connection(self) -> Any:
        try:
            connection = self.app.connection_for_write(transport_options=TIMEOUTS)
            assert connection.transport  # which reads the options
            return connection
        except InvalidOption:  # they do not go together with those of the user
            return self.app.connection_for_write()


class Progress:
    """Something that goes on with many jobs.

    Args:
        text: what is done: ``'replaying mail'``.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.done = 0

    def __call__(self, done: int) -> None:
        self.done = done

    def __str__(self) -> str:
        return f'{self.text}: {self.done:,} so far'


class Watch:
    """Asks the broker of an app on behalf of the pages.

    Args:
        app: a Celery app.

    Example:
        >>> names = await watch.run(lambda ext: ext.queues.names())
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.extension = Onlooker(app)
        self._threads = ThreadPoolExecutor(THREADS, 'reliable-pages')
        self._extras = ThreadPoolExecutor(EXTRAS, 'reliable-extras')
        self._long = ThreadPoolExecutor(LONG, 'reliable-long')
        self._lock = threading.Lock()
        self._read: dict[Any, tuple[float, Any]] = {}
        #: What takes longer than a request: key -> what it does, and how far it is.
        self.long: dict[str, Progress] = {}

    async def run(self, ask: Callable[..., T], *args: Any) -> T:
        """Calls a function with the extension and some arguments, in another thread.

        Raises:
            Unavailable: no answer within 2.5 s, or none at all.
        """
        try:
            return await self._within(LIMIT, self._threads, ask, self.extension, *args)
        except UNABLE as error:
            logger.warning('no answer for a page of celery_ext: %s', _line(error))
            raise Unavailable(_line(error)) from error

    async def extra(self, ask: Callable[..., T], *args: Any) -> T | None:
        """As :meth:`run`, for what a page can do without: None if it is not there soon."""
        try:
            return await self._within(EXTRAS_LIMIT, self._extras, ask, self.extension, *args)
        except Exception as error:  # a result backend may raise anything
            logger.info('a page goes without an extra: %s', _line(error))
            return None

    async def _within(
        self, limit: float, threads: ThreadPoolExecutor, ask: Callable[..., T], *args: Any
    ) -> T:
        # What times out while it waits for a thread never begins.
        future = threads.submit(ask, *args)
        return await asyncio.wait_for(asyncio.wrap_future(future), limit)

    async def run_long(
        self, key: str, text: str, act: Callable[[Any, Progress], int]
    ) -> int | None:
        """Does something that may take minutes, once at a time for each key.

        Args:
            key: of what it is done with.
            text: what is done, for those who look meanwhile.
            act: does it and tells how far it is.

        Returns:
            How many there were; None if it goes on after this call.

        Raises:
            WrongState: somebody else does it at this moment.
            Unavailable: the server does not answer.
        """
        running = self.long.get(key)
        if running is not None:
            raise WrongState(f'somebody is {running}', 'busy')
        progress = self.long[key] = Progress(text)

        def whole() -> int:
            try:
                return act(self.extension, progress)
            finally:
                self.long.pop(key, None)
                self.forget()

        future = self._long.submit(whole)
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(future)), LIMIT)
        except TimeoutError as error:
            if not future.done():
                future.add_done_callback(_tell_failure)
                return None
            raise Unavailable(_line(error)) from error
        except UNABLE as error:
            raise Unavailable(_line(error)) from error

    def recent(self, key: Any, read: Callable[[], T]) -> T:
        """What was read under a key less than a second ago, or what is read now."""
        with self._lock:
            at, value = self._read.get(key, (float('-inf'), None))
            if time.monotonic() - at < FRESH:
                return value  # type: ignore[no-any-return]
        value = read()
        with self._lock:
            if len(self._read) > 1000:
                self._read.clear()
            self._read[key] = (time.monotonic(), value)
        return value

    def forget(self) -> None:
        """Something was changed: what was read is of no use any more."""
        with self._lock:
            self._read.clear()


def _line(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not str(error):
        return f'no answer within {LIMIT:g} s'
    return ' '.join(str(error).split()) or type(error).__name__


def _tell_failure(future: Future[int]) -> None:
    if error := future.exception():
        logger.warning('what a page has begun did not come to its end: %s', _line(error))
