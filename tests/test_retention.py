"""Completed jobs that are kept for a while."""

from __future__ import annotations

from typing import Any

import pytest

from kombu_reliable.errors import InvalidMessage, InvalidOption, WrongState
from kombu_reliable.options import Options
from kombu_reliable.store import Store
from kombu_reliable.transport.marks import take_marks
from kombu_reliable.types import Dependencies, Marks, Outgoing, QueueCounts
from tests.conftest import START
from tests.test_scripts import ACK, CANCEL, FAIL, HOUR, LEASE, ONCE, REPLACE
from tests.test_tags import DAY, MarkBench


@pytest.fixture
def bench(store: Store) -> MarkBench:
    return MarkBench(store)


def complete(bench: MarkBench, id: str = 'job', *tags: str, **options: Any) -> None:
    bench.add(id, *tags, **{'retain': HOUR, **options})
    bench.settle(ACK, *bench.take())


def states(bench: MarkBench, *ids: str) -> list[str]:
    return [job.state for job in bench.store.jobs.look(ids or ['job'])]


def test_a_completed_job_is_kept_with_all_that_is_known(bench: MarkBench) -> None:
    complete(bench, 'job', 'a')
    [job] = bench.store.jobs.in_state('q', 'completed')
    assert (job.state, job.tags, job.completed_at) == ('completed', ('a',), START)
    assert job.envelope == b'job'
    assert (job.worker, job.due, job.lease_expires_at, job.failure) == (None, None, None, None)
    assert bench.store.counts('q') == QueueCounts(0, 0, 0, 0, completed=1)
    assert bench.store.known_queues() == ['q']
    assert bench.take() == []


def test_it_goes_in_time_and_leaves_nothing(bench: MarkBench) -> None:
    complete(bench, 'job', 'a', track='t')
    bench.wait(HOUR - 1)
    bench.claim(0)
    assert states(bench) == ['completed']
    bench.wait(1002)
    bench.claim(0)
    assert bench.left() == set()
    assert not bench.client.zcard(bench.keys.alarms), 'nobody need look again'


def test_the_claim_that_forgets_it_is_asked_for(bench: MarkBench) -> None:
    complete(bench)
    bench.wait(LEASE)
    claimed = bench.claim(0)
    left = HOUR - LEASE
    assert claimed.wake_in is not None and left <= 1000 * claimed.wake_in <= left + 1000


def test_each_has_a_time_of_its_own(bench: MarkBench) -> None:
    complete(bench, 'long', retain=3 * HOUR)
    complete(bench, 'short')
    complete(bench, 'none', retain=0)
    assert states(bench, 'long', 'short', 'none') == ['completed', 'completed']
    bench.wait(2 * HOUR)
    bench.claim(0)
    assert states(bench, 'long', 'short') == ['completed']


def test_a_queue_keeps_only_so_many(bench: MarkBench) -> None:
    for number in range(30):
        complete(bench, f'j{number}', 'a', limit=10)
        bench.wait(1)
    kept = [job.key for job in bench.store.jobs.in_state('q', 'completed')]
    assert kept == [f'j{number}' for number in range(29, 19, -1)], 'the last ones, newest first'
    assert bench.store.tags.count('a') == 10


def test_more_than_a_step_ends_in_several(bench: MarkBench) -> None:
    for number in range(250):
        bench.add(f'j{number}', retain=HOUR, limit=1_000)
    for _ in range(3):
        bench.settle(ACK, *bench.take(100))
    bench.wait(2 * HOUR)
    for left in (150, 50, 0):
        claimed = bench.claim(0)
        assert bench.store.counts('q').completed == left
        assert (claimed.wake_in is not None) == bool(left)
    assert bench.left() == set()


@pytest.mark.parametrize('verdict', [FAIL, CANCEL, REPLACE])
def test_only_a_success_is_kept(bench: MarkBench, verdict: Any) -> None:
    bench.add('job', retain=HOUR)
    bench.settle(verdict, *bench.take(), reason='rejected')
    assert bench.store.counts('q').completed == 0


def test_one_that_was_acknowledged_early_is_kept(bench: MarkBench) -> None:
    bench.add('job', retain=HOUR)
    [held] = bench.take()
    bench.settle(ONCE, held)
    bench.settle(ACK, held)
    assert states(bench) == ['completed']
    bench.live(2 * LEASE)
    assert states(bench) == ['completed']


def test_an_ack_that_is_repeated_changes_nothing(bench: MarkBench) -> None:
    bench.add('job', retain=HOUR)
    [held] = bench.take()
    assert bench.settle(ACK, held) == [1]
    assert bench.settle(ACK, held) == [0]
    assert bench.renew(held) == [0]
    assert states(bench) == ['completed']


def test_a_new_job_under_the_id_takes_its_place(bench: MarkBench) -> None:
    complete(bench, 'job', 'old')
    assert bench.put('job') == ('job',), 'not a job beside it'
    assert bench.tagged('old') == []
    [job] = bench.store.jobs.look(['job'])
    assert (job.state, job.tags, job.history) == ('ready', (), ())
    bench.settle(ACK, *bench.take())
    assert bench.left() == set()


def test_a_new_job_with_marks_takes_its_place(bench: MarkBench) -> None:
    complete(bench, 'job', 'old', track='t')
    assert bench.add('job', 'new', retain=HOUR, queue='r') == 'job'
    assert (bench.tagged('old'), bench.tagged('new')) == ([], ['job'])
    assert bench.store.counts('q') == QueueCounts(0, 0, 0, 0)
    bench.settle(ACK, *bench.take(queues='r'))
    assert states(bench) == ['completed']


def test_of_two_jobs_under_an_id_both_are_kept(bench: MarkBench) -> None:
    bench.add('job', retain=HOUR)
    twin = bench.add('job', retain=HOUR)
    bench.settle(ACK, *bench.take())
    assert states(bench, 'job', twin) == ['completed', 'completed']
    bench.wait(2 * HOUR)
    bench.claim(0)
    assert bench.left() == set()


def test_its_dependents_start_and_those_that_come_later_do_not_wait(bench: MarkBench) -> None:
    def dependent(id: str, within: int = 0) -> Outgoing:
        return Outgoing(id, 'q', 0, '0', b'', depends=Dependencies(('job',), within=(within,)))

    bench.add('job', retain=HOUR)
    [held] = bench.take()
    bench.publish([dependent('before')], 1, lane='other')
    assert states(bench, 'before') == ['waiting']
    bench.settle(ACK, held)
    assert bench.take_ids() == ['before']
    bench.publish([dependent('after')], 2, lane='other')
    bench.publish([dependent('expecting', HOUR)], 3, lane='other')
    assert bench.take_ids() == ['after', 'expecting'], 'it is known to have completed'


def test_what_is_completed_can_only_be_looked_at(bench: MarkBench) -> None:
    complete(bench)
    [job] = bench.store.jobs.look(['job'])
    jobs = bench.store.jobs
    for action in (
        lambda: jobs.cancel(job), lambda: jobs.move(job, 'r'), lambda: jobs.replay(job),
        lambda: jobs.set_priority(job, 3), lambda: jobs.reschedule(job, START),
    ):  # fmt: skip
        with pytest.raises(WrongState, match='completed'):
            action()
    assert states(bench) == ['completed']


@pytest.mark.parametrize('how', ['discard', 'purge'])
def test_it_can_be_deleted(bench: MarkBench, how: str) -> None:
    complete(bench, 'job', 'a', track='t')
    if how == 'discard':
        bench.store.jobs.discard(bench.store.jobs.look(['job'])[0])
    else:
        assert bench.store.jobs.purge('q', ['completed']) == 1
    assert bench.left() == set()
    events = [event.event for event in bench.store.events.listen('0', timeout=0)]
    assert events == ['put', 'popped', 'completed']


def test_it_outlives_its_queue(bench: MarkBench) -> None:
    bench.store.run(bench.operations.declare('q', 1000))
    complete(bench)
    bench.wait(2000)
    bench.claim(0)
    assert states(bench) == ['completed']
    bench.wait(2 * HOUR)
    for _ in range(3):
        bench.claim(0)
        bench.wait(20_000)
    assert bench.store.counts('q').completed == 0


def test_foreign_data_in_its_place_costs_nothing(bench: MarkBench) -> None:
    bench.client.set(bench.keys.completed('q'), 'foreign')
    bench.add('job', 'a', track='t', retain=HOUR)
    assert bench.settle(ACK, *bench.take()) == [1]
    assert bench.left() == {'c:q'}


# -- who is kept -------------------------------------------------------------------


@pytest.mark.parametrize(
    'headers, options, kept',
    [
        ({}, {}, None),
        ({'x-tags': ['a']}, {}, HOUR),
        ({'x-track': True}, {}, HOUR),
        ({'x-retention': 5}, {}, 5_000),
        ({'x-retention': 0.0001}, {}, 1),
        ({'x-tags': ['a'], 'x-retention': 0}, {}, 0),
        ({'x-retention': 0}, {}, None),
        ({}, {'completed_retention': 60}, 60_000),
        ({'x-tags': ['a']}, {'completed_retention': 60}, 60_000),
        ({'x-tags': ['a']}, {'completed_retention': 0}, 0),
        ({}, {'completed_retention': 0}, None),
        ({'x-retention': 5}, {'completed_retention': 60}, 5_000),
    ],
)
def test_for_how_long(headers: dict[str, Any], options: dict[str, Any], kept: int | None) -> None:
    marks = take_marks(dict(headers), Options(**options))
    assert (None if marks is None else marks.retain) == kept
    if marks is not None:
        assert isinstance(marks, Marks) and marks.limit == 10_000


@pytest.mark.parametrize('seconds', ['5', -1, float('inf'), float('nan'), True, 2**60])
def test_a_retention_that_is_none(seconds: Any) -> None:
    with pytest.raises(InvalidMessage, match='x-retention'):
        take_marks({'x-retention': seconds}, Options())


def test_options_that_make_no_sense() -> None:
    with pytest.raises(InvalidOption, match='completed_retention'):
        Options(completed_retention=-1)
    with pytest.raises(InvalidOption, match='completed_limit'):
        Options(completed_limit=0)
    assert Options.parse({'completed_retention': '90'}).completed_retention == 90.0


def test_dead_letters_are_kept_as_before(bench: MarkBench) -> None:
    bench.add('job', 'a', retain=HOUR)
    bench.settle(FAIL, *bench.take(), reason='rejected')
    bench.wait(6 * DAY)
    bench.claim(0)
    assert states(bench) == ['failed']
