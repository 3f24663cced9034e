"""Tells the transport how a task has ended, not only that it has.

Celery knows two answers to a message, ack and reject; a broker learns from them neither why a
task failed nor whether it did.  :class:`Outcome` is put in front of the Request class of every
task when a worker starts, and says it: failed and why, canceled, replaced, done.

With early acks Celery answers before the task begins.  Then the delivery goes on all the same,
as one that is not made again: slots and dependents wait for the outcome, and a job whose worker
was lost is found among the dead letters.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps, signals
from celery.concurrency.base import BasePool
from celery.exceptions import (
    Ignore,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.imports import symbol_by_name
from celery.utils.log import get_logger
from celery.worker import state
from kombu.utils.encoding import safe_repr

from celery_ext.ends import TellEnds
from celery_ext.failures import describe, unwrap
from celery_ext.next_run import Overtaken, Replaced
from celery_ext.recorder import Recorder, recorder_of
from celery_ext.strangers import watch_strangers
from kombu_reliable import Fenced, Verdict

__all__ = ('KnowOutcomes', 'Outcome', 'connect', 'with_outcome')

logger = get_logger(__name__)

#: How long a worker waits until it is recorded that a task was canceled, before it ends it.
RECORD_TIMEOUT = 1.0


class Outcome:
    """In front of a Request class: settles each delivery with what became of the task."""

    # Request classes have slots, and two classes with slots do not mix.
    __slots__ = ()

    #: What the ack or reject to come stands for; None for a plain one.
    _verdict: tuple[Verdict, Any] | None = None
    #: Acknowledged early, so its delivery is still to be settled.
    _once = False
    #: Counts what becomes of tasks, if anybody wants to know.
    _recorder: Recorder | None = None
    #: What else is to be counted of this run: a counter of :class:`kombu_reliable.Stats`.
    _fate = ''
    _counted = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Celery derives one class more, for speed, which does not ask its bases.
        if 'on_success' in cls.__dict__:
            cls.on_success = _settling(cls.__dict__['on_success'])  # type: ignore[method-assign]

    # -- begin -------------------------------------------------------------------

    def on_accepted(self: Any, pid: int, time_accepted: float) -> None:
        if not self.task.acks_late and not self.acknowledged:
            self._once = self.acknowledged = True
            self.message.once()
        if self._recorder is not None:
            self._recorder.started(self, time_accepted)
        super().on_accepted(pid, time_accepted)  # type: ignore[misc]

    # -- end ---------------------------------------------------------------------

    def acknowledge(self: Any) -> None:
        self._say_verdict()
        super().acknowledge()  # type: ignore[misc]

    def reject(self: Any, requeue: bool = False) -> None:
        if not requeue:
            self._say_verdict()
        elif self._verdict is None or self._verdict[0] is not Verdict.REQUEUE:
            self._fate = 'stalled'  # its process was lost
        super().reject(requeue=requeue)  # type: ignore[misc]
        if requeue and self.time_start:
            self._count_end()

    def _count_end(self: Any, runtime: float | None = None) -> None:
        if self._recorder is not None and not self._counted:
            self._counted = True
            self._recorder.ended(self, runtime, self._fate)

    def _say_verdict(self: Any) -> None:
        if self._verdict is not None and not self.acknowledged:
            self.message.settle(*self._verdict)

    def _end_early(self: Any) -> None:
        """Settles what Celery has acknowledged at the start, or forgot to."""
        if self._once or not (self.task.acks_late or self.acknowledged):
            self._once, self.acknowledged = False, True
            if self._verdict is not None:
                self.message.settle(*self._verdict)
            self._on_ack(logger, self._connection_errors)

    def on_success(self: Any, outcome: Any, **kwargs: Any) -> Any:
        return _succeed(self, super().on_success, outcome, kwargs)  # type: ignore[misc]

    def on_retry(self: Any, exc_info: ExceptionInfo) -> None:
        self._verdict, self._fate = (Verdict.REPLACE, ''), 'retried'
        super().on_retry(exc_info)  # type: ignore[misc]

    def on_failure(
        self: Any, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False
    ) -> Any:
        exc = unwrap(exc_info.exception)
        if _is_overtaken(exc):
            self._counted = True  # by him who has it now
            state.task_ready(self)
            self.acknowledge()
            self._end_early()
            return None
        ended = self._already_cancelled or self._already_revoked
        if ended and isinstance(exc, (Terminated, SystemExit, KeyboardInterrupt)):
            # Its process was ended on purpose, and what that means was said.
            self._counted = True
            state.task_ready(self)
            return None
        if isinstance(exc, (SystemExit, KeyboardInterrupt)):
            return self.fail_for_good('exited', exc, exc_info)
        if isinstance(exc, MemoryError):
            # The worker goes down with it; none of those to come should.
            self.fail_for_good('out-of-memory', exc, exc_info, reported=return_ok)
        else:
            self._verdict = self._verdict_on(exc, exc_info)
        try:
            return super().on_failure(exc_info, send_failed_event, return_ok)  # type: ignore[misc]
        finally:
            self._end_early()
            if not return_ok:
                self._count_end()  # or by him who knows how long it ran

    def _verdict_on(self: Any, exc: Any, exc_info: Any) -> tuple[Verdict, Any] | None:
        if isinstance(exc, Terminated):
            self._counted = True
            return Verdict.CANCEL, 'terminated'
        if isinstance(exc, (Replaced, Retry)):
            return Verdict.REPLACE, ''
        if isinstance(exc, Reject):
            if exc.requeue:
                return Verdict.REQUEUE, ''
            cause = exc.reason if isinstance(exc.reason, BaseException) else exc
            return Verdict.FAIL, self._describe('rejected', cause, exc_info)
        if isinstance(exc, Ignore):
            return None
        reason = 'failed'
        if isinstance(exc, WorkerLostError):
            reason = 'worker-lost'
        elif isinstance(exc, TimeLimitExceeded):
            reason = 'time-limit'
        return Verdict.FAIL, self._describe(reason, exc, exc_info)

    def _describe(self: Any, reason: str, exc: Any, exc_info: Any) -> dict[str, str]:
        self._fate = 'failed'
        return describe(reason, exc, self.type, getattr(exc_info, 'traceback', ''))

    def _success_was_stored(self: Any) -> Any:
        stored = super()._success_was_stored()  # type: ignore[misc]
        if stored:
            self._verdict, self._fate = None, ''
        return stored

    def on_timeout(self: Any, soft: bool, timeout: float) -> None:
        if soft:
            super().on_timeout(soft, timeout)  # type: ignore[misc]
            return
        exc = TimeLimitExceeded(timeout)
        self._verdict = (Verdict.FAIL, self._describe('time-limit', exc, None))
        try:
            super().on_timeout(soft, timeout)  # type: ignore[misc]
        finally:
            self._end_early()

    # -- nobody wants it any more ------------------------------------------------

    def terminate(self: Any, pool: Any, signal: Any = None) -> None:
        able = getattr(pool.terminate_job, '__func__', None) is not BasePool.terminate_job
        if self.time_start and able:
            # Or it would run again if this worker died now.
            self.message.settle(Verdict.CANCEL, 'terminated', wait=RECORD_TIMEOUT)
        super().terminate(pool, signal)  # type: ignore[misc]

    def _announce_revoked(self: Any, reason: str, *args: Any, **kwargs: Any) -> None:
        self._verdict = (Verdict.CANCEL, reason)
        try:
            super()._announce_revoked(reason, *args, **kwargs)  # type: ignore[misc]
        finally:
            self._end_early()

    # -- tasks that end their process --------------------------------------------

    def fail_for_good(
        self: Any, reason: str, exc: BaseException, exc_info: Any, reported: bool = False
    ) -> None:
        """The task itself has ended its process, or would, and so it would the next ones."""
        state.task_ready(self)
        if self.acknowledged and not self._once:
            return
        told = exc if isinstance(exc, Exception) else WorkerLostError(f'the task raised {exc!r}')
        self._verdict = (Verdict.FAIL, self._describe(reason, exc, exc_info))
        try:
            if not reported:
                self._report(told, exc_info)
        finally:
            self.acknowledge()
            self._end_early()
            self._count_end()

    def _report(self: Any, exc: Exception, exc_info: Any) -> None:
        """As Celery does for a process that could not report its failure by itself."""
        self.task.backend.mark_as_failure(
            self.id, exc, request=self._context, store_result=self.store_errors
        )
        signals.task_failure.send(
            sender=self.task, task_id=self.id, exception=exc, args=self.args, kwargs=self.kwargs,
            traceback=exc_info.traceback, einfo=exc_info,
        )  # fmt: skip
        self.send_event('task-failed', exception=safe_repr(exc), traceback=str(exc_info.traceback))
        logger.error('Task %s[%s] has ended its process: %r', self.name, self.id, exc)


def _is_overtaken(exc: Any) -> bool:
    """Whether a run ended because another worker has its job: the outcome is not its to tell."""
    if isinstance(exc, Reject):
        exc = exc.reason
    return isinstance(exc, (Overtaken, Fenced))


def _settling(on_success: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(on_success)
    def settling(self: Any, outcome: Any, **kwargs: Any) -> Any:
        return _succeed(self, on_success.__get__(self), outcome, kwargs)

    return settling


def _succeed(request: Any, on_success: Callable[..., Any], outcome: Any, kwargs: Any) -> Any:
    if isinstance(outcome, ExceptionInfo):
        # Pools without processes report so what no task should raise.
        lost = unwrap(outcome.exception)
        return request.fail_for_good('exited', lost.__context__ or lost, outcome)
    result = on_success(outcome, **kwargs)
    if request._once:
        request._end_early()
    if request._recorder is not None and not request._counted:
        request._recorder.ended(request, outcome[2], request._fate)
    return result


@cache
def with_outcome(base: type, recorder: Recorder | None = None) -> type:
    """A Request class that tells the outcome."""
    if issubclass(base, Outcome):
        return base
    attributes = {'__module__': base.__module__, '_recorder': recorder}
    return type(base.__name__, (Outcome, base), attributes)


class KnowOutcomes(bootsteps.StartStopStep):
    """A step of Celery's consumer; it runs before the first message comes."""

    requires = ('celery.worker.consumer:Tasks',)

    def start(self, parent: Any) -> None:
        """Equips every task, if its messages come over our transport."""
        if parent.connection.transport.driver_name != 'kombu_reliable':
            return
        recorder = recorder_of(parent.app)
        for task in parent.app.tasks.values():
            task.Request = with_outcome(symbol_by_name(task.Request), recorder)
        parent.update_strategies()
        watch_strangers(parent)


def connect(app: Any) -> None:
    """Has the workers of an app tell how tasks end, and those ends that no worker has seen;
    idempotent."""
    app.steps['consumer'].update({KnowOutcomes, TellEnds})
