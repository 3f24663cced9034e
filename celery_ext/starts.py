"""Frees the unique key of a job at the start of its run, where it is to be free then.

A worker may have a job long before it runs.  So it is said by the process that runs it, before
the first line of the task: what is published from then on is another job.
"""

from __future__ import annotations

import os
import time
from typing import Any
from weakref import WeakKeyDictionary

from celery import signals
from celery.utils.log import get_logger

from kombu_reliable import TOKEN_HEADER, Store, frees_at_start, open_store, pack_id

__all__ = ('connect',)

logger = get_logger(__name__)

#: Pauses, in seconds, before the server is asked once more.
PAUSES = (0.05, 0.2, 0.5, 1.0, 0.0)

#: Of each app, by process.
_stores: WeakKeyDictionary[Any, tuple[int, Store]] = WeakKeyDictionary()


def connect() -> None:
    """Watches the start of tasks; idempotent."""
    signals.task_prerun.connect(_on_task_prerun, weak=False, dispatch_uid='kombu_reliable.unique')


def _on_task_prerun(task: Any, **others: Any) -> None:
    request = task.request
    if not frees_at_start(request.headers):
        return
    token, _, job = str(request.headers.get(TOKEN_HEADER) or '').partition(' ')
    if not token:
        return
    for pause in PAUSES:
        try:
            _store(task.app).jobs.unlock(job or pack_id(request.id), token)
            return
        except Exception as error:
            problem = error
            time.sleep(pause)
    logger.warning(
        'task %s[%s] has begun, but its unique key stays taken until it ends: %r',
        task.name, request.id, problem,
    )  # fmt: skip


def _store(app: Any) -> Store:
    pid, store = _stores.get(app, (0, None))
    if store is None or pid != os.getpid():
        store = open_store(app.connection_for_read())
        _stores[app] = os.getpid(), store
    return store
