"""Tells the transport at once what becomes of a message in a worker.

A task that was begun is never given back as if nobody had touched it: Celery forgets one that
ran out of memory, ends, and its successor would run it again, and end, without limit.

Celery hands every ack to its event loop.  While a worker shuts down the loop stands still, and
under threads it does so until the last task has ended: who loses his patience and kills the
worker then would lose the acks of all that ended before.  Here an ack may come from any thread
and never blocks, so it need not wait for the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import bootsteps
from celery.utils.log import get_logger
from celery.worker.request import Request

from kombu_reliable import finish_settling

__all__ = ('SettleAtOnce', 'finish', 'install')

logger = get_logger(__name__)

#: What Celery's consumer hands acks to, by version.
_DETOURS = ('call_soon_ack', 'call_soon')
_SETTLEMENTS = frozenset({'ack_log_error', 'reject_log_error'})


class SettleAtOnce(bootsteps.StartStopStep):
    """A step of Celery's consumer; it runs before the event loop learns about messages."""

    requires = ('celery.worker.consumer:Tasks',)

    def start(self, parent: Any) -> None:
        """Shortens the way of acks if they go to our transport."""
        if parent.connection.transport.driver_name != 'kombu_reliable':
            return
        for name in _DETOURS:
            detour = getattr(parent, name, None)
            if detour is not None and not isinstance(detour, partial):
                setattr(parent, name, partial(_settle_at_once, detour))
        if not isinstance(parent.create_task_handler, partial):
            parent.create_task_handler = partial(_surviving, parent, parent.create_task_handler)


def _settle_at_once(detour: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
    if getattr(call, '__name__', '') in _SETTLEMENTS:
        return call(*args, **kwargs)
    return detour(call, *args, **kwargs)


def _surviving(consumer: Any, create: Callable[[], Any]) -> Callable[[Any], None]:
    """Foreign messages can upset Celery's handler in ways that would end the worker."""
    handle = create()

    def on_task_received(message: Any) -> None:
        try:
            handle(message)
        except (MemoryError, *consumer.connection_errors):
            raise
        except Exception as error:
            if message.acknowledged or message.begun:
                raise
            logger.exception('a message cannot be handled and becomes a dead letter: %r', error)
            message.reject()

    return on_task_received


def _note_begin(on_accepted: Callable[..., None]) -> Callable[..., None]:
    def accepted(request: Any, *args: Any, **kwargs: Any) -> None:
        begin = getattr(request.message, 'begin', None)
        if begin is not None:
            begin()
        on_accepted(request, *args, **kwargs)

    accepted.notes_begin = True  # type: ignore[attr-defined]
    return accepted


def finish(**_: Any) -> None:
    """A receiver of Celery's ``worker_shutdown``: after SIGHUP the process replaces itself, and
    does so before its other exit handlers run."""
    finish_settling()


def install(instance: Any, **_: Any) -> None:
    """Adds the step, and notes when tasks begin; a receiver of Celery's ``celeryd_init``."""
    if not hasattr(Request.on_accepted, 'notes_begin'):
        Request.on_accepted = _note_begin(Request.on_accepted)
    instance.app.steps['consumer'].add(SettleAtOnce)
