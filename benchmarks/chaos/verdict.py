"""What became of the work: functions that know the ledger and nothing else."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from benchmarks.chaos.explain import FORGOTTEN, Course
from benchmarks.chaos.kinds import OUTAGES, Kind
from benchmarks.chaos.ledger import Run, Submission, Trouble
from benchmarks.chaos.limits import Excess, overlaps, rushes

__all__ = ('Death', 'Double', 'Loss', 'Recovery', 'Verdict', 'judge')

#: How each kind of task has to end, if not by success: the reason of its dead letter.
DEATHS = {'poison': 'delivery-limit', 'failing': 'failed', 'blocked': 'dependency'}

#: Kinds of tasks that publish, and what may make that impossible for longer than kombu tries.
PUBLISHERS = ('retrying', 'link')
HALTS = OUTAGES | {Kind.FULL, Kind.CUT_OFF}
#: A publish may take so long until it fails, in seconds.
HALTING = 6.0

#: A delay is rounded to a millisecond.
ROUNDING = 0.002


@dataclass(frozen=True)
class Loss:
    """A task that was stored and did not end as it has to.

    Args:
        id: of the task.
        kind: what it does.
        what: what became of it.
        excused: the guarantee does not cover it, and why.
    """

    id: str
    kind: str
    what: str
    excused: str = ''


@dataclass(frozen=True)
class Double:
    """A run after which there was another one.

    Args:
        id: of the task.
        kind: what it does.
        first: the run that was in vain.
        second: the next one.
        why: what took the task from its worker; ``''``: nothing that is known, which is bad.
    """

    id: str
    kind: str
    first: Run
    second: Run
    why: str = ''


class Death(NamedTuple):
    """A dead letter."""

    reason: str
    message: str = ''

    def __str__(self) -> str:
        return f'reason {self.reason}' + (f': {self.message}' if self.message else '')


@dataclass(frozen=True)
class Recovery:
    """How long a task lay still after its worker was ended."""

    id: str
    why: str
    seconds: float


@dataclass
class Verdict:
    """What became of the work.  All lists but those that say otherwise should be empty."""

    submitted: int = 0
    stored: int = 0
    #: Skipped, because another task had their unique key.
    skipped: int = 0
    #: Publishes that raised, by the type of what they raised; and those that were cut short.
    refused: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    #: Of these two, those that ran all the same: nobody was told that they were stored.
    ran_unconfirmed: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    ran: int = 0
    #: Tasks that ended as dead letters, as they have to.
    dead: int = 0
    troubles: Counter[str] = field(default_factory=Counter)
    doubles: list[Double] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    #: Runs whose lease was lost, as their deliveries tell.
    lease_losses: int = 0

    lost: list[Loss] = field(default_factory=list)
    #: Dead letters of tasks that could not publish what they had to, a retry or the next member of
    #: a chain, because the server was full or away; and what was to come after them.
    halted: list[Loss] = field(default_factory=list)
    #: Lost as the guarantee allows, for the server lost its power without ``appendfsync always``.
    forgotten: list[Loss] = field(default_factory=list)
    unexplained: list[Double] = field(default_factory=list)
    #: Dependents that started before what they need had succeeded.
    disordered: list[Loss] = field(default_factory=list)
    #: Delays that were cut short.
    early: list[Loss] = field(default_factory=list)
    over_limit: list[Excess] = field(default_factory=list)
    too_fast: list[Excess] = field(default_factory=list)
    #: Runs that nobody has submitted.
    strangers: list[str] = field(default_factory=list)
    #: Not bad: more at once than allowed, through processes that had lost their leases.
    beside: int = 0

    @property
    def faults(self) -> dict[str, int]:
        """What should be nothing."""
        return {
            'lost': len(self.lost),
            'doubled without a reason': len(self.unexplained),
            'dependency violations': len(self.disordered),
            'throttle violations': len(self.over_limit) + len(self.too_fast),
            'delays cut short': len(self.early),
            'runs of unknown tasks': len(self.strangers),
        }


def judge(
    submissions: Mapping[str, Submission],
    runs: list[Run],
    troubles: Iterable[Trouble],
    dead: Mapping[str, Death],
    lease: float,
    durable: bool = True,
) -> Verdict:
    """What follows from a ledger.

    Args:
        submissions: by id.
        runs: in the order in which they began.
        troubles: what went wrong.
        dead: the dead letters in the end.
        lease: in seconds.
        durable: the server ran with ``appendfsync always``.
    """
    course = Course(troubles, lease, durable, runs)
    of: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        of[run.id].append(run)
    done: dict[str, float] = {}
    for run in runs:
        if run.how == 'done' and run.end is not None:
            done[run.id] = min(run.end, done.get(run.id, run.end))
    verdict = Verdict(
        submitted=len(submissions),
        stored=sum(one.stored is not None for one in submissions.values()),
        skipped=sum(bool(one.instead) for one in submissions.values()),
        refused=Counter(one.error for one in submissions.values() if one.error),
        unanswered=sum(one.stored is None and not one.error for one in submissions.values()),
        ran_unconfirmed=sum(one.stored is None and one.id in of for one in submissions.values()),
        kinds=Counter(one.kind for one in submissions.values() if one.wanted),
        runs=len(runs),
        ran=len(of),
        troubles=Counter(str(one.kind) for one in course.troubles),
        strangers=[name for name in of if name not in submissions],
    )
    _ends(verdict, submissions, of, done, dead, course)
    _doubles(verdict, submissions, of, course)
    _order(verdict, submissions, runs, done, course)
    verdict.over_limit = overlaps(runs, submissions, course, leased=True)
    verdict.too_fast = rushes(runs, submissions, course)
    everything = overlaps(runs, submissions, course, leased=False)
    verdict.beside = len(everything) - len(verdict.over_limit)
    return verdict


def _ends(
    verdict: Verdict,
    submissions: Mapping[str, Submission],
    of: Mapping[str, list[Run]],
    done: Mapping[str, float],
    dead: Mapping[str, Death],
    course: Course,
) -> None:
    for one in submissions.values():
        wanted = DEATHS.get(one.kind)
        if one.kind == 'blocked' and one.id in of:
            verdict.lost.append(Loss(one.id, one.kind, 'ran though what it needs has failed'))
        elif one.instead and one.id in of:
            verdict.lost.append(Loss(one.id, one.kind, 'ran though it was skipped'))
        elif not one.wanted or (wanted is None and one.id in done and one.id not in dead):
            continue
        elif wanted is not None and one.id in dead and dead[one.id].reason == wanted:
            verdict.dead += 1
        else:
            loss = _loss(one, submissions, of, dead, one.id in done, course)
            lists = {Kind.POWER_LOST: verdict.forgotten, Kind.FULL: verdict.halted}
            lists.get(loss.excused, verdict.lost).append(loss)


def _loss(
    one: Submission,
    submissions: Mapping[str, Submission],
    of: Mapping[str, list[Run]],
    dead: Mapping[str, Death],
    done: bool,
    course: Course,
) -> Loss:
    death, runs = dead.get(one.id), of.get(one.id, [])
    if death is not None:
        what = f'a dead letter{", though it was done" if done else ""}, {death}'
    elif runs:
        what = f'ran {len(runs)} times, and was not done'
    else:
        what = 'never ran'
    return Loss(one.id, one.kind, what, _excuse(one, submissions, of, dead, course))


def _excuse(
    one: Submission,
    submissions: Mapping[str, Submission],
    of: Mapping[str, list[Run]],
    dead: Mapping[str, Death],
    course: Course,
) -> str:
    blamed = one
    while blamed.kind == 'link' and blamed.id not in of and blamed.needs:
        # The one before it publishes it.
        blamed = submissions[blamed.needs[0]]
    if _was_halted(blamed.id, of, dead, course):
        return Kind.FULL
    times = [one.stored or 0.0, *(run.end or run.start for run in of.get(one.id, []))]
    forgotten = one.id not in dead and any(
        loss.begin - FORGOTTEN <= at <= loss.end for loss in course.lapses for at in times
    )
    return Kind.POWER_LOST if forgotten else ''


def _was_halted(
    name: str, of: Mapping[str, list[Run]], dead: Mapping[str, Death], course: Course
) -> bool:
    """Whether a task that publishes others failed when that was impossible."""
    runs = of.get(name, [])
    if not runs or runs[0].kind not in PUBLISHERS or name not in dead:
        return False
    if dead[name].reason not in ('failed', 'rejected'):
        return False
    return _hindered(runs[-1], course)


def _hindered(run: Run, course: Course) -> bool:
    """Whether it could not publish what it had to."""
    # It may have noted its end when the trouble was over already.
    end = run.end or run.start
    return any(
        one.begin <= end + HALTING and one.end >= run.start
        for one in course.troubles
        if one.kind in HALTS
    )


def _doubles(
    verdict: Verdict,
    submissions: Mapping[str, Submission],
    of: Mapping[str, list[Run]],
    course: Course,
) -> None:
    twice = {name for name, runs in of.items() if len(runs) != len({run.attempt for run in runs})}
    for name in twice:
        if submissions.get(name) and submissions[name].kind == 'poison':
            continue
        attempts: dict[int, list[Run]] = defaultdict(list)
        for run in of[name]:
            attempts[run.attempt].append(run)
        for runs in attempts.values():
            runs.sort(key=lambda run: (run.delivery, run.start))
            for first, second in pairwise(runs):
                _double(verdict, submissions, first, second, of, course)
    verdict.lease_losses = sum(
        max(run.delivery for run in runs) - 1
        for name, runs in of.items()
        if runs[0].delivery and runs[0].kind != 'poison'
    )


def _double(
    verdict: Verdict,
    submissions: Mapping[str, Submission],
    first: Run,
    second: Run,
    of: Mapping[str, list[Run]],
    course: Course,
) -> None:
    # One that was frozen may start what it had fetched after the one who has it now.
    loss = course.loss(first, max(second.start, first.start))
    why = str(loss.kind) if loss else ''
    if not why and first.how == 'rejected' and _hindered(first, course):
        why = 'its retry could not be published'
    if not why and first.kind == 'link':
        # Celery's chains: whoever runs a member publishes the next one.
        before = submissions[first.id].needs if first.id in submissions else ()
        if any(len([run for run in of.get(name, []) if run.end]) > 1 for name in before):
            why = 'the one before it ran twice'
    double = Double(first.id, first.kind, first, second, why)
    verdict.doubles.append(double)
    if not why:
        verdict.unexplained.append(double)
    elif loss is not None and second.delivery - first.delivery <= 1:
        # Else somebody had it in between who did not come to start it.
        waited = second.start - max(loss.begin, first.start)
        if waited > 0:
            verdict.recoveries.append(Recovery(first.id, why, waited))


def _order(
    verdict: Verdict,
    submissions: Mapping[str, Submission],
    runs: list[Run],
    done: Mapping[str, float],
    course: Course,
) -> None:
    forgotten = {loss.id for loss in verdict.forgotten}
    seen: set[tuple[str, int]] = set()
    for run in runs:
        made = submissions.get(run.id)
        if made is None:
            continue
        for name in made.needs:
            needed = submissions.get(name)
            if needed is None or needed.stored is None or name in forgotten:
                continue
            if done.get(name, float('inf')) > run.start and made.kind != 'blocked':
                verdict.disordered.append(Loss(run.id, run.kind, f'started before {name} was done'))
        # A retry has a delay of its own.
        if made.due - ROUNDING > run.start and not run.attempt and (run.id, 0) not in seen:
            seen.add((run.id, 0))
            if not _stepped(made, run, course):
                text = f'started {made.due - run.start:.3f} s before its time'
                verdict.early.append(Loss(run.id, run.kind, text))


def _stepped(made: Submission, run: Run, course: Course) -> bool:
    """Whether the clock of the server was set while it waited."""
    return any(
        one.kind == Kind.CLOCK and one.begin <= run.start and one.end >= made.at
        for one in course.troubles
    )
