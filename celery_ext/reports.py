"""Tells those who wait for a task's result that it has ended, in place of a worker.

Its message is all that is known: headers, and in the body what was linked to it.
"""

from __future__ import annotations

from typing import Any

from celery import states
from celery.app.task import Context
from celery.utils.log import get_logger

__all__ = ('Report', 'report_failure')

logger = get_logger(__name__)


class Report:
    """What a message says of a task that nobody runs any more.

    Args:
        app: the app whose task it is.
        message: a kombu message, or what looks like one.

    Raises:
        ValueError: it is no task.
    """

    def __init__(self, app: Any, message: Any) -> None:
        self.app = app
        args, kwargs, headers, embed = _read(message)
        if not isinstance(headers.get('id'), str):
            raise ValueError('a message that is no task')
        properties = message.properties or {}
        self.request = Context(
            {
                **headers,
                **embed,
                'args': args,
                'kwargs': kwargs,
                'reply_to': properties.get('reply_to'),
                'correlation_id': properties.get('correlation_id'),
                'delivery_info': {},
            }
        )
        self.task = app.tasks.get(headers.get('task'))
        self.backend = app.backend if self.task is None else self.task.backend

    @property
    def store_result(self) -> bool:
        ignored = self.request.ignore_result
        if ignored is None:
            ignored = getattr(self.task, 'ignore_result', False)
        return not ignored or bool(getattr(self.task, 'store_errors_even_if_ignored', False))

    def has_succeeded(self) -> bool:
        """Whether its worker could still store its result, if nothing more."""
        try:
            return bool(self.backend.get_state(self.request.id) == states.SUCCESS)
        except Exception:
            return False  # a backend that cannot tell

    def complete(self) -> None:
        """Counts a success for its chord, as nobody knows whether its worker still could."""
        request = self.request
        if request.chord:
            result = self.backend.get_result(request.id)
            self.backend.on_chord_part_return(request, states.SUCCESS, result)

    def write(self, error: Exception, state: str = states.FAILURE) -> None:
        """Writes the result, and hands it on to chains, chords and errbacks."""
        self.backend.mark_as_failure(
            self.request.id, error, request=self.request, store_result=self.store_result,
            state=state,
        )  # fmt: skip


def report_failure(app: Any, message: Any, error: Any) -> None:
    """Writes the failure of a message that is a task in name only, if it is one."""
    try:
        report = Report(app, message)
    except ValueError:
        return
    report.write(error if isinstance(error, Exception) else ValueError(str(error)))


def _read(message: Any) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """Arguments, headers, and what was linked, as far as they can be read."""
    headers = dict(message.headers or {})
    try:
        payload = message.payload
    except Exception:
        return (), {}, headers, {}
    if isinstance(payload, dict):  # Celery's first protocol, or a mixture
        found = {**payload, **headers}
        return found.pop('args', ()), found.pop('kwargs', {}), found, {}
    try:
        args, kwargs, embed = payload
        return args, kwargs, headers, dict(embed or {})
    except (TypeError, ValueError):
        return (), {}, headers, {}
