"""``celery beat`` for those who want a process of its own: any number of them, at once."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from typing import Any

import celery.beat
from kombu.exceptions import OperationalError

from celery_ext.broker import require, speaks_ours
from celery_ext.declaring import declared_schedules
from celery_ext.firing import Firer
from celery_ext.schedule_step import PAUSE, STAY, name_in, tick_consumer
from kombu_reliable import Verdict

__all__ = ('Scheduler',)

logger = logging.getLogger('celery.beat')

#: How long one look for ticks takes at most, in seconds: in between, beat asks whether to end.
LOOK = 1.0
#: The pause before a lost connection is opened again.
RETRY = 1.0


class Scheduler(celery.beat.Scheduler):
    """Fires the same schedules as the workers do, for fleets whose workers do not.

    ``celery beat -S celery_ext.schedules:Scheduler``; nothing is kept in a file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._connection: Any = None
        self._firer: Firer | None = None
        self._stay_at = 0.0
        #: Ticks that could not be fired, and until when they are held.
        self._waiting: deque[tuple[float, Any]] = deque()
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        require(self.app, 'this scheduler')
        self.data = declared_schedules(self.app, beat=True)

    @property
    def info(self) -> str:
        return f'    . schedules -> {self.app.connection_for_write().as_uri()}'

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Fires what is due within the next second, when it is due."""
        try:
            firer = self._firer or self._connect()
            if time.monotonic() >= self._stay_at:
                firer.stay()
                self._stay_at = time.monotonic() + STAY
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._waiting.popleft()[1].settle(Verdict.RELEASE)
            with contextlib.suppress(TimeoutError):
                self._connection.drain_events(timeout=LOOK)
        except (*self._errors(), OperationalError) as error:
            logger.warning('beat: no connection, again in %.0f s: %r', RETRY, error)
            self._disconnect()
            return RETRY
        return 0.0

    def _errors(self) -> tuple[type[BaseException], ...]:
        if self._connection is None:
            return (OSError,)
        return (*self._connection.connection_errors, *self._connection.channel_errors)

    def _connect(self) -> Firer:
        self._connection = self.app.connection_for_read()
        assert speaks_ours(self._connection)
        channel = self._connection.channel()
        firer = Firer(self.app, channel.store, channel, self.data)
        firer.declare()
        tick_consumer(channel, self._receive).consume()
        self._firer, self._stay_at = firer, time.monotonic() + STAY
        return firer

    def _disconnect(self) -> None:
        self._waiting.clear()
        connection, self._connection, self._firer = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(Exception):
                connection.release()

    def _receive(self, message: Any) -> None:
        assert self._firer is not None
        try:
            self._firer.fire(name_in(message))
        except self._errors():
            raise
        except Exception as error:
            logger.warning('beat: schedule %s cannot be fired here: %r', name_in(message), error)
            self._waiting.append((time.monotonic() + PAUSE, message))
        else:
            message.ack()

    def close(self) -> None:
        self._disconnect()
        super().close()
