"""A task as a thing that one can look at and act on: before, while and after it runs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from celery_ext.dependencies import normalize
from celery_ext.moments import due_time, moment
from celery_ext.options import DEPENDS_ON, POLICY
from kombu_reliable import (
    InvalidArgument,
    JobInfo,
    UnknownJob,
    WrongState,
    open_job,
    pack_id,
    take_dependencies,
)

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('Canceled', 'Dependencies', 'Event', 'Failure', 'Job', 'State', 'task_id')

State = Literal['delayed', 'waiting', 'ready', 'throttled', 'leased', 'failed', 'completed']
Canceled = Literal['gone', 'requested', 'unknown']


def task_id(which: Any) -> str:
    """The id of a task, given as text, as a result or as a job."""
    return str(getattr(which, 'id', which))


class Event(NamedTuple):
    """Something that happened to a job, or that its task has logged.

    Args:
        at: when.
        event: ``requeued``, ``lost``, ``moved``, ``replayed``, ``retried``, ``failed`` ...; of
            jobs that are tagged, tracked or kept also ``put``, ``popped`` (by the worker in
            ``detail``) and ``completed``; ``log`` for what its task has told.
        detail: who, where or why; what was logged; may be empty.
        data: what was logged with it.
    """

    at: datetime
    event: str
    detail: str = ''
    data: Any = None


class Failure(NamedTuple):
    """Why a job is a dead letter.

    Args:
        reason: ``error``, ``rejected``, ``delivery-limit``, ``lost``, ``dependency`` ...
        type: name of the exception; ``''`` if there was none.
        message: what it said.
        traceback: as text, cut to a few kB.
        group: what it is listed under, usually the name of the task.
        at: when it died.
    """

    reason: str
    type: str
    message: str
    traceback: str
    group: str
    at: datetime

    def __str__(self) -> str:
        return f'{self.type}: {self.message}' if self.type else self.message or self.reason


class Dependencies(Sequence[str]):
    """The ids of the tasks that a job still waits for, the first hundred of them.

    Example:
        >>> job = ext.jobs[invoice.id]
        >>> list(job.depends_on)
        ['3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b']
        >>> job.depends_on.add(audit)
        >>> job.depends_on.remove(payment)
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: Any) -> Any:
        return self._job.info.depends_on[index]

    def __len__(self) -> int:
        return len(self._job.info.depends_on)

    @property
    def total(self) -> int:
        """How many there are in all."""
        return self._job.info.dependencies

    def add(self, *others: Any) -> None:
        """Makes a job that waits wait for others as well.

        Args:
            others: what ``depends_on`` takes.

        Raises:
            DependencyCycle: one of them waits for this job.
            WrongState: it does not wait.
        """
        job = self._job.info
        headers = {DEPENDS_ON: normalize(others), POLICY: job.policy or None}
        wanted = take_dependencies(headers, job.key)
        if wanted is not None and not self._job.extension.store.edges.add(job.key, wanted):
            state = self._job.refresh().state
            raise WrongState(
                f'task {job.id} is {state} and waits for nothing: only a job that waits can be '
                f'made to wait for more', state,
            )  # fmt: skip
        self._job.refresh()

    def remove(self, *others: Any) -> None:
        """Lets a job no longer wait for others; it starts if nothing else is left to wait for."""
        ids = [one if isinstance(one, str) else one['id'] for one in normalize(others)]
        self._job.extension.store.edges.remove(self._job.info.key, [pack_id(one) for one in ids])
        self._job.acted()

    def __repr__(self) -> str:
        return repr(list(self))


class Job:
    """A task as it was when it was looked at; :meth:`refresh` looks again.

    Actions are single atomic steps on the server.  They raise :class:`.UnknownJob` if the job
    has ended meanwhile and :class:`.WrongState` where they make no sense, and then have changed
    nothing.

    Example:
        >>> job = ext.jobs[result.id]
        >>> job.state, job.queue, job.priority
        ('ready', 'mail', 0)
        >>> job.move('mail-slow')
    """

    def __init__(self, extension: Extension, info: JobInfo) -> None:
        self.extension = extension
        #: All that the store knows, with times in milliseconds since the epoch.
        self.info = info

    @property
    def store(self) -> Any:
        return self.extension.store.jobs

    @property
    def id(self) -> str:
        """Celery's task id."""
        return self.info.id

    @property
    def queue(self) -> str:
        """The name of its queue."""
        return self.info.queue

    @property
    def state(self) -> State:
        """``delayed``, ``waiting`` (for other jobs), ``ready``, ``throttled`` (in the line of its
        throttles, or for its turn), ``leased`` (by a worker), ``failed``, or ``completed`` and kept
        for a while."""
        return self.info.state

    @property
    def priority(self) -> int:
        """0-255, as its publisher gave it."""
        return self.info.priority

    @property
    def published_at(self) -> datetime:
        """When it was published, or retried last."""
        return datetime.fromtimestamp(self.info.published_at / 1000, UTC)

    @property
    def due(self) -> datetime | None:
        """Not started before; None if it may start at once."""
        return moment(self.info.due)

    @property
    def deliveries(self) -> int:
        """How often this run was handed to a worker, including now."""
        return self.info.deliveries

    @property
    def worker(self) -> str | None:
        """Who holds it: ``<host>:<process id of the worker>:<random>``."""
        return self.info.worker

    @property
    def lease_expires_at(self) -> datetime | None:
        """When somebody else gets it unless its worker is heard of before."""
        return moment(self.info.lease_expires_at)

    @property
    def depends_on(self) -> Dependencies:
        """What it still waits for."""
        return Dependencies(self)

    @property
    def dependents(self) -> tuple[str, ...]:
        """The ids of the tasks that wait for it, the first hundred."""
        return self.info.dependents

    @property
    def dependency_policy(self) -> str | None:
        """What becomes of it if a dependency fails; None if it has none."""
        return self.info.policy or None

    @property
    def throttles(self) -> tuple[str, ...]:
        """The names of the throttles that it waits for, or has slots of."""
        return self.info.throttles

    @property
    def failure(self) -> Failure | None:
        """Why it is a dead letter, if it is one."""
        told = self.info.failure
        if told is None:
            return None
        at = datetime.fromtimestamp(told.at / 1000, UTC)
        return Failure(told.reason, told.type, told.message, told.traceback, told.group, at)

    @property
    def history(self) -> list[Event]:
        """What happened to it, the oldest first; one that simply succeeds has none, unless it is
        tagged, tracked or kept."""
        return [
            Event(datetime.fromtimestamp(event.at / 1000, UTC), *event[1:])
            for event in self.info.history
        ]

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags."""
        return self.info.tags

    @property
    def tracked(self) -> bool:
        """Whether it tells what befalls it, see ``ext.events``."""
        return self.info.tracked

    @property
    def progress(self) -> float | None:
        """How far it is, from 0 to 1, as its task has said last; None if it says nothing."""
        return self.info.progress

    @property
    def completed_at(self) -> datetime | None:
        """When it succeeded; None unless it is kept as completed."""
        return moment(self.info.completed_at)

    @cached_property
    def headers(self) -> dict[str, Any]:
        """The headers of its message."""
        return dict(open_job(self.info)['headers'])

    @property
    def task(self) -> str:
        """The name of the task; ``''`` if the message is none of Celery's, or damaged."""
        return self._header('task')

    @property
    def args(self) -> str:
        """Its positional arguments as its publisher printed them."""
        return self._header('argsrepr')

    @property
    def kwargs(self) -> str:
        """Its keyword arguments as its publisher printed them."""
        return self._header('kwargsrepr')

    def _header(self, name: str) -> str:
        try:
            return str(self.headers.get(name) or '')
        except Exception:  # foreign data may stand in the place of the message
            return ''

    @property
    def result(self) -> Any:
        """Its :class:`~celery.result.AsyncResult`."""
        return self.extension.app.AsyncResult(self.id)

    def refresh(self) -> Job:
        """Looks again.

        Raises:
            UnknownJob: it has ended.
        """
        found = {info.key: info for info in self.store.all(self.id)}
        if self.info.key not in found:
            raise UnknownJob(f'task {self.id} has ended since it was looked at')
        self.info = found[self.info.key]
        self.__dict__.pop('headers', None)
        return self

    def cancel(
        self, terminate: bool = False, *, cascade: bool = False, signal: str = 'TERM'
    ) -> Canceled:
        """Ends the job without a run; see :meth:`Jobs.cancel`."""
        return self.extension.jobs.cancel(
            self.id, terminate=terminate, cascade=cascade, signal=signal
        )

    def retry(self) -> Job:
        """Lets a dead letter run once more, with as many deliveries as a new job has."""
        return self.acted(self.store.replay(self.info))

    def discard(self) -> None:
        """Deletes a dead letter, or a completed job that is kept."""
        self.store.discard(self.info)

    def move(self, queue: str) -> Job:
        """Puts it into another queue, in the state it is in, at its place."""
        return self.acted(self.store.move(self.info, queue))

    def set_priority(self, priority: int) -> Job:
        """Gives it another priority, 0-255."""
        return self.acted(self.store.set_priority(self.info, priority))

    def reschedule(
        self, when: datetime | None = None, *, countdown: float | timedelta | None = None
    ) -> Job:
        """Gives it another due time.

        Args:
            when: the time, with a time zone, or in that of the app.
            countdown: seconds from now instead; 0 for at once.
        """
        due = due_time(self.extension.app, when, countdown)
        return self.acted(self.store.reschedule(self.info, due))

    def tag(self, *tags: str) -> Job:
        """Gives it tags, besides those that it has.

        Raises:
            InvalidArgument: it would have too many.
        """
        self._marked(self._tags.add([self.info.key], tags))
        return self.acted()

    def untag(self, *tags: str) -> Job:
        """Takes tags from it."""
        self._marked(self._tags.remove([self.info.key], tags))
        return self.acted()

    def track(self) -> Job:
        """Has it tell from now on what befalls it."""
        self._marked(self._tags.track([self.info.key], self.task))
        return self.acted()

    def untrack(self) -> Job:
        """Has it tell nothing any more."""
        self._marked(self._tags.untrack([self.info.key]))
        return self.acted()

    @property
    def _tags(self) -> Any:
        return self.extension.store.tags

    def _marked(self, statuses: Sequence[str]) -> None:
        if statuses[0] == 'unknown':
            raise UnknownJob(f'task {self.id} has ended since it was looked at')
        if statuses[0] == 'too-many':
            raise InvalidArgument(f'task {self.id} would have too many tags; it keeps its own')

    def acted(self, _: None = None) -> Job:
        """Looks again after an action."""
        # Another worker may have taken and finished it by now: that is no error of this action.
        try:
            return self.refresh()
        except UnknownJob:
            return self

    def __repr__(self) -> str:
        return f'<Job {self.id} {self.task} {self.state} in {self.queue}>'
