"""Ends that no worker reports: somebody waits for their results all the same.

A job that reached the limit of its deliveries, or was canceled in its queue, ends in Redis, and
none of the workers that ran it can say so.  The transport puts such an end as a message into a
queue of its own; every worker consumes it, next to its tasks, and whoever gets the message writes
the result, runs errbacks and fails the chord.  It is leased as any message, so this happens
at least once.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps, signals, states
from celery.exceptions import TaskRevokedError, WorkerLostError
from celery.utils.log import get_logger
from kombu import Consumer, Queue
from kombu.message import Message
from kombu.serialization import prepare_accept_content
from kombu.utils.encoding import safe_repr

from celery_ext.failures import describe
from celery_ext.recorder import recorder_of
from celery_ext.reports import Report
from kombu_reliable import Verdict, open_envelope

__all__ = ('ENDS', 'DependencyFailed', 'TellEnds')

logger = get_logger(__name__)

#: The queue of ends.
ENDS = 'celery_ext.ends'

#: Ends that one worker may hold.
PREFETCH = 20

#: How often an end is tried to be told, and the pauses in between, in seconds.
TRIES = 20
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


class DependencyFailed(Exception):
    """The result of a job that was never run, because what it depends on did not succeed."""


_ERRORS: dict[str, tuple[type[Exception], str]] = {
    'delivery-limit': (
        WorkerLostError, 'every worker that ran the task was lost, and it reached its limit of '
        'deliveries',
    ),
    'lost': (
        WorkerLostError, 'the worker that ran the task was lost; it was acknowledged early, and '
        'is not run again',
    ),
    'dependency': (DependencyFailed, 'what the task depends on did not succeed'),
    'dependency-timeout': (DependencyFailed, 'what the task depends on did not come in time'),
}  # fmt: skip


class TellEnds(bootsteps.StartStopStep):
    """A step of Celery's consumer: consumes the queue of ends on a channel of its own."""

    requires = ('celery.worker.consumer:Tasks',)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        self.channel: Any = None
        #: Those that could not be told yet.
        self.waiting: set[Any] = set()
        super().__init__(parent, **kwargs)

    def start(self, parent: Any) -> None:
        """Begins to consume, if the worker's messages come over our transport."""
        if parent.connection.transport.driver_name != 'kombu_reliable':
            return
        self.channel = parent.connection.channel()
        self.channel.store.tell_ends_to(ENDS)
        consumer = Consumer(
            self.channel, [Queue(ENDS)], on_message=partial(self.receive, parent),
            accept=['application/octet-stream'],
        )  # fmt: skip
        consumer.qos(prefetch_count=PREFETCH)
        consumer.consume()

    def stop(self, parent: Any) -> None:
        """Gives back what could not be told."""
        for message in self.waiting:
            message.settle(Verdict.RELEASE)
        self.waiting.clear()
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    shutdown = stop

    def receive(self, parent: Any, message: Any, tries: int = 1) -> None:
        """Tells one end, now or after a pause."""
        if message.acknowledged:
            return
        try:
            tell(parent, message)
        except Exception as error:
            self._try_later(parent, message, tries, error)
        else:
            self.waiting.discard(message)
            message.ack()

    def _try_later(self, parent: Any, message: Any, tries: int, error: Exception) -> None:
        if tries >= TRIES:
            self.waiting.discard(message)
            logger.exception('the end of a task cannot be told and is given up: %r', error)
            message.settle(Verdict.FAIL, describe('failed', error, ENDS, ExceptionInfo().traceback))
            return
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        logger.warning('the end of a task cannot be told, again in %.1f s: %r', pause, error)
        self.waiting.add(message)
        parent.timer.call_after(pause, self.receive, (parent, message, tries + 1))


def tell(consumer: Any, message: Any) -> None:
    """Tells everybody who waits for the result of a job."""
    line, _, sealed = message.body.partition(b'\n')
    end = json.loads(line.decode(errors='replace'))
    try:
        report = Report(consumer.app, _message(end, sealed, consumer.app))
    except ValueError:
        return  # no task, so nobody waits
    if report.has_succeeded():
        report.complete()
        return
    if end['outcome'] == 'canceled':
        _tell_cancel(consumer, report, end['reason'])
    else:
        _tell_failure(consumer, report, end['reason'])
        _count_failure(consumer, end, report.request.task)


def _message(end: dict[str, Any], sealed: bytes, app: Any) -> Message:
    raw = open_envelope(sealed, end['queue'], '', 0)
    return Message(
        body=raw['body'], content_type=raw['content-type'],
        content_encoding=raw['content-encoding'], headers=raw['headers'],
        properties=raw['properties'], accept=prepare_accept_content(app.conf.accept_content),
    )  # fmt: skip


def _tell_failure(consumer: Any, report: Report, reason: str) -> None:
    kind, text = _ERRORS.get(reason, (WorkerLostError, f'the job has ended: {reason}'))
    request, error = report.request, kind(text)
    logger.error('Task %s[%s] has failed: %s', request.task, request.id, text)
    report.write(error)
    if report.task is not None:
        einfo = _info(error)
        signals.task_failure.send(
            sender=report.task, task_id=request.id, exception=error, args=request.args,
            kwargs=request.kwargs, traceback=einfo.traceback, einfo=einfo,
        )  # fmt: skip
    _event(consumer, 'task-failed', request.id, exception=safe_repr(error), traceback='')


def _count_failure(consumer: Any, end: dict[str, Any], task: str) -> None:
    recorder = recorder_of(consumer.app)
    if recorder is not None:
        lost = end['reason'] == 'lost'  # else it was counted by him who got it next
        recorder.happened(end['queue'], task, *(('failed', 'stalled') if lost else ('failed',)))


def _tell_cancel(consumer: Any, report: Report, reason: str) -> None:
    request = report.request
    logger.info('Task %s[%s] was canceled: %s', request.task, request.id, reason or 'revoked')
    report.write(TaskRevokedError(reason or 'revoked'), states.REVOKED)
    if report.task is not None:
        signals.task_revoked.send(
            sender=report.task, request=request, terminated=False, signum=None, expired=False
        )
    _event(consumer, 'task-revoked', request.id, terminated=False, signum=None, expired=False)


def _info(error: Exception) -> ExceptionInfo:
    try:
        raise error
    except Exception:
        return ExceptionInfo()


def _event(consumer: Any, type_: str, uuid: str, **fields: Any) -> None:
    dispatcher = consumer.event_dispatcher
    if dispatcher is not None and dispatcher.enabled:
        dispatcher.send(type_, uuid=uuid, **fields)
