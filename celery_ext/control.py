"""``revoke`` that is heard by the server as well: what is queued goes, whoever runs or not.

Celery tells its workers to skip a task, and they forget it when they end.  Here the job itself is
removed first, then Celery's own message goes out, for what the workers have already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from celery.app.control import Control

from celery_ext.away import AWAY
from celery_ext.broker import is_ours

__all__ = ('broadcast_revoke', 'cancel_surely', 'connect')

T = TypeVar('T')

_revoke: Callable[..., Any] = Control.revoke


def connect() -> None:
    """Adds to :meth:`celery.app.control.Control.revoke`, by which results revoke too.

    Apps without the extension, and those on other brokers, notice nothing.  Idempotent.
    """
    if Control.revoke is _revoke:
        Control.revoke = _durable(_revoke)


def broadcast_revoke(app: Any, task_id: str | list[str], terminate: bool, signal: str) -> None:
    """Celery's own message to all workers."""
    _revoke(app.control, task_id, terminate=terminate, signal=signal)


def cancel_surely(cancel: Callable[[], T]) -> tuple[T, bool]:
    """Cancels jobs, and once more if no answer came.

    Returns:
        What was answered, and whether the answer to the first attempt is not known: then a job
        that is unknown may have been taken from a worker.
    """
    try:
        return cancel(), False
    except AWAY:
        return cancel(), True


def _durable(revoke: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(revoke)
    def revoke_and_remove(
        self: Any, task_id: Any, destination: Any = None, terminate: bool = False, *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        extension = self.app.__dict__.get('celery_ext')
        # Those who name workers speak to these alone.
        if extension is not None and destination is None and is_ours(self.app):
            if not isinstance(task_id, str):
                task_id = list(task_id)
            extension.jobs.revoke([task_id] if isinstance(task_id, str) else task_id, terminate)
        return revoke(self, task_id, destination, terminate, *args, **kwargs)

    return revoke_and_remove
