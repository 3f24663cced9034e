"""Makes what a task publishes under its own id its job's next run.

Celery's retry copies the headers of its run, and with them the token by which the transport
knows the delivery.  ``Task.replace`` copies none, so they are added here.  The transport then
ends the run and stores the next one in a single step: a worker that dies between the two neither
loses nor doubles the task, and one that has lost its lease cannot publish at all.
"""

from __future__ import annotations

from typing import Any

from celery import current_task, signals

from kombu_reliable import TOKEN_HEADER

__all__ = ('connect',)


def connect() -> None:
    """Watches what the tasks of this process publish, once it is a worker's; idempotent."""
    signals.worker_init.connect(_on_worker_init, weak=False, dispatch_uid='kombu_reliable.run')


def _on_worker_init(**_: Any) -> None:
    signals.before_task_publish.connect(_carry_token, weak=False, dispatch_uid='kombu_reliable.run')


def _carry_token(headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is None or not current_task:
        return
    request = current_task.request
    if request.id is not None and headers.get('id') == request.id:
        token = (request.headers or {}).get(TOKEN_HEADER)
        if token is not None:
            headers.setdefault(TOKEN_HEADER, token)
