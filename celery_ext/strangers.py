"""Messages that a worker cannot turn into a task: unknown, undecodable, malformed.

Celery rejects them.  Here their dead letters say why, and whoever waits for their results hears
of it, chords and errbacks too, of which Celery says nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from celery.exceptions import NotRegistered
from celery.utils.log import get_logger

from celery_ext.failures import describe
from celery_ext.reports import report_failure
from kombu_reliable import Verdict

__all__ = ('watch_strangers',)

logger = get_logger(__name__)


def watch_strangers(consumer: Any) -> None:
    """Goes around what a consumer of Celery's does with such messages; idempotent."""
    _go_around(consumer, 'on_unknown_task', 'unknown-task', 1)
    _go_around(consumer, 'on_invalid_task', 'invalid', 1)
    _go_around(consumer, 'on_unknown_message', 'malformed', 1)
    _go_around(consumer, 'on_decode_error', 'undecodable', 0)


def _go_around(consumer: Any, name: str, reason: str, place: int) -> None:
    """Replaces a method whose arguments have the message at a place, and mostly an error
    behind it."""
    theirs: Callable[..., Any] = getattr(consumer, name)
    if getattr(theirs, 'tells_why', False):
        return

    def told(*args: Any) -> None:
        message = args[place]
        error = _error(reason, message, args[place + 1 :])
        message.settle(Verdict.FAIL, _describe(reason, error, message))
        theirs(*args)
        try:
            report_failure(consumer.app, message, error)
        except Exception:
            logger.exception('the failure of a message that is no task could not be reported')

    told.tells_why = True  # type: ignore[attr-defined]
    setattr(consumer, name, told)


def _error(reason: str, message: Any, errors: tuple[BaseException, ...]) -> BaseException:
    if errors and reason != 'unknown-task':  # of which Celery has the KeyError
        return errors[0]
    unknown: BaseException = NotRegistered(_task_of(message))
    return unknown


def _describe(reason: str, error: BaseException, message: Any) -> dict[str, str]:
    lines = traceback.format_exception(error)
    return describe(reason, error, _task_of(message), ''.join(lines))


def _task_of(message: Any) -> str:
    name = (message.headers or {}).get('task')
    return name if isinstance(name, str) else ''
