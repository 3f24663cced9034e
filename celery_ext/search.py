"""Finds jobs by state, queue, task and tags, page by page, however many there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, get_args

from celery_ext.job import Job, State
from kombu_reliable import InvalidArgument, JobInfo, QueueCounts

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('LOOKS', 'ORDER', 'Found', 'search')

#: Jobs that one page looks at, if some have to be looked at that are not shown.
LOOKS = 1_000

#: In which order the states are gone through; what has completed needs nobody.
ORDER: tuple[State, ...] = ('leased', 'ready', 'throttled', 'delayed', 'waiting', 'failed')


@dataclass(frozen=True, slots=True)
class Found:
    """A page of the jobs that were asked for.

    Args:
        jobs: those.  There may be few, or none, although more follow: see ``next``.
        next: where to go on: ``after=found.next``; ``''`` if all were gone through.
        total: how many there are to go through, which is how many there are unless a task was
            asked for, or a state or queue together with tags; None if nobody has counted them.
        looked: how many were gone through for this page.
    """

    jobs: list[Job]
    next: str
    total: int | None
    looked: int


@dataclass(frozen=True, slots=True)
class _Part:
    """What one step has read: jobs, how many places it went on, and where it stopped."""

    infos: list[JobInfo]
    passed: int
    after: str
    exhausted: bool = False


Read = Callable[[str, int], _Part]


def search(
    extension: Extension,
    state: State | None = None,
    queue: str | None = None,
    task: str | None = None,
    tags: Sequence[str] = (),
    after: str = '',
    limit: int = 100,
    within: float = float('inf'),
) -> Found:
    """See :meth:`celery_ext.jobs.Jobs.search`."""
    until = time.monotonic() + within
    _check(state, limit)
    if tags:
        read, total = _tagged(extension, tags, state, queue)
    else:
        read, total = _listed(extension, state, queue)
    jobs: list[Job] = []
    looked = 0
    while len(jobs) < limit and looked < LOOKS:
        part = read(after, min(limit - len(jobs), LOOKS - looked))
        looked, after = looked + part.passed, part.after
        found = (Job(extension, info) for info in part.infos)
        jobs += [job for job in found if task is None or _matches(job.task, task)]
        if not after or part.exhausted or time.monotonic() > until:
            break
    return Found(jobs, after, total, looked)


def _check(state: Any, limit: Any) -> None:
    if state not in (None, *get_args(State)):
        raise InvalidArgument(f'there is no state {state!r:.100}')
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise InvalidArgument(f'limit {limit!r:.100} is not a whole number from 0 on')


def _matches(name: str, task: str) -> bool:
    return fnmatchcase(name, task) if '*' in task else name == task


# -- by tag ----------------------------------------------------------------------


def _tagged(
    extension: Extension, tags: Sequence[str], state: State | None, queue: str | None
) -> tuple[Read, int | None]:
    store = extension.store

    def read(after: str, limit: int) -> _Part:
        found = store.tags.find(tags, limit=limit, after=after)
        infos = [
            info
            for info in store.jobs.look(found.keys)
            if state in (None, info.state) and queue in (None, info.queue)
        ]
        # A short part has looked at as many as one call may.
        return _Part(infos, len(found.keys), found.next, len(found.keys) < limit)

    return read, store.tags.count(tags[0]) if len(tags) == 1 else None


# -- by state and queue ----------------------------------------------------------


def _listed(extension: Extension, state: State | None, queue: str | None) -> tuple[Read, int]:
    """Queue after queue and state after state, as one long list."""
    jobs = extension.store.jobs
    spots = _spots(extension, (state,) if state else ORDER, queue)
    total = sum(count for *_, count in spots)

    def read(after: str, limit: int) -> _Part:
        offset = _offset(after)
        begin = 0
        for name, held_in, count in spots:
            if offset < begin + count:
                step = min(limit, begin + count - offset)
                infos = jobs.in_state(name, held_in, offset - begin, step)
                end = offset + step
                return _Part(infos, step, str(end) if end < total else '')
            begin += count
        return _Part([], 0, '')

    return read, total


def _offset(after: str) -> int:
    if after and not (after.isascii() and after.isdigit() and len(after) < 16):
        raise InvalidArgument(f'{after!r:.100} is no place to go on at')
    return int(after or 0)


def _spots(
    extension: Extension, states: Sequence[State], queue: str | None
) -> list[tuple[str, State, int]]:
    """Queues and states that hold jobs, and how many, state by state."""
    names = extension.queues.names() if queue is None else [queue]
    counts: dict[str, QueueCounts]
    if states == ('completed',):  # of which the overview knows nothing
        counts = {name: extension.store.jobs.counts(name) for name in names}
    else:
        figures = extension.store.overview(names).queues
        counts = {name: figures[name].counts for name in names}
    found = ((name, state, _held(counts[name], state)) for state in states for name in names)
    return [spot for spot in found if spot[2]]


def _held(counts: Any, state: State) -> int:
    return int(getattr(counts, 'dead' if state == 'failed' else state))
