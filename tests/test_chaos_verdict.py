"""The judge of the chaos finds what is planted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from benchmarks.chaos.kinds import Kind
from benchmarks.chaos.ledger import Run, Submission, Trouble
from benchmarks.chaos.verdict import Death, Verdict, judge

LEASE = 4.0
LIMIT = 'two at once'
PACED = 'ten a second'


def job(name: str, kind: str = 'short', at: float = 0.0, **fields: Any) -> Submission:
    return Submission(name, kind, at, **{'stored': at, **fields})


def ran(
    name: str, start: float, end: float | None = None, how: str = '', *, kind: str = 'short',
    attempt: int = 0, delivery: int = 1, worker: str = 'w1.1', pid: int = 7,
) -> Run:  # fmt: skip
    how = how or ('done' if end is not None else '')
    return Run(name, kind, attempt, delivery, worker, pid, start, end, how)


def trouble(kind: Kind, begin: float, end: float | None = None, *workers: str, pid: int = 0) -> Any:
    return Trouble(kind, begin, begin if end is None else end, workers or ('w1.1',), pid)


def everywhere(kind: Kind, begin: float, end: float) -> Trouble:
    return Trouble(kind, begin, end, ('*',))


def judged(
    jobs: Iterable[Submission], runs: Iterable[Run], troubles: Iterable[Trouble] = (),
    dead: dict[str, str] | None = None, durable: bool = True,
) -> Verdict:  # fmt: skip
    ordered = sorted(runs, key=lambda run: run.start)
    deaths = {id: Death(reason) for id, reason in (dead or {}).items()}
    return judge({one.id: one for one in jobs}, ordered, troubles, deaths, LEASE, durable)


def bad(verdict: Verdict) -> dict[str, int]:
    return {what: count for what, count in verdict.faults.items() if count}


# -- how tasks end -------------------------------------------------------------------


def test_what_ran_once_is_fine() -> None:
    verdict = judged([job('a'), job('b')], [ran('a', 1, 2), ran('b', 1, 2)])
    assert bad(verdict) == {}
    assert (verdict.submitted, verdict.stored, verdict.ran, verdict.runs) == (2, 2, 2, 2)


def test_a_task_that_never_ran_is_lost() -> None:
    verdict = judged([job('a'), job('b')], [ran('a', 1, 2)])
    assert bad(verdict) == {'lost': 1}
    assert (verdict.lost[0].id, verdict.lost[0].what) == ('b', 'never ran')


def test_a_task_that_began_and_never_ended_is_lost_whatever_befell_its_worker() -> None:
    verdict = judged([job('a')], [ran('a', 1)], [trouble(Kind.WORKER_KILLED, 1.5)])
    assert bad(verdict) == {'lost': 1}


def test_a_retry_that_never_came_is_a_loss() -> None:
    run = ran('a', 1, 2, 'retry', kind='retrying')
    assert bad(judged([job('a', 'retrying')], [run])) == {'lost': 1}
    again = ran('a', 3, 4, kind='retrying', attempt=1)
    verdict = judged([job('a', 'retrying')], [run, again])
    assert bad(verdict) == {}
    assert verdict.doubles == []


def test_what_was_not_confirmed_may_run_or_not() -> None:
    jobs = [
        job('dead', stored=None),
        job('refused', stored=None, error='ServerFull'),
        job('stored all the same', stored=None, error='OperationalError'),
    ]
    verdict = judged(jobs, [ran('stored all the same', 1, 2)])
    assert bad(verdict) == {}
    assert verdict.unanswered == 1
    assert verdict.refused == {'ServerFull': 1, 'OperationalError': 1}
    assert verdict.ran_unconfirmed == 1


def test_a_healthy_task_must_not_become_a_dead_letter() -> None:
    assert bad(judged([job('a')], [], dead={'a': 'delivery-limit'})) == {'lost': 1}
    assert bad(judged([job('a')], [ran('a', 1, 2)], dead={'a': 'failed'})) == {'lost': 1}


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [('poison', 'delivery-limit'), ('failing', 'failed'), ('blocked', 'dependency')],
)
def test_what_has_to_be_a_dead_letter(kind: str, reason: str) -> None:
    verdict = judged([job('a', kind)], [], dead={'a': reason})
    assert (bad(verdict), verdict.dead) == ({}, 1)
    assert bad(judged([job('a', kind)], [])) == {'lost': 1}
    assert bad(judged([job('a', kind)], [], dead={'a': 'other'})) == {'lost': 1}


def test_a_blocked_task_must_not_run_even_if_it_ends_well() -> None:
    run = ran('a', 1, 2, kind='blocked')
    assert bad(judged([job('a', 'blocked')], [run], dead={'a': 'dependency'})) == {'lost': 1}


def test_a_skipped_task_must_not_run() -> None:
    assert bad(judged([job('a', instead='b'), job('b')], [ran('b', 1, 2)])) == {}
    runs = [ran('a', 1, 2), ran('b', 1, 2)]
    assert bad(judged([job('a', instead='b'), job('b')], runs)) == {'lost': 1}


def test_a_run_of_nobody() -> None:
    assert bad(judged([], [ran('a', 1, 2)])) == {'runs of unknown tasks': 1}


def test_a_full_server_halts_what_publishes() -> None:
    jobs = [job('a', 'link'), job('b', 'link', needs=('a',)), job('c', 'link', needs=('b',))]
    runs, dead = [ran('a', 10, 11, kind='link')], {'a': 'failed'}
    verdict = judged(jobs, runs, [everywhere(Kind.FULL, 10, 12)], dead)
    assert bad(verdict) == {}
    assert {one.id for one in verdict.halted} == {'a', 'b', 'c'}
    assert bad(judged(jobs, runs, [everywhere(Kind.FULL, 20, 22)], dead)) == {'lost': 3}
    # It was over when the task had noted that it could not.
    assert bad(judged(jobs, runs, [everywhere(Kind.FULL, 10, 10.9)], dead)) == {}
    assert bad(judged(jobs, runs, [everywhere(Kind.FULL, 8, 9.9)], dead)) == {'lost': 3}
    # A task that publishes nothing has no such excuse.
    verdict = judged([job('a')], [ran('a', 10, 11)], [everywhere(Kind.FULL, 10, 12)], dead)
    assert bad(verdict) == {'lost': 1}


# -- tasks that ran twice ------------------------------------------------------------

TWICE = [ran('a', 10, 11), ran('a', 16, 17, delivery=2, worker='w2.1')]


def doubled(*troubles: Trouble, runs: list[Run] = TWICE, durable: bool = True) -> str | None:
    """Why, if it is known; None if it should not have been."""
    verdict = judged([job('a')], runs, troubles, durable=durable)
    [double] = verdict.doubles
    assert bad(verdict) == ({} if double.why else {'doubled without a reason': 1})
    return double.why or None


def test_a_repetition_needs_a_reason() -> None:
    assert doubled() is None


@pytest.mark.parametrize('kind', [Kind.WORKER_KILLED, Kind.MAIN_KILLED, Kind.COLD])
def test_the_end_of_the_worker_while_it_ran_or_just_after(kind: Kind) -> None:
    assert doubled(trouble(kind, 10.5)) == kind
    assert doubled(trouble(kind, 11.1)) == kind, 'between the end and its settlement'
    assert doubled(trouble(kind, 14.0)) is None, 'it was settled long ago'
    assert doubled(trouble(kind, 16.5)) is None, 'it had run again before'
    assert doubled(trouble(kind, 10.5, 10.5, 'w2.1')) is None, 'somebody else'


def test_a_process_of_its_pool_is_the_one_that_ran_it() -> None:
    assert doubled(trouble(Kind.CHILD_KILLED, 10.5, pid=7)) == Kind.CHILD_KILLED
    assert doubled(trouble(Kind.CHILD_KILLED, 10.5, pid=8)) is None


def test_a_process_that_went_on_to_another_task_had_told_of_the_end() -> None:
    jobs = [job('a'), job('b')]
    runs = [*TWICE, ran('b', 11.2, 12)]
    died = trouble(Kind.CHILD_KILLED, 11.5, pid=7)
    assert bad(judged(jobs, runs, [died])) == {'doubled without a reason': 1}
    died = trouble(Kind.CHILD_KILLED, 11.1, pid=7)
    assert bad(judged(jobs[:1], TWICE, [died])) == {}


def test_an_orphan_that_starts_a_task_after_its_worker_was_killed() -> None:
    assert doubled(trouble(Kind.MAIN_KILLED, 9.9)) == Kind.MAIN_KILLED


@pytest.mark.parametrize('kind', [Kind.FROZEN, Kind.MAIN_FROZEN, Kind.CUT_OFF])
def test_a_worker_that_could_not_renew(kind: Kind) -> None:
    assert doubled(trouble(kind, 10.5, 15.7)) == kind
    assert doubled(trouble(kind, 10.5, 12.0)) is None, 'not for long'
    assert doubled(trouble(kind, 20, 26)) is None, 'later'
    assert doubled(trouble(kind, 10.5, 15.7, pid=7)) is None, 'a single process renews nothing'


def test_an_outage_is_no_reason_however_long() -> None:
    for kind in (Kind.SERVER_KILLED, Kind.SERVER_FROZEN):
        assert doubled(everywhere(kind, 10.5, 15.7)) is None


@pytest.mark.parametrize('kind', [Kind.CUT, Kind.REPLY_LOST, Kind.SLOW, Kind.FULL, Kind.CLOCK])
def test_what_must_cost_nothing(kind: Kind) -> None:
    assert doubled(everywhere(kind, 9.0, 15.7)) is None
    assert doubled(trouble(Kind.WARM, 9.0, 15.7)) is None


def test_an_outage_prolongs_what_befell_a_worker_alone() -> None:
    pause = trouble(Kind.PAUSED, 10.5, 12.0)
    assert doubled(pause) is None
    assert doubled(pause, everywhere(Kind.SERVER_KILLED, 12.5, 14.0)) == Kind.PAUSED
    assert doubled(pause, everywhere(Kind.SERVER_KILLED, 14.5, 15.7)) is None


def test_an_outage_delays_the_settlement_until_the_worker_is_killed() -> None:
    outage = everywhere(Kind.SERVER_KILLED, 10.9, 13.5)
    assert doubled(outage, trouble(Kind.WORKER_KILLED, 14.0)) == Kind.WORKER_KILLED


def test_a_thawed_worker_starts_what_it_had_fetched() -> None:
    runs = [ran('a', 16, 17), ran('a', 13, 14, delivery=2, worker='w2.1')]
    assert doubled(trouble(Kind.FROZEN, 8, 15), runs=runs) == Kind.FROZEN
    assert doubled(runs=runs) is None


def test_a_server_that_lost_its_power_has_forgotten_the_last_seconds() -> None:
    assert doubled(everywhere(Kind.POWER_LOST, 12, 13)) == Kind.POWER_LOST
    assert doubled(everywhere(Kind.POWER_LOST, 15.9, 15.95)) is None, 'it was saved by then'
    assert doubled(everywhere(Kind.SERVER_KILLED, 12, 13), durable=False) == Kind.SERVER_KILLED
    assert doubled(everywhere(Kind.SERVER_KILLED, 12, 13)) is None


def test_a_second_delivery_with_the_same_number_needs_a_reason_too() -> None:
    runs = [ran('a', 10, 11), ran('a', 10.5, 11, worker='w2.1')]
    assert doubled(runs=runs) is None


def test_a_chain_of_celery_is_published_again_by_the_task_before() -> None:
    jobs = [job('a', 'link'), job('b', 'link', needs=('a',))]
    second = [ran('b', at, at + 1, kind='link', worker='w2.1') for at in (12, 18)]
    first = [ran('a', 10, 11, kind='link'), ran('a', 16, 17, kind='link', delivery=2)]
    verdict = judged(jobs, first + second, [trouble(Kind.WORKER_KILLED, 11.1)])
    assert bad(verdict) == {}
    assert sorted(one.why for one in verdict.doubles) == [
        'the one before it ran twice', Kind.WORKER_KILLED,
    ]  # fmt: skip
    assert bad(judged(jobs, first[:1] + second)) == {'doubled without a reason': 1}


def test_a_retry_that_could_not_be_published_is_given_back() -> None:
    jobs = [job('a', 'retrying')]
    runs = [
        ran('a', 10, 12, 'rejected', kind='retrying'),
        ran('a', 13, 14, kind='retrying', delivery=2, worker='w2.1'),
    ]
    verdict = judged(jobs, runs, [everywhere(Kind.SERVER_KILLED, 11, 13)])
    assert bad(verdict) == {}
    assert [one.why for one in verdict.doubles] == ['its retry could not be published']
    assert bad(judged(jobs, runs)) == {'doubled without a reason': 1}


def test_how_long_it_took_until_it_ran_again() -> None:
    verdict = judged([job('a')], TWICE, [trouble(Kind.WORKER_KILLED, 10.5)])
    [recovery] = verdict.recoveries
    assert recovery.seconds == pytest.approx(5.5)
    assert verdict.lease_losses == 1
    between = [TWICE[0], ran('a', 30, 31, delivery=3, worker='w2.1')]
    verdict = judged([job('a')], between, [trouble(Kind.WORKER_KILLED, 10.5)])
    assert (verdict.recoveries, verdict.lease_losses) == ([], 2)


def test_each_retry_is_a_run_of_its_own() -> None:
    runs = [
        ran('a', 10, 11, 'retry', kind='retrying'),
        ran('a', 12, 13, kind='retrying', attempt=1),
        ran('a', 14, 15, kind='retrying', attempt=1, delivery=2),
    ]
    verdict = judged([job('a', 'retrying')], runs)
    assert bad(verdict) == {'doubled without a reason': 1}


# -- losses that the guarantee allows ------------------------------------------------


def test_what_was_confirmed_just_before_the_power_was_lost_may_be_gone() -> None:
    loss = everywhere(Kind.POWER_LOST, 20, 22)
    verdict = judged([job('a', at=18.5), job('b', at=10.0)], [], [loss], durable=False)
    assert [one.id for one in verdict.forgotten] == ['a']
    assert [one.id for one in verdict.lost] == ['b']


def test_a_server_that_writes_everything_down_has_no_such_excuse() -> None:
    kill = everywhere(Kind.SERVER_KILLED, 20, 22)
    assert bad(judged([job('a', at=19.9)], [], [kill])) == {'lost': 1}
    assert bad(judged([job('a', at=19.9)], [], [kill], durable=False)) == {}


# -- order ---------------------------------------------------------------------------


def test_a_dependent_starts_after_what_it_needs() -> None:
    jobs = [job('a'), job('b', 'dependent', needs=('a',))]
    fine = [ran('a', 1, 2), ran('b', 2.001, 3)]
    assert bad(judged(jobs, fine)) == {}
    early = [ran('a', 1, 2), ran('b', 1.9, 3)]
    assert bad(judged(jobs, early)) == {'dependency violations': 1}
    failed = [ran('a', 1, 2, 'failed'), ran('a', 5, 6, delivery=2), ran('b', 3, 4)]
    assert 'dependency violations' in bad(judged(jobs, failed))


def test_nobody_has_to_wait_for_what_may_not_be_stored() -> None:
    jobs = [job('a', stored=None), job('b', needs=('a',))]
    assert bad(judged(jobs, [ran('b', 1, 2)])) == {}


def test_a_delay_is_kept() -> None:
    jobs = [job('a', 'delayed', due=5.0)]
    assert bad(judged(jobs, [ran('a', 5.0, 6)])) == {}
    early = [ran('a', 4.9, 6)]
    assert bad(judged(jobs, early)) == {'delays cut short': 1}
    assert bad(judged(jobs, early, [everywhere(Kind.CLOCK, 3, 4)])) == {}
    assert bad(judged(jobs, early, [everywhere(Kind.CLOCK, 7, 8)])) == {'delays cut short': 1}


# -- limits --------------------------------------------------------------------------


def limited(*spans: tuple[float, float | None], workers: str = '123456') -> Any:
    names = [f'j{n}' for n in range(len(spans))]
    jobs = [job(name, 'limited', limit=LIMIT) for name in names]
    runs = [
        ran(name, *span, kind='limited', worker=f'w{worker}.1')
        for name, span, worker in zip(names, spans, workers, strict=False)
    ]
    return jobs, runs


def test_a_throttle_holds() -> None:
    assert bad(judged(*limited((1, 3), (2, 4), (3.5, 5)))) == {}
    verdict = judged(*limited((1, 3), (2, 4), (2.5, 5)))
    assert bad(verdict) == {'throttle violations': 1}
    assert verdict.over_limit[0].ids == ('j0', 'j1', 'j2')


def test_orphans_and_frozen_workers_run_beside_the_others() -> None:
    jobs, runs = limited((1, 9), (2, 9), (8, 9))
    for one in (trouble(Kind.MAIN_KILLED, 3), trouble(Kind.FROZEN, 3, 8.5)):
        verdict = judged(jobs, runs, [one])
        assert (bad(verdict), verdict.beside) == ({}, 1)
    # What was killed as a whole runs no more.
    jobs, runs = limited((1, None), (2, 9), (8, 9))
    verdict = judged(jobs, runs, [trouble(Kind.WORKER_KILLED, 3)])
    assert (bad(verdict)['lost'], verdict.beside) == (1, 0)
    # A short pause takes nothing away.
    jobs, runs = limited((1, 9), (2, 9), (8, 9))
    assert bad(judged(jobs, runs, [trouble(Kind.PAUSED, 3, 4)])) == {'throttle violations': 1}


def test_a_run_that_nobody_ended_keeps_its_slot() -> None:
    jobs, runs = limited((1, None), (2, 9), (8, 9))
    assert bad(judged(jobs, runs))['throttle violations'] == 1


def test_a_unique_key_is_held_by_one() -> None:
    jobs = [job('a', 'single', key='k'), job('b', 'single', key='k')]
    runs = [ran('a', 1, 2, kind='single'), ran('b', 2.1, 3, kind='single', worker='w2.1')]
    assert bad(judged(jobs, runs)) == {}
    runs[1] = ran('b', 1.9, 3, kind='single', worker='w2.1')
    assert bad(judged(jobs, runs)) == {'throttle violations': 1}


def test_a_rate_holds() -> None:
    def at(*moments: float) -> tuple[list[Submission], list[Run]]:
        names = [f'j{n}' for n in range(len(moments))]
        jobs = [job(name, 'limited', limit=PACED) for name in names]
        runs = [
            ran(name, when, when, kind='limited') for name, when in zip(names, moments, strict=True)
        ]
        return jobs, runs

    assert bad(judged(*at(*(n / 10 for n in range(100))))) == {}
    rush = at(*(10 + n / 100 for n in range(60)))
    assert bad(judged(*rush)) == {'throttle violations': 1}
    assert bad(judged(*rush, [trouble(Kind.FROZEN, 5, 9.9)])) == {}, 'it starts late what it had'
