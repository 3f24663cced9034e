"""The part of a worker that fires schedules: on by default, ``--without-schedules`` turns it off.

It consumes the ticks of all schedules, as its channel of tasks consumes tasks: woken to the
millisecond, by one worker, and by another one if that dies.  Nobody looks for due schedules.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import click
from celery import bootsteps
from celery.utils.log import get_logger
from kombu import Consumer, Queue

from celery_ext.ticks import TICKS
from kombu_reliable import Verdict

if TYPE_CHECKING:
    from celery_ext.firing import Firer

__all__ = ('PAUSE', 'STAY', 'FireSchedules', 'connect', 'name_in', 'tick_consumer')

logger = get_logger(__name__)

#: Ticks that one worker may hold.
PREFETCH = 50

#: How often a worker says that it is still there, in seconds.
STAY = 60.0

#: How long a tick that could not be fired here is held, in seconds, before it is anybody's again.
PAUSE = 10.0


class FireSchedules(bootsteps.StartStopStep):
    """A step of Celery's consumer."""

    requires = ('celery.worker.consumer:Tasks',)

    def __init__(self, parent: Any, without_schedules: bool = False, **kwargs: Any) -> None:
        self.enabled = not without_schedules
        self.channel: Any = None
        self.firer: Firer | None = None
        self.timer: Any = None
        #: Those that could not be fired yet.
        self.waiting: set[Any] = set()
        super().__init__(parent, **kwargs)

    def include_if(self, parent: Any) -> bool:
        return self.enabled

    def start(self, parent: Any) -> None:
        """Declares what the code declares, and begins to consume."""
        if parent.connection.transport.driver_name != 'kombu_reliable':
            return
        # Every program that installs the extension loads this file; workers alone need these.
        from celery_ext.declaring import declared_schedules
        from celery_ext.firing import Firer

        self.channel = parent.connection.channel()
        self.firer = Firer(
            parent.app, self.channel.store, self.channel, declared_schedules(parent.app)
        )
        self.firer.declare()
        tick_consumer(self.channel, partial(self.receive, parent)).consume()
        if self.firer.declared:
            self.timer = parent.timer.call_repeatedly(STAY, self._stay)

    def stop(self, parent: Any) -> None:
        """Gives back what could not be fired."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()
        for message in self.waiting:
            message.settle(Verdict.RELEASE)
        self.waiting.clear()
        channel, self.channel, self.firer = self.channel, None, None
        if channel is not None:
            channel.close()

    shutdown = stop

    def _stay(self) -> None:
        try:
            if self.firer is not None:
                self.firer.stay()
        except Exception as error:
            logger.warning('schedules cannot be declared, again in %.0f s: %r', STAY, error)

    def receive(self, parent: Any, message: Any) -> None:
        """Fires one schedule, or leaves it to another worker, or to later."""
        if self.firer is None:
            return
        try:
            self.firer.fire(name_in(message))
        except Exception as error:
            # The server is full, or this machine does not know the time zone: who knows what
            # the next one can do.  A release counts as no delivery.
            logger.warning(
                'schedule %s cannot be fired here, again in %.0f s: %r',
                name_in(message), PAUSE, error,
            )  # fmt: skip
            self.waiting.add(message)
            parent.timer.call_after(PAUSE, self._leave, (message,))
        else:
            message.ack()

    def _leave(self, message: Any) -> None:
        if message in self.waiting:
            self.waiting.discard(message)
            message.settle(Verdict.RELEASE)


def name_in(message: Any) -> str:
    """The schedule whose tick it is."""
    return str(message.body.decode(errors='replace'))


def tick_consumer(channel: Any, receive: Any) -> Consumer:
    """Consumes the ticks of all schedules."""
    consumer = Consumer(
        channel, [Queue(TICKS)], on_message=receive, accept=['application/octet-stream']
    )
    consumer.qos(prefetch_count=PREFETCH)
    return consumer


def connect(app: Any) -> None:
    """Has the workers of an app fire schedules; idempotent."""
    app.steps['consumer'].add(FireSchedules)
    options = app.user_options['worker']
    if not any(option.name == 'without_schedules' for option in options):
        options.add(
            click.Option(
                ['--without-schedules'], is_flag=True, help='Do not fire schedules of celery_ext.'
            )
        )
