"""Makes what a task publishes under its own id its job's next run.

Celery's retry copies the headers of its run, and with them the token by which the transport
knows the delivery.  ``Task.replace`` copies none, so they are added here.  The transport then
ends the run and stores the next one in a single step: a worker that dies between the two neither
loses nor doubles the task, and one that has lost its lease cannot publish at all.

A task that is replaced by a canvas publishes nothing under its own id: the last of the canvas
will.  Both kinds end with an exception that says so.

A retry that cannot be published because the server is away would be rejected by Celery, for good.
Its run goes back to its place instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import Task, current_task, signals
from celery.exceptions import Ignore, Reject
from kombu.exceptions import OperationalError

from kombu_reliable import TOKEN_HEADER, Fenced

__all__ = ('Overtaken', 'Replaced', 'connect')


class Replaced(Ignore):
    """The task has ended, but others go on under its id."""


class Overtaken(Ignore):
    """The run was to be replaced after its lease was lost: another worker has the task, and
    what becomes of it is not for this one to say."""


def connect() -> None:
    """Watches what the tasks of this process publish, once it is a worker's; idempotent."""
    signals.worker_init.connect(_on_worker_init, weak=False, dispatch_uid='kombu_reliable.run')


def _on_worker_init(**_: Any) -> None:
    signals.before_task_publish.connect(_carry_token, weak=False, dispatch_uid='kombu_reliable.run')
    if not hasattr(Task.on_replace, 'says_so'):
        Task.on_replace = _saying_so(Task.on_replace)
        Task.retry = _giving_back(Task.retry)


def _carry_token(headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is None or not current_task:
        return
    request = current_task.request
    if request.id is not None and headers.get('id') == request.id:
        token = (request.headers or {}).get(TOKEN_HEADER)
        if token is not None:
            headers.setdefault(TOKEN_HEADER, token)


def _giving_back(retry: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(retry)
    def retried(task: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return retry(task, *args, **kwargs)
        except Reject as reject:
            ours = TOKEN_HEADER in (task.request.headers or {})
            if ours and isinstance(reject.reason, OperationalError):
                raise Reject(reject.reason, requeue=True) from reject.reason
            raise

    return retried


def _saying_so(on_replace: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(on_replace)
    def replaced(task: Any, sig: Any) -> Any:
        try:
            return on_replace(task, sig)
        except Fenced as error:
            raise Overtaken(str(error)) from None
        except Ignore as ignore:
            raise Replaced(*ignore.args) from None

    replaced.says_so = True  # type: ignore[attr-defined]
    return replaced
