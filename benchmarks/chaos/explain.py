"""Why a task ran twice: what befell the worker that had it first.

A worker loses a task in one of these ways, and in no other:

- its process, or the process of the pool that ran the task, was ended while the task ran, or
  between its end and the moment at which the server knew of it;
- it could not renew its lease in time, because it was frozen or cut off;
- the server forgot what it had been told last, as it may without ``appendfsync always``.

Besides, a run gives its task back if it is to be retried and the server is away; see
:mod:`.verdict`.

Outages of the server are no reason, however long: nobody could have taken the task meanwhile.
Nor are lost connections, lost replies, shutdowns in order, a full memory or a wrong clock.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator

from benchmarks.chaos.kinds import ALONE, FATAL, OUTAGES, Kind
from benchmarks.chaos.ledger import EVERYBODY, Run, Trouble

__all__ = ('SETTLING', 'Course')

#: For so long after its end a task may not be settled yet, in seconds, if nothing goes wrong.  A
#: few hundredths are usual; this is for a machine of which everything asks everything.
SETTLING = 2.0

#: Two hindrances with less than this between them are one: it takes a moment to come back.
GAP = 1.0

#: How much of its lease a worker may miss: it renews every third.
MISSED = 2 / 3

#: In leases: for so long after it was hindered, a worker may start what it had fetched before.
STALE = 2.0

#: What a server may forget that loses its power under ``appendfsync everysec``, in seconds.
FORGOTTEN = 2.5


class Course:
    """What went wrong, as far as it matters to who has a task.

    Args:
        troubles: in any order.
        lease: in seconds.
        durable: the server writes everything to the disk before it answers.
        runs: all of them.
    """

    def __init__(
        self,
        troubles: Iterable[Trouble],
        lease: float,
        durable: bool = True,
        runs: Iterable[Run] = (),
    ) -> None:
        self.lease = lease
        self._starts: dict[tuple[str, int], list[float]] = defaultdict(list)
        for run in runs:
            bisect.insort(self._starts[run.worker, run.pid], run.start)
        self.troubles = sorted(troubles, key=lambda trouble: trouble.begin)
        self._of: dict[str, list[Trouble]] = defaultdict(list)
        for trouble in self.troubles:
            for worker in trouble.workers:
                self._of[worker].append(trouble)
        self.outages = [one for one in self.troubles if one.kind in OUTAGES]
        forgets = {Kind.POWER_LOST} if durable else {Kind.POWER_LOST, Kind.SERVER_KILLED}
        #: Ends of the server after which it may not know what it was told last.
        self.lapses = [one for one in self.troubles if one.kind in forgets]
        self._hindrances: dict[str, list[Trouble]] = {}

    def befell(self, worker: str) -> list[Trouble]:
        return self._of[worker] + self._of[EVERYBODY]

    def death(self, run: Run) -> Trouble | None:
        """What ended the process that ran it, or the one that had its lease; the first of them."""
        fatal = (one for one in self._of[run.worker] if one.kind in FATAL)
        hits = [
            one
            for one in fatal
            if one.befell(run.worker, run.pid) and not (one.pid and self._went_on(run, one.begin))
        ]
        return min(hits, key=lambda one: one.begin, default=None)

    def _went_on(self, run: Run, until: float) -> bool:
        """Whether its process ran something else before it died: then its worker, which lives,
        had heard of its end."""
        starts = self._starts[run.worker, run.pid]
        at = bisect.bisect_left(starts, run.end) if run.end is not None else len(starts)
        return at < len(starts) and starts[at] <= until and starts[at] > run.start

    def hindrances(self, worker: str) -> list[Trouble]:
        """When a worker could not renew for so long that it may have lost its leases.

        Outages count only as far as they prolong what befell the worker alone.
        """
        if worker not in self._hindrances:
            own = [one for one in self.befell(worker) if one.kind in ALONE and not one.pid]
            self._hindrances[worker] = [
                one
                for one in _merged([*own, *self.outages])
                if one.workers and one.end - one.begin >= MISSED * self.lease
            ]
        return self._hindrances[worker]

    def settled_by(self, run: Run) -> float:
        """When the server knew at the latest that it had ended."""
        if run.end is None:
            return float('inf')
        latest = run.end + SETTLING
        delays = [one for one in self.befell(run.worker) if one.kind in ALONE] + self.outages
        for delay in sorted(delays, key=lambda one: one.begin):
            if delay.begin <= latest and delay.end >= run.end:
                latest = max(latest, delay.end + SETTLING)
        return latest

    def loss(self, run: Run, by: float) -> Trouble | None:
        """What took the task from its worker before the time ``by``; None: nothing did."""
        until = min(self.settled_by(run), by)
        death = self.death(run)
        if death is not None and death.begin <= until:
            return death
        for one in self.hindrances(run.worker):
            if one.begin <= until and run.start <= one.end + STALE * self.lease:
                return one
        for one in self.lapses:
            latest = one.end + STALE * self.lease
            if run.start <= latest and one.begin - FORGOTTEN <= self.settled_by(run) and (
                one.begin <= by
            ):  # fmt: skip
                return one
        return None

    def end(self, run: Run, again: bool = False) -> float:
        """Until when it certainly had its lease and its slots: its end, or what came first.

        Args:
            run: may have been started by a worker that had lost it before.
            again: somebody else had it later.
        """
        ends = [float('inf') if run.end is None else run.end]
        death = self.death(run)
        if death is not None:
            ends.append(death.begin)
        after = STALE * self.lease if again else 0.0
        ends += [one.begin for one in self.hindrances(run.worker) if one.end + after >= run.start]
        ends += [
            one.begin
            for one in self.lapses
            if one.begin >= run.start or run.start <= one.end + STALE * self.lease
        ]
        return min(ends)

    def outage_during(self, begin: float, end: float) -> bool:
        at = bisect.bisect_left([one.end for one in self.outages], begin)
        return any(one.begin <= end for one in self.outages[at : at + 3])


def _merged(troubles: Iterable[Trouble]) -> Iterator[Trouble]:
    """Those that follow each other without a gap as one, named after the longest."""
    group: list[Trouble] = []
    for one in sorted(troubles, key=lambda trouble: trouble.begin):
        if group and one.begin > max(other.end for other in group) + GAP:
            yield _joined(group)
            group = []
        group.append(one)
    if group:
        yield _joined(group)


def _joined(group: list[Trouble]) -> Trouble:
    alone = [one for one in group if one.kind in ALONE]
    named = max(alone or group, key=lambda one: one.end - one.begin)
    return Trouble(
        named.kind, min(one.begin for one in group), max(one.end for one in group),
        ('somebody',) if alone else (),
    )  # fmt: skip
