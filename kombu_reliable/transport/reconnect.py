"""Opens connections for the event loop, again and again, as long as waiting can mend it.

Celery's own way of reconnecting forgets tasks that its pool already runs, so the transport
stays quiet while the server is merely away.
"""

from __future__ import annotations

import logging
import time

from kombu_reliable.errors import AccessRefused
from kombu_reliable.transport.endpoint import Endpoint
from kombu_reliable.transport.line import LOST, REFUSALS, Line

__all__ = ('Reconnect',)

logger = logging.getLogger('kombu_reliable')

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
REPEAT_WARNING = 30.0

#: A connection that did not live for so long, in seconds, does not end an outage: somewhere
#: between us and the server something lets us in and throws us out again.
STABLE = 5.0

#: The event loop stands still while a connection is opened.
CONNECT_TIMEOUT = 1.0


class Reconnect:
    """The state of one effort to stay connected.

    Args:
        endpoint: the server.
        purpose: what the connection is for, for the log.
    """

    def __init__(self, endpoint: Endpoint, purpose: str) -> None:
        self._endpoint = endpoint
        self._purpose = purpose
        self._lost_at: float | None = None
        self._opened_at: float | None = None
        self._pause = FIRST_PAUSE
        self._next_warning = 0.0
        self._announced = False
        self._retry_at = 0.0

    @property
    def retry_at(self) -> float:
        """Earliest moment of the next attempt, on the monotonic clock.

        Where one has just failed to connect, the others need not try: each attempt may hold up
        the event loop.
        """
        return max(self._retry_at, self._endpoint.retry_at)

    def open(self) -> Line | None:
        """Tries once, if it is time to; None means later.

        Raises:
            AccessRefused: the server refuses this user, which waiting cannot mend.
            ConnectionError: ``reconnect_timeout`` is over.
        """
        if time.monotonic() < self.retry_at:
            return None
        try:
            line = self._endpoint.open_line(CONNECT_TIMEOUT)
        except REFUSALS as error:
            raise AccessRefused(f'{self._endpoint.url} refuses access: {error}') from None
        except LOST as error:
            self.failed(error)
            self._endpoint.retry_at = self._retry_at
            return None
        self._endpoint.retry_at = 0.0
        self._endpoint.bereft.discard(self)
        self._opened_at = time.monotonic()
        if self._lost_at is not None and not self._announced:
            self._announced = True
            logger.warning(
                '%s: connected again to %s after %.1f s',
                self._purpose,
                self._endpoint.url,
                self._opened_at - self._lost_at,
            )
        return line

    def failed(self, error: Exception) -> None:
        """Notes a lost connection or a failed attempt.

        Raises:
            ConnectionError: ``reconnect_timeout`` is over.
        """
        now = time.monotonic()
        self._endpoint.bereft.add(self)
        if self._opened_at is not None and now - self._opened_at >= STABLE:
            self._lost_at, self._pause = None, FIRST_PAUSE
        self._opened_at = None
        if self._lost_at is None:
            self._lost_at, self._next_warning, self._announced = now, now, False
        if now >= self._next_warning:
            self._next_warning = now + REPEAT_WARNING
            logger.warning(
                '%s: connection to %s lost (%s), reconnecting',
                self._purpose,
                self._endpoint.url,
                str(error) or type(error).__name__,
            )
        limit = self._endpoint.options.reconnect_timeout
        if limit is not None and now - self._lost_at >= limit:
            raise error
        self._retry_at = now + self._pause
        self._pause = min(LONGEST_PAUSE, 2 * self._pause)
