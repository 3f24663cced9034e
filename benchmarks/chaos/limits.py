"""What must not run at once: more than a throttle lets, or two with the same unique key.

Measured from the runs themselves: a task writes its start as its first act and its end as its
last, so it certainly had its slot in between, and what overlaps is never an artefact.

A run counts for as long as its worker certainly had the lease.  A pool process that outlives its
killed worker, and a worker that is frozen, go on without: their slots are given to others one
lease later.  They are counted apart, as what runs beside the others.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.chaos.explain import Course
from benchmarks.chaos.ledger import Run, Submission

__all__ = ('LIMITS', 'PACED', 'Excess', 'Pace', 'overlaps', 'rushes')

#: The throttles of the chaos: how many at once.
LIMITS = {'two at once': 2, 'three at once': 3}


@dataclass(frozen=True)
class Pace:
    """A throttle with a rate."""

    name: str
    rate: float
    burst: int

    @property
    def text(self) -> str:
        return f'{self.rate:g}/s'


PACED = Pace('ten a second', 10.0, 3)

#: A rate is checked in windows of this many seconds ...
WINDOW = 2.0
#: ... and a run may start so much later than its worker was given it, on a busy machine.
LATE = 2.0


@dataclass(frozen=True)
class Excess:
    """More at once than is allowed.

    Args:
        name: of the throttle, or the key.
        at: when.
        ids: who ran.
        allowed: how many may.
    """

    name: str
    at: float
    ids: tuple[str, ...]
    allowed: int


def overlaps(
    runs: Iterable[Run], submissions: Mapping[str, Submission], course: Course, *, leased: bool
) -> list[Excess]:
    """Each start by which there were too many.

    Args:
        runs: all of them.
        submissions: under what throttles and keys they are.
        course: what befell their workers.
        leased: count each run only as long as its worker certainly had the lease; else to its
            end.
    """
    groups: dict[tuple[str, int], list[tuple[float, float, str]]] = defaultdict(list)
    runs = [run for run in runs if run.kind in ('limited', 'single')]
    latest: dict[tuple[str, int], int] = defaultdict(int)
    for run in runs:
        latest[run.id, run.attempt] = max(latest[run.id, run.attempt], run.delivery)
    for run in runs:
        made = submissions.get(run.id)
        if made is None:
            continue
        death = course.death(run)
        end = run.end if run.end is not None else (death.begin if death else float('inf'))
        if leased:
            end = course.end(run, again=latest[run.id, run.attempt] > run.delivery)
        if end > run.start:
            if made.limit in LIMITS:
                groups[made.limit, LIMITS[made.limit]].append((run.start, end, run.id))
            if made.key:
                groups[made.key, 1].append((run.start, end, run.id))
    return [
        excess
        for (name, allowed), spans in groups.items()
        for excess in _excesses(name, allowed, spans)
    ]


def _excesses(name: str, allowed: int, spans: list[tuple[float, float, str]]) -> Iterable[Excess]:
    running: list[tuple[float, str]] = []
    for start, end, which in sorted(spans):
        running = [one for one in running if one[0] > start]
        running.append((end, which))
        if len(running) > allowed:
            yield Excess(name, start, tuple(one for _, one in running), allowed)


def rushes(
    runs: Iterable[Run], submissions: Mapping[str, Submission], course: Course
) -> list[Excess]:
    """Windows in which more started than a rate allows.

    A worker that was hindered starts late what it was given in time, so its runs do not count
    from then on for a moment.
    """
    starts = sorted(
        (run.start, run.id)
        for run in runs
        if (made := submissions.get(run.id)) is not None
        and made.limit == PACED.name
        and not _held_up(run, course)
    )
    times = [at for at, _ in starts]
    allowed = int(PACED.rate * (WINDOW + LATE) + PACED.burst)
    found: list[Excess] = []
    for first, at in enumerate(times):
        last = bisect.bisect_right(times, at + WINDOW)
        if last - first > allowed and not (found and at <= found[-1].at + WINDOW):
            ids = tuple(name for _, name in starts[first:last])
            found.append(Excess(PACED.name, at, ids, allowed))
    return found


def _held_up(run: Run, course: Course) -> bool:
    return any(
        one.begin <= run.start <= one.end + LATE for one in course.hindrances(run.worker)
    )  # fmt: skip
