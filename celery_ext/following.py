"""What becomes of a call that was skipped because another job does its work.

A plain call gets that job's result.  But one that others count on has a place of its own, to
which they look: a member of a group or chord, a task of a chain, one with callbacks.  There a
small task stands in for it: it waits for the job, takes over its result or its failure, and all
goes on as if the call had been made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import shared_task, states
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, TaskRevokedError
from celery.utils.log import get_logger

from kombu_reliable import DuplicateJob

__all__ = ('NAME', 'connect', 'result_of')

logger = get_logger(__name__)

NAME = 'celery_ext.follow'

#: By these options others count on a call.
_COUNTED_ON = ('chain', 'chord', 'group_id', 'link', 'link_error')
#: Those of a call that do not concern whoever stands in for it.
_NOT_ITS_OWN = (
    'argsrepr', 'countdown', 'eta', 'expires', 'kwargsrepr', 'shadow', 'soft_time_limit',
    'task_type', 'time_limit',
)  # fmt: skip

#: Pauses, in seconds, until the result of a job must be there that has ended: some ends are told
#: by another worker.
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def result_of(app: Any, holder: str, name: str, options: Mapping[str, Any]) -> Any:
    """The result of a call that was skipped in favour of another job.

    Args:
        app: the Celery app.
        holder: id of the task that does the work.
        name: of the task that was called.
        options: of the call.
    """
    ignores = options.get('ignore_result') or getattr(app.tasks.get(name), 'ignore_result', False)
    others = [option for option in _COUNTED_ON if options.get(option)]
    if not others or (others == ['group_id'] and ignores):
        return (options.get('result_cls') or app.AsyncResult)(holder)
    own = {key: value for key, value in options.items() if key not in _NOT_ITS_OWN}
    # It takes no part in what the headers ask for, and waits for nothing else.
    headers = {k: v for k, v in (own.pop('headers', None) or {}).items() if not k.startswith('x-')}
    own.setdefault('route_name', name)
    return app.send_task(
        NAME, (holder,), headers=headers, depends_on=[holder], dependency_policy='ignore',
        shadow=name, **own,
    )  # fmt: skip


def connect() -> None:
    """Makes the task known to all apps of this process; idempotent."""
    shared_task(name=NAME, bind=True, acks_late=True, max_retries=len(PAUSES))(_follow)


def _follow(self: Any, holder: str) -> Any:
    """Ends as another job has ended."""
    result = self.app.AsyncResult(holder)
    kept = not isinstance(self.app.backend, DisabledBackend)
    state = result.state if kept else states.PENDING
    if state == states.SUCCESS:
        return result.result
    if state in states.READY_STATES:
        error = result.result
        if not isinstance(error, BaseException):
            error = TaskRevokedError(str(error))
    elif kept and self.request.retries < len(PAUSES):
        raise self.retry(countdown=PAUSES[self.request.retries])
    else:
        why = 'has left no result' if kept else 'can leave no result: there is no result backend'
        error = DuplicateJob(f'task {holder}, which was there already, {why}', holder)
    logger.error('Task %s ends as task %s did: %r', self.request.id, holder, error)
    # No dead letter: that of the other job is enough.
    self.backend.mark_as_failure(
        self.request.id, error, traceback=result.traceback if kept else None, request=self.request
    )
    raise Ignore
