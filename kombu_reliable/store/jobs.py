"""Jobs, dead letters and queues as somebody who operates them sees them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from kombu_reliable.envelope import pack_id
from kombu_reliable.errors import HasDependents, UnknownQueue
from kombu_reliable.scripts import Call, translating
from kombu_reliable.store import checks
from kombu_reliable.store.info import Group, JobInfo, JobState, read_jobs
from kombu_reliable.store.job_operations import JOBS_LIMIT, JobOperations
from kombu_reliable.store.refusals import TAKEN, Target, duplicate, name, unknown, wrong_state
from kombu_reliable.types import QueueCounts

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Jobs', 'Target')

Progress = Callable[[int], None]

#: States in which a job waits for nothing any more.
ENDED = ('failed', 'completed')

#: Longer lists are read in several steps, so that no command holds the server up.
STEP = 500

#: Dead letters that one call replays or discards; a hundred would take it 4 ms.
GROUP_STEP = 50


class Jobs:
    """Looks at jobs and queues and acts on them.

    Every action is one atomic step on the server.  It raises :class:`.UnknownJob` for an id
    under which no job lives and :class:`.WrongState` where it makes no sense, and then has
    changed nothing.

    Args:
        store: where they live.

    Example:
        >>> store.jobs.cancel('3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b')
        'gone'
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys
        self._client: Any = store.client
        self.operations = JobOperations(store.operations)

    # -- looking at jobs ---------------------------------------------------------

    def get(self, task_id: str) -> JobInfo | None:
        """The newest job under an id that has not ended, or else the newest one that has: a dead
        letter, or a completed job that is kept."""
        return next(iter(self.all(task_id)), None)

    def all(self, task_id: str) -> list[JobInfo]:
        """All jobs under an id: first those that have not ended, each time the newest first."""
        return sorted(self.look(self._keys_of(task_id)), key=_newest_first)

    def in_state(
        self, queue: str, state: JobState, offset: int = 0, limit: int = 100
    ) -> list[JobInfo]:
        """A page of the jobs of a queue.

        Ready and throttled ones come in the order in which they will be claimed, as far as their
        throttles let them, delayed and waiting ones by due time, leased ones by the end of their
        lease, dead letters from the newest, completed ones from the one that is kept longest.

        Args:
            queue: its name.
            state: one of ``delayed``, ``waiting``, ``ready``, ``throttled``, ``leased``,
                ``failed``, ``completed``.
            offset: how many to pass over.
            limit: how many to return.  There may be fewer: some may have gone meanwhile.
        """
        checks.page(offset, limit)
        key = self._place(queue, state)
        spots = self._members(key, offset, limit, newest_first=state in ENDED)
        found = self.look([job for job, _ in spots])
        return [job for job in found if (job.queue, job.state) == (queue, state)]

    def counts(self, queue: str) -> QueueCounts:
        """How many jobs a queue holds, by state, and whether it is paused."""
        return self._store.counts(queue)

    # -- acting on jobs ----------------------------------------------------------

    def cancel(
        self, target: Target, reason: str = '', *, cascade: bool = False, spare: bool = False
    ) -> Literal['gone', 'requested', 'unknown']:
        """Ends all jobs under an id that have not ended; or one job.

        Args:
            target: a task id, or a job.
            reason: told to those who wait for its result.
            cascade: also if other jobs wait for it: they fail, or run if they do not mind.
            spare: a job that somebody holds is left to him, and he may settle it; but if he
                gives it back, loses it, or publishes its next run, it ends.

        Returns:
            ``'gone'``: none of them will ever start.  ``'requested'``: somebody holds one; it
            was taken from him, cannot be settled and is gone from the server, but may have
            begun.  ``'unknown'``: there was nothing to cancel.

        Raises:
            HasDependents: other jobs wait for it.
            WrongState: it is a dead letter, or has completed and is kept.
        """
        jobs = [target.key] if isinstance(target, JobInfo) else self._keys_of(target)
        statuses: set[str] = set()
        for step in _steps(jobs):
            statuses.update(self._run(self.operations.cancel(step, reason, cascade, spare)))
        if 'dependents' in statuses:
            raise HasDependents(
                f'other jobs wait for {name(target)} and would fail with it; '
                'cancel them first, or all at once with cascade=True'
            )
        if 'requested' in statuses:
            return 'requested'
        if 'gone' in statuses:
            return 'gone'
        for state in ENDED:
            if state in statuses:
                raise wrong_state(target, state, 'cancel')
        return 'unknown'

    def move(self, target: Target, queue: str) -> None:
        """Puts a job that nobody holds into another queue, in its state, at its place.

        Raises:
            UnknownQueue: the queue was deleted.
        """
        self._act(target, 'move', lambda job: self.operations.move([job], queue))

    def set_priority(self, target: Target, priority: int) -> None:
        """Gives a job that nobody holds another priority, from 0 to 255."""
        self._act(target, 'set_priority', lambda job: self.operations.set_priority([job], priority))

    def reschedule(self, target: Target, when: float) -> None:
        """Gives a job that nobody holds another due time.

        Args:
            target: a task id, or a job.
            when: milliseconds since the epoch; what is past means now.
        """
        due = checks.moment(when)
        self._act(target, 'reschedule', lambda job: self.operations.reschedule([job], due))

    def replay(self, target: Target) -> None:
        """Makes a dead letter ready again, with fresh deliveries.

        Raises:
            DuplicateJob: another job has its unique key by now.
        """
        self._act(target, 'replay', lambda job: self.operations.replay([job]), failed=True)

    def discard(self, target: Target) -> None:
        """Deletes a dead letter, or a completed job that is kept."""
        self._act(target, 'discard', lambda job: self.operations.discard([job]), failed=True)

    # -- dead letters ------------------------------------------------------------

    def failed(
        self,
        queue: str | None = None,
        group: str | None = None,
        offset: int = 0,
        limit: int = 100,
    ) -> list[JobInfo]:
        """A page of the dead letters, the newest first.

        Args:
            queue: only those of this queue.
            group: only those of this group.
            offset: how many to pass over.
            limit: how many to return.
        """
        checks.page(offset, limit)
        if group is None and queue is not None:
            return self.in_state(queue, 'failed', offset, limit)
        if group is not None and queue is None:
            dead = self._members(self._keys.group(group), offset, limit, newest_first=True)
            page = [job for job, _ in dead]
        else:
            found = self._all_dead() if group is None else self._dead_of(group, queue or '')
            page = list(itertools.islice(found, offset, offset + limit))
        return [job for job in self.look(page) if job.state == 'failed']

    def groups(self, offset: int = 0, limit: int = 100) -> list[Group]:
        """A page of the groups of dead letters; that of the last death comes first."""
        checks.page(offset, limit)
        found = self._members(self._keys.groups, offset, limit, newest_first=True)
        with translating(), self._client.pipeline(transaction=False) as pipe:
            for name, _ in found:
                pipe.zcard(self._keys.group(name))
            sizes = pipe.execute()
        return [
            Group(name, size, int(last))
            for (name, last), size in zip(found, sizes, strict=True)
            if size
        ]

    def replay_group(self, group: str, progress: Progress | None = None) -> int:
        """Replays the dead letters of a group that are there now.

        Args:
            group: its name.
            progress: called with the number replayed so far after each bounded step.

        Returns:
            How many were replayed.
        """
        return self._end_group(group, self.operations.replay, progress)

    def discard_group(self, group: str, progress: Progress | None = None) -> int:
        """Deletes the dead letters of a group that are there now; see :meth:`replay_group`."""
        return self._end_group(group, self.operations.discard, progress)

    # -- queues ------------------------------------------------------------------

    def queues(self) -> list[str]:
        """All queues that were declared, are paused or hold something, consumed or not."""
        return self._store.known_queues()

    def pause(self, queue: str) -> bool:
        """Lets no worker take anything from a queue any more, until :meth:`resume`.

        What was taken goes on.  Returns False if the queue was paused before.
        """
        checks.queue_name(queue)
        return bool(self._run(self.operations.pause(queue, True)))

    def resume(self, queue: str) -> bool:
        """Lets a paused queue go on.  Returns False if it was not paused."""
        return bool(self._run(self.operations.pause(queue, False)))

    def paused(self) -> list[str]:
        """The names of the paused queues."""
        with translating():
            return sorted(name.decode() for name in self._client.smembers(self._keys.paused))

    def purge(
        self,
        queue: str,
        states: Iterable[str] = ('ready', 'throttled', 'delayed', 'waiting'),
        progress: Progress | None = None,
    ) -> int:
        """Deletes the jobs of a queue by state, without a word to those who wait for results.

        Args:
            queue: its name.
            states: any of ``ready``, ``throttled``, ``delayed``, ``waiting``, ``failed``,
                ``completed``.
            progress: called with the number deleted so far after each bounded step.

        Returns:
            How many were deleted.
        """
        total = 0
        for state in checks.purgeable(states):
            while deleted := self._run(self.operations.empty(queue, state)):
                total += deleted
                if progress is not None:
                    progress(total)
        return total

    # -- how ---------------------------------------------------------------------

    def _run(self, call: Call[Any]) -> Any:
        return self._store.run(call)

    def _keys_of(self, task_id: str) -> list[str]:
        """The keys under which jobs of an id may live."""
        key = pack_id(task_id)
        with translating():
            twins = [twin.decode() for twin in self._client.sscan_iter(self._keys.twins(key))]
        return [key, *twins]

    def look(self, jobs: Sequence[str]) -> list[JobInfo]:
        """What is known about jobs, in their order, without those that are gone."""
        found: list[JobInfo | None] = []
        for step in _steps(jobs):
            reply = self._run(self.operations.inspect(step))
            found += read_jobs(reply, step, self._store.envelopes(step))
        rank = self._store.operations.options.rank  # which also turns a rank into a priority
        return [replace(job, priority=rank(job.priority)) for job in found if job is not None]

    def _place(self, queue: str, state: str) -> str:
        keys = self._keys
        spell = {
            'delayed': keys.delayed, 'waiting': keys.waiting, 'ready': keys.ready,
            'throttled': keys.throttled, 'leased': keys.leased, 'failed': keys.dead,
            'completed': keys.completed,
        }  # fmt: skip
        return spell[checks.state(state)](queue)

    def _members(
        self, key: str, offset: int, limit: int, newest_first: bool = False
    ) -> list[tuple[str, float]]:
        """A part of a sorted set, read in steps."""
        found: list[tuple[bytes, float]] = []
        for at in range(offset, offset + limit, STEP):
            last = min(at + STEP, offset + limit) - 1
            with translating():
                part = self._client.zrange(key, at, last, desc=newest_first, withscores=True)
            found += part
            if len(part) < last - at + 1:
                break
        return [(member.decode(errors='replace'), score) for member, score in found]

    def _pick(self, target: Target, failed: bool) -> str:
        """The key of the job that is meant by an id."""
        if isinstance(target, JobInfo):
            return target.key
        jobs = self.all(target)
        if not jobs:
            raise unknown(target)
        return next((job for job in jobs if (job.state == 'failed') == failed), jobs[0]).key

    def _act(
        self,
        target: Target,
        action: str,
        call: Callable[[str], Call[tuple[str, ...]]],
        failed: bool = False,
    ) -> None:
        status = self._run(call(self._pick(target, failed)))[0]
        if status == 'unknown':
            raise unknown(target)
        if status == 'no-queue':
            raise UnknownQueue('the queue was deleted; declare it again before moving jobs there')
        if status.startswith(TAKEN):
            raise duplicate(target, status.removeprefix(TAKEN))
        if status != 'done':
            raise wrong_state(target, status, action)

    def _end_group(
        self,
        group: str,
        operation: Callable[[Sequence[str], str], Call[tuple[str, ...]]],
        progress: Progress | None,
    ) -> int:
        # What is replayed may fail again before this has ended.
        until = self._store.now()
        key = self._keys.group(group)
        total = stay = 0
        while found := self._client.zrangebyscore(key, '-inf', until, stay, GROUP_STEP):
            jobs = [job.decode(errors='replace') for job in found]
            statuses = self._run(operation(jobs, group))
            total += statuses.count('done')
            stay += sum(one == 'no-queue' or one.startswith(TAKEN) for one in statuses)
            if progress is not None:
                progress(total)
        return total

    def _stream(self, key: str) -> Iterator[tuple[str, float]]:
        for offset in itertools.count(0, STEP):
            part = self._members(key, offset, STEP, newest_first=True)
            yield from part
            if len(part) < STEP:
                return

    def _dead_of(self, group: str, queue: str) -> Iterator[str]:
        found = (job for job, _ in self._stream(self._keys.group(group)))
        return self._those_in(self._keys.dead(queue), found)

    def _those_in(self, key: str, jobs: Iterator[str]) -> Iterator[str]:
        while step := list(itertools.islice(jobs, STEP)):
            with self._client.pipeline(transaction=False) as pipe:
                for job in step:
                    pipe.zscore(key, job)
                scores = pipe.execute()
            yield from (job for job, score in zip(step, scores, strict=True) if score is not None)

    def _all_dead(self) -> Iterator[str]:
        streams = [self._stream(self._keys.dead(queue)) for queue in self.queues()]
        merged = heapq.merge(*streams, key=lambda member: -member[1])
        return (job for job, _ in merged)


def _steps(jobs: Sequence[str]) -> Iterator[list[str]]:
    for at in range(0, len(jobs), JOBS_LIMIT):
        yield list(jobs[at : at + JOBS_LIMIT])


def _newest_first(job: JobInfo) -> tuple[bool, int, int]:
    sequence = job.key.split('~')[1] if job.key.startswith('~') else '0'
    return job.state in ENDED, -job.published_at, -int(sequence)
