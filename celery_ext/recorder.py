"""A worker counts what becomes of tasks, and says that it is there.

What happens to a task is one append here.  A thread adds it up, and hands it over to the server
about once a second if there is anything to hand over, and when the worker ends.  The same thread
gives a sign of life, twice in three leases at the least.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import redis.exceptions
from celery import bootsteps, signals

from kombu_reliable import Counting, ReliableError

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('KeepRecord', 'Recorder', 'connect', 'recorder_of')

logger = logging.getLogger('celery_ext')

#: Seconds for which counts are collected before they are handed over.
FLUSH = 1.0

#: How much of a lease passes between two signs of life, and for how many leases one is believed.
BEAT, BELIEVED = 2 / 3, 1.5

#: How often a lasting failure is repeated in the log, in seconds.
REPEAT_WARNING = 30.0

_FAILURES = (redis.exceptions.RedisError, OSError, ReliableError)


class Recorder:
    """Counts for one app in one worker process.

    Args:
        extension: of the app.
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension
        self._pid = os.getpid()
        #: ``(queue, task, seconds waited, seconds run, counters that go up)``.
        self._events: deque[tuple[str, str, float | None, float | None, tuple[str, ...]]] = deque()
        self._counting = Counting()
        self._consumer: Any = None
        self._name = ''
        self._began = time.monotonic()
        self._next_beat = 0.0
        self._next_warning = 0.0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    # -- what happens ------------------------------------------------------------

    def started(self, request: Any, at: float) -> None:
        """A task begins.

        Args:
            request: Celery's.
            at: when, on the monotonic clock.
        """
        message = request.message
        message.started_at = at
        origin = message.origin
        if origin is not None:
            fate = ('stalled',) if origin.lost else ()
            self._add(origin.queue, request.task.name, message.waited(at), None, fate)

    def ended(self, request: Any, runtime: float | None, fate: str) -> None:
        """A run has ended.

        Args:
            request: Celery's.
            runtime: how long it ran, in seconds, as measured where it ran; if nobody could, it
                counts from its start until now.
            fate: which counter goes up, if any.
        """
        message = request.message
        if message.origin is None:
            return
        if runtime is None and hasattr(message, 'started_at'):
            runtime = time.monotonic() - message.started_at
        self._add(message.origin.queue, request.task.name, None, runtime, (fate,) if fate else ())

    def happened(self, queue: str, task: str, *what: str) -> None:
        """Something that no run has told."""
        self._add(queue, task, None, None, what)

    def _add(self, *event: Any) -> None:
        self._events.append(event)
        if not self._wake.is_set():
            self._wake.set()

    # -- the thread --------------------------------------------------------------

    def start(self, consumer: Any) -> None:
        """The worker consumes, perhaps again."""
        self._consumer = consumer
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._stopping = False
                self._next_beat = 0.0
                self._thread = threading.Thread(
                    target=self._run, name='celery-ext-recorder', daemon=True
                )
                self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            self._do(self._beat_if_due)
            if self._wake.wait(max(0.0, self._next_beat - time.monotonic())):
                time.sleep(FLUSH)
                if self._stopping:
                    return
                self._wake.clear()
                self._do(self.flush)

    def _do(self, step: Any) -> None:
        """The thread must outlive whatever goes wrong in it."""
        try:
            step()
        except _FAILURES as error:
            self._complain(error)
        except Exception:
            logger.exception('unexpected error while counting')
            time.sleep(FLUSH)

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if now >= self._next_warning:
            self._next_warning = now + REPEAT_WARNING
            logger.warning('statistics wait, they cannot be handed over: %s', error)
        time.sleep(FLUSH)
        if self._counting:
            self._wake.set()

    def flush(self) -> None:
        """Hands over what was counted so far; what fails is tried again by the next call."""
        with self._lock:
            self._add_up()
            if self._counting:
                self._counting.hand_over(self._extension.store)

    def _add_up(self) -> None:
        counting, events = self._counting, self._events
        while events:
            queue, task, waited, ran, what = events.popleft()
            if waited is not None:
                counting.waited(queue, task, waited)
            if ran is not None:
                counting.ran(queue, task, ran)
            for name in what:
                counting.happened(queue, task, name)

    def _beat_if_due(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        store = self._extension.store
        lease = store.operations.options.lease
        self._next_beat = time.monotonic() + BEAT * lease
        about = _about(self._consumer)
        name = about.pop('consumer')
        if name:
            if self._name not in ('', name):
                store.presence.leave(self._name)
            self._name = name
            age = time.monotonic() - self._began
            store.presence.beat(name, BELIEVED * lease, age, {**about, 'lease': lease})

    def finish(self) -> None:
        """The worker ends: hands over what is left, and says so."""
        if self._pid != os.getpid():
            return  # a child of the worker
        self._stopping = True
        self._wake.set()
        try:
            self.flush()
            if self._name:
                self._extension.store.presence.leave(self._name)
                self._name = ''
        except _FAILURES as error:
            logger.warning('the last statistics of this worker are lost: %s', error)


def _about(consumer: Any) -> dict[str, Any]:
    """What others may want to know of this worker."""
    transport = getattr(getattr(consumer, 'connection', None), 'transport', None)
    task_consumer = getattr(consumer, 'task_consumer', None)
    queues = [queue.name for queue in getattr(task_consumer, 'queues', ())]
    return {
        'consumer': getattr(transport, 'consumer_name', ''),
        'name': consumer.hostname,
        'pid': os.getpid(),
        'queues': queues[:100],
        'slots': getattr(consumer.pool, 'num_processes', None),
    }


def recorder_of(app: Any) -> Recorder | None:
    """That of an app in a worker of this process, if it counts."""
    extension = app.__dict__.get('celery_ext')
    if extension is None or not extension.counts:
        return None
    return _recorder(extension)


def _recorder(extension: Extension) -> Recorder:
    found: Recorder | None = extension.__dict__.get('recorder')
    if found is None:
        found = extension.__dict__['recorder'] = Recorder(extension)
    return found


class KeepRecord(bootsteps.StartStopStep):
    """A step of Celery's consumer: has the worker give signs of life and hand over its counts."""

    requires = ('celery.worker.consumer:Tasks',)

    def start(self, parent: Any) -> None:
        """Begins, if the worker's messages come over our transport."""
        if parent.connection.transport.driver_name == 'kombu_reliable':
            _recorder(parent.app.celery_ext).start(parent)


def _finish(sender: Any, **_: Any) -> None:
    extension = sender.app.__dict__.get('celery_ext')
    if extension is not None and 'recorder' in extension.__dict__:
        extension.__dict__['recorder'].finish()


def connect(app: Any) -> None:
    """Has the workers of an app keep a record; idempotent."""
    app.steps['consumer'].add(KeepRecord)
    signals.worker_shutdown.connect(_finish, weak=False, dispatch_uid='celery_ext.recorder')
