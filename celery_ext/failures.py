"""What a dead letter keeps of an exception."""

from __future__ import annotations

from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import Reject

__all__ = ('describe', 'unwrap')


def unwrap(exc: Any) -> Any:
    """The exception that a pool process has sent wrapped."""
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc


def describe(reason: str, exc: Any, task: str, traceback: Any = '') -> dict[str, str]:
    """Details of a failure, as :meth:`kombu_reliable.transport.received.Message.settle` takes
    them.

    Args:
        reason: why the job ended, in a word.
        exc: what was raised.
        task: name of the task, by which dead letters are found together.
        traceback: its text.
    """
    # An exception that could not be pickled is known by its name only.
    kind = getattr(exc, 'exc_cls_name', type(exc).__name__)
    return {
        'reason': reason,
        'type': kind,
        'message': _text(exc),
        'traceback': str(traceback or ''),
        'group': task,
    }


def _text(exc: Any) -> str:
    try:
        return str(exc.reason if isinstance(exc, Reject) else exc)
    except Exception:
        return '<no text>'
