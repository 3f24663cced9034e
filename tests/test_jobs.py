"""Looking at jobs and queues, and acting on them: every operation on every state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from kombu_reliable.envelope import pack_id, unpack_id
from kombu_reliable.errors import (
    HasDependents,
    InvalidArgument,
    LayoutError,
    ReliableError,
    UnknownJob,
    UnknownQueue,
    WrongState,
)
from kombu_reliable.store import Store
from kombu_reliable.store.info import STATES, Event, Group
from kombu_reliable.store.jobs import Jobs
from kombu_reliable.transport.throttles import take_lane
from kombu_reliable.types import Delivery, Dependencies, Marks, Outgoing, Policy, QueueCounts
from tests.conftest import START
from tests.test_scripts import (
    ACK,
    DONE,
    FAIL,
    FENCED,
    HOUR,
    LEASE,
    RELEASE,
    REQUEUE,
    UNHELD,
    Bench,
)

MINUTE = 60_000


class JobBench(Bench):
    """Task ids in, jobs out."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.jobs: Jobs = store.jobs
        self.held: dict[str, Delivery] = {}

    def add(
        self, id: str, queue: str = 'q', rank: int = 0, due: str = '0', marks: Marks | None = None
    ) -> str:
        message = Outgoing(pack_id(id), queue, rank, due, f'message {id}'.encode(), marks=marks)
        first, self._number = self._number, self._number + 1
        return self.publish([message], first)[0]

    def make(self, state: str, id: str = 'a', queue: str = 'q', rank: int = 0) -> str:
        """A job in a state; ``lost`` is ready, and its last owner may come back."""
        if state == 'throttled':
            return self.throttled(id, queue, rank)
        marks = Marks(retain=HOUR, limit=100) if state == 'completed' else None
        key = self.add(id, queue, rank, f'+{HOUR}' if state == 'delayed' else '0', marks)
        if state in ('leased', 'lost', 'failed', 'completed'):
            self.held[id] = self.take(1, queue)[0]
        if state == 'lost':
            self.live(2 * LEASE)
        elif state == 'failed':
            self.fail(id)
        elif state == 'completed':
            self.settle(ACK, self.held[id])
        elif state == 'waiting':
            self.client.zrem(self.keys.ready(queue), key)
            self.client.zadd(self.keys.waiting(queue), {key: self.now})
        return key

    def throttled(self, id: str, queue: str, rank: int) -> str:
        lane = take_lane({'x-throttles': [{'name': 'T', 'concurrency': 0}]})
        key = pack_id(id)
        self._number += 1
        self.publish([Outgoing(key, queue, rank, '0', b'', lane=lane)], self._number - 1)
        return key

    def fail(self, id: str, detail: str = 'rejected') -> None:
        self.settle(FAIL, self.held[id], detail=detail)

    def die(self, id: str, group: str, queue: str = 'q') -> None:
        self.add(id, queue)
        self.held[id] = self.take(1, queue)[0]
        self.fail(id, f'{{"reason": "failed", "group": "{group}"}}')

    def settle(self, verdict: Any, *held: Delivery, detail: str = '') -> Any:
        return super().settle(verdict, *held, reason=detail)

    def state(self, id: str = 'a') -> str | None:
        job = self.jobs.get(id)
        return None if job is None else job.state

    def left(self) -> set[str]:
        """Keys that jobs leave; what always stays is left out."""
        always = {'meta', 'pub', 'alarm', 'fenced', 'w:q', 'w:r', 'queues', 'noticed'}
        return self.key_names() - always


@pytest.fixture
def bench(store: Store) -> JobBench:
    return JobBench(store)


Action = Callable[[Jobs], Any]

ACTIONS: dict[str, Action] = {
    'cancel': lambda jobs: jobs.cancel('a'),
    'move': lambda jobs: jobs.move('a', 'r'),
    'set_priority': lambda jobs: jobs.set_priority('a', 7),
    'reschedule': lambda jobs: jobs.reschedule('a', START + 10 * HOUR),
    'replay': lambda jobs: jobs.replay('a'),
    'discard': lambda jobs: jobs.discard('a'),
}

#: What becomes of a job; an action that is missing here is refused.
FITTING = {
    'ready': {'cancel', 'move', 'set_priority', 'reschedule'},
    'lost': {'cancel', 'move', 'set_priority', 'reschedule'},
    'delayed': {'cancel', 'move', 'set_priority', 'reschedule'},
    'waiting': {'cancel', 'move', 'set_priority', 'reschedule'},
    'leased': {'cancel'},
    'failed': {'move', 'set_priority', 'replay', 'discard'},
    'completed': {'discard'},
}

each_action = pytest.mark.parametrize('action', ACTIONS)
each_state = pytest.mark.parametrize('state', FITTING)


def outcome(bench: JobBench, action: str) -> Any:
    try:
        return ACTIONS[action](bench.jobs)
    except ReliableError as error:
        return type(error)


# -- every operation on every state --------------------------------------------------------


@each_action
@each_state
def test_an_action_fits_or_is_refused_and_changes_nothing(
    bench: JobBench, state: str, action: str
) -> None:
    bench.make(state)
    before = bench.contents()
    if action in FITTING[state]:
        ACTIONS[action](bench.jobs)
        assert bench.contents() != before
        return
    with pytest.raises(WrongState) as caught:
        ACTIONS[action](bench.jobs)
    assert caught.value.state == ('ready' if state == 'lost' else state)
    assert bench.contents() == before


@each_action
@each_state
def test_an_action_may_be_repeated(bench: JobBench, state: str, action: str) -> None:
    bench.make(state)
    outcome(bench, action)
    after = bench.contents()
    again = outcome(bench, action)
    assert bench.contents() == after
    assert again in (None, 'unknown', UnknownJob, WrongState)


@each_action
@each_state
def test_a_job_stays_in_one_place(bench: JobBench, state: str, action: str) -> None:
    key = bench.make(state)
    outcome(bench, action)
    keys = bench.keys
    spots = (
        keys.ready, keys.delayed, keys.waiting, keys.leased, keys.dead, keys.completed,
    )  # fmt: skip
    places = [
        spot(queue)
        for queue in ('q', 'r')
        for spot in spots
        if bench.client.zscore(spot(queue), key) is not None
    ]
    alive = bench.client.exists(keys.job(key))
    assert len(places) == alive


@each_action
@each_state
def test_what_is_gone_leaves_nothing(bench: JobBench, state: str, action: str) -> None:
    bench.make(state)
    outcome(bench, action)
    bench.jobs.purge('q', STATES_TO_PURGE)
    bench.jobs.purge('r', STATES_TO_PURGE)
    for delivery in bench.held.values():
        bench.settle(ACK, delivery)
    assert bench.left() == set()


STATES_TO_PURGE = ('ready', 'delayed', 'waiting', 'failed', 'completed')


@each_action
def test_an_unknown_id_is_an_error(bench: JobBench, action: str) -> None:
    bench.add('other')
    before = bench.contents()
    assert outcome(bench, action) in ('unknown', UnknownJob)
    assert bench.contents() == before


@each_action
@pytest.mark.parametrize('damage', ['missing', 'foreign', 'cut', 'text'])
def test_what_is_no_record_of_ours_is_left_alone(bench: JobBench, action: str, damage: str) -> None:
    key = bench.keys.job(bench.make('ready'))
    bench.client.delete(key)
    if damage == 'foreign':
        bench.client.rpush(key, 'theirs')
    elif damage == 'cut':
        bench.client.set(key, '-00000')
    elif damage == 'text':
        bench.client.set(key, 'something else altogether, and long enough')
    before = {name: bench.client.type(name) for name in bench.client.scan_iter()}
    assert outcome(bench, action) in ('unknown', UnknownJob)
    assert bench.jobs.get('a') is None
    assert {name: bench.client.type(name) for name in bench.client.scan_iter()} == before
    assert bench.jobs.in_state('q', 'ready') == []


def test_a_record_that_is_nowhere_can_be_canceled(bench: JobBench) -> None:
    bench.make('ready')
    bench.client.delete(bench.keys.ready('q'))
    assert bench.jobs.get('a') is None
    assert bench.jobs.cancel('a') == 'gone'
    assert bench.left() == set()


@pytest.mark.parametrize('value', [-1, 256, 2.5, math.nan, math.inf, '9', None, True, 10**400])
def test_a_priority_that_makes_no_sense_is_refused(bench: JobBench, value: Any) -> None:
    bench.make('ready')
    before = bench.contents()
    with pytest.raises(InvalidArgument, match='from 0 to 255'):
        bench.jobs.set_priority('a', value)
    assert bench.contents() == before


@pytest.mark.parametrize('value', [math.nan, math.inf, 'soon', None, True, 1e300, 10**400])
def test_a_time_that_makes_no_sense_is_refused(bench: JobBench, value: Any) -> None:
    bench.make('ready')
    before = bench.contents()
    with pytest.raises(InvalidArgument, match='milliseconds'):
        bench.jobs.reschedule('a', value)
    assert bench.contents() == before


@pytest.mark.parametrize('name', ['', None, 'x' * 10_000, '\ud800', 7])
def test_a_queue_that_cannot_be_is_refused(bench: JobBench, name: Any) -> None:
    bench.make('ready')
    for action in (lambda: bench.jobs.move('a', name), lambda: bench.jobs.pause(name)):
        with pytest.raises(InvalidArgument, match='queue'):
            action()


def test_pages_and_states_that_make_no_sense_are_refused(bench: JobBench) -> None:
    for call in (
        lambda: bench.jobs.in_state('q', 'ready', -1),
        lambda: bench.jobs.in_state('q', 'ready', 0, -1),
        lambda: bench.jobs.in_state('q', 'asleep'),  # type: ignore[arg-type]
        lambda: bench.jobs.failed(limit=1.5),  # type: ignore[arg-type]
        lambda: bench.jobs.groups(offset=True, limit=-1),
        lambda: bench.jobs.purge('q', ['leased']),
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_errors_can_be_pickled() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(WrongState('no', 'leased')))
    assert (str(error), error.state) == ('no', 'leased')


# -- looking -------------------------------------------------------------------------------


def test_what_a_job_tells(bench: JobBench) -> None:
    bench.add('a', rank=9, due=f'+{HOUR}')
    job = bench.jobs.get('a')
    assert job is not None
    assert (job.key, job.id, job.queue, job.state) == ('=a', 'a', 'q', 'delayed')
    assert (job.priority, job.published_at, job.due) == (9, START, START + HOUR)
    assert (job.deliveries, job.worker, job.lease_expires_at, job.failure) == (0, None, None, None)
    assert job.envelope == b'message a'


def test_what_a_leased_job_tells(bench: JobBench) -> None:
    bench.make('leased')
    job = bench.jobs.get('a')
    assert job is not None
    assert (job.state, job.deliveries, job.worker) == ('leased', 1, 'w')
    assert job.lease_expires_at == START + LEASE
    bench.settle(REQUEUE, bench.held['a'])
    again = bench.jobs.get('a')
    assert again is not None
    assert (again.state, again.deliveries, again.worker) == ('ready', 1, None)


def test_what_a_dead_letter_tells(bench: JobBench) -> None:
    bench.make('leased')
    bench.fail(
        'a', '{"reason": "failed", "type": "E", "message": "m", "traceback": "t", "group": "g"}'
    )
    job = bench.jobs.get('a')
    assert job is not None and job.failure is not None
    failure = job.failure
    assert (failure.reason, failure.type, failure.message) == ('failed', 'E', 'm')
    assert (failure.traceback, failure.group, failure.at) == ('t', 'g', START)


def test_a_queue_of_a_long_name_and_a_lowest_first_priority(
    store_factory: Callable[..., Store],
) -> None:
    bench = JobBench(store_factory(priority_order='lowest-first'))
    name = 'ü' * 400
    bench.add('a', queue=name, rank=bench.operations.options.rank(3))
    job = bench.jobs.get('a')
    assert job is not None and (job.queue, job.priority) == (name, 3)
    bench.jobs.set_priority('a', 0)
    bench.add('b', queue=name, rank=bench.operations.options.rank(3))
    assert [one.id for one in bench.jobs.in_state(name, 'ready')] == ['a', 'b']


@pytest.mark.parametrize(
    'id', ['a', '', '=x', '~1~x', '00000000-0000-0000-0000-000000000001', 'ü', 'x' * 22]
)
def test_ids_come_back(id: str) -> None:
    assert unpack_id(pack_id(id)) == id
    assert unpack_id(f'~12~{pack_id(id)}') == id


def test_foreign_data_beside_a_job_is_passed_over(bench: JobBench) -> None:
    key = bench.make('failed')
    bench.client.delete(bench.keys.extra(key))
    bench.client.rpush(bench.keys.extra(key), 'theirs')
    job = bench.jobs.get('a')
    assert job is not None and job.failure is not None
    assert job.failure.reason == ''
    bench.jobs.replay('a')
    assert bench.state() == 'ready'


def test_what_a_waiting_job_tells(bench: JobBench) -> None:
    keys = tuple(bench.add(id) for id in 'ab')
    waiting = Outgoing('=c', 'q', 0, '+5000', b'', depends=Dependencies(keys, Policy.IGNORE))
    bench.publish([waiting], 100, lane='other')
    job, wanted = bench.jobs.get('c'), bench.jobs.get('a')
    assert job is not None and wanted is not None
    assert (job.state, job.due, job.policy) == ('waiting', START + 5000, 'ignore')
    assert (sorted(job.depends_on), job.dependencies) == (['a', 'b'], 2)
    assert (wanted.dependents, wanted.dependent_count) == (('c',), 1)
    assert [one.id for one in bench.jobs.in_state('q', 'waiting')] == ['c']


@pytest.mark.parametrize('action', ['move', 'set_priority', 'reschedule'])
def test_a_waiting_job_that_was_changed_starts_as_it_is_now(bench: JobBench, action: str) -> None:
    waiting = Outgoing('=a', 'q', 0, '0', b'', depends=Dependencies((bench.add('b'),)))
    bench.publish([waiting], 100, lane='other')
    ACTIONS[action](bench.jobs)
    bench.settle(ACK, *bench.take())
    bench.claim(0)
    job = bench.jobs.get('a')
    assert job is not None
    now = {'move': job.queue, 'set_priority': job.priority, 'reschedule': job.due}[action]
    assert now == {'move': 'r', 'set_priority': 7, 'reschedule': START + 10 * HOUR}[action]
    assert job.state == ('delayed' if action == 'reschedule' else 'ready')


@pytest.mark.parametrize('end', ['cancel', 'purge'])
def test_a_waiting_job_that_ends_leaves_no_edge(bench: JobBench, end: str) -> None:
    waiting = Outgoing('=a', 'r', 0, '0', b'', depends=Dependencies((bench.add('b'),)))
    bench.publish([waiting], 100, lane='other')
    assert bench.jobs.cancel('a') == 'gone' if end == 'cancel' else bench.jobs.purge('r') == 1
    assert bench.left() == {'j:=b', 'r:q'}


def test_a_dead_letter_that_is_discarded_fails_those_that_wait(bench: JobBench) -> None:
    waiting = Outgoing('=a', 'r', 0, '0', b'', depends=Dependencies((bench.add('b'),)))
    bench.publish([waiting], 100, lane='other')
    bench.settle(FAIL, *bench.take())
    assert bench.state() == 'waiting'
    bench.jobs.discard('b')
    bench.claim(0)
    job = bench.jobs.get('a')
    assert job is not None and job.failure is not None
    assert job.failure.reason == 'dependency'


def test_foreign_data_in_the_place_of_a_queue_is_one_clear_error(bench: JobBench) -> None:
    bench.client.set(bench.keys.ready('q'), 'theirs')
    with pytest.raises(LayoutError, match='another program'):
        bench.jobs.in_state('q', 'ready')
    assert bench.jobs.counts('q') == QueueCounts(0, 0, 0, 0)


def test_pages_of_each_state(bench: JobBench) -> None:
    for number in range(7):
        bench.add(f'r{number}', rank=9 - number)
        bench.add(f'd{number}', due=f'+{(9 - number) * HOUR}')
    ready = [job.id for job in bench.jobs.in_state('q', 'ready')]
    assert ready == [f'r{number}' for number in range(7)]
    assert [job.id for job in bench.jobs.in_state('q', 'ready', 2, 3)] == ready[2:5]
    assert [job.id for job in bench.jobs.in_state('q', 'ready', 5, 10)] == ready[5:]
    assert bench.jobs.in_state('q', 'ready', 7, 10) == []
    assert bench.jobs.in_state('q', 'ready', 0, 0) == []
    delayed = [job.id for job in bench.jobs.in_state('q', 'delayed')]
    assert delayed == [f'd{number}' for number in reversed(range(7))]
    assert bench.jobs.counts('q') == QueueCounts(7, 7, 0, 0)


def test_a_page_may_be_longer_than_one_call(bench: JobBench) -> None:
    bench.publish(
        [Outgoing(pack_id(f'{n:04}'), 'q', 0, '0', b'') for n in range(200)], first=0, lane='x'
    )
    assert len(bench.jobs.in_state('q', 'ready', 0, 1000)) == 200
    assert [job.id for job in bench.jobs.in_state('q', 'ready', 90, 30)] == [
        f'{number:04}' for number in range(90, 120)
    ]


# -- several jobs under one id -------------------------------------------------------------


def test_an_id_that_is_used_twice(bench: JobBench) -> None:
    first = bench.add('a')
    bench.wait(5)
    second = bench.add('a', queue='r')
    newest = bench.jobs.get('a')
    assert newest is not None and newest.key == second
    assert [job.key for job in bench.jobs.all('a')] == [second, first]
    assert {job.id for job in bench.jobs.all('a')} == {'a'}


@pytest.mark.parametrize('end', ['ack', 'cancel', 'purge', 'discard', 'trim', 'kombu purge'])
def test_the_list_of_jobs_under_an_id_goes_with_them(bench: JobBench, end: str) -> None:
    bench.add('a')
    bench.add('a')
    bench.add('a')
    if end == 'ack':
        bench.settle(ACK, *bench.take())
    elif end == 'cancel':
        assert bench.jobs.cancel('a') == 'gone'
    elif end == 'purge':
        bench.jobs.purge('q')
    elif end == 'kombu purge':
        bench.store.purge('q')
    else:
        bench.settle(FAIL, *bench.take())
        if end == 'discard':
            bench.jobs.purge('q', ['failed'])
        else:
            bench.wait(8 * 24 * HOUR)
            bench.claim()
    assert bench.jobs.all('a') == []
    assert bench.left() == set()


def test_of_several_the_one_that_has_not_failed_is_meant(bench: JobBench) -> None:
    bench.make('failed')
    bench.wait(10)
    second = bench.add('a', queue='r')
    newest = bench.jobs.get('a')
    assert newest is not None and newest.key == second
    bench.jobs.set_priority('a', 5)
    assert bench.jobs.all('a')[0].priority == 5
    bench.jobs.replay('a')  # there is one to replay
    assert sorted(job.state for job in bench.jobs.all('a')) == ['ready', 'ready']


def test_one_of_several_is_meant_by_what_was_looked_up(bench: JobBench) -> None:
    first = bench.add('a')
    second = bench.add('a')
    job = next(job for job in bench.jobs.all('a') if job.key == first)
    assert bench.jobs.cancel(job) == 'gone'
    assert [job.key for job in bench.jobs.all('a')] == [second]


def test_canceling_an_id_spares_its_dead_letters(bench: JobBench) -> None:
    bench.make('failed')
    bench.add('a', queue='r')
    assert bench.jobs.cancel('a') == 'gone'
    assert bench.state() == 'failed'


# -- cancel --------------------------------------------------------------------------------


@pytest.mark.parametrize('state', ['ready', 'delayed', 'waiting'])
def test_what_nobody_holds_is_gone_at_once(bench: JobBench, state: str) -> None:
    bench.make(state)
    assert bench.jobs.cancel('a') == 'gone'
    bench.live(2 * HOUR)
    assert bench.take() == []
    assert bench.left() == set()


@pytest.mark.parametrize('state', ['leased', 'lost'])
def test_what_somebody_holds_is_taken_from_him(bench: JobBench, state: str) -> None:
    bench.make(state)
    held = bench.held['a']
    assert bench.jobs.cancel('a') == 'requested'
    assert bench.jobs.get('a') is None
    assert bench.renew(held) == [FENCED]
    assert bench.settle(REQUEUE, held) == [FENCED]
    assert bench.settle(ACK, held) == [FENCED]
    bench.live(2 * LEASE)
    assert bench.take() == []
    assert bench.left() == set()


def test_a_canceled_run_has_no_next_one(bench: JobBench) -> None:
    bench.make('leased')
    bench.jobs.cancel('a')
    token = bench.held['a'].token
    retry = Outgoing('=a', 'q', 0, '0', b'', run=(token, '=a'))
    assert bench.publish([retry], 1, lane='other') == ('!',)
    assert bench.take() == []


def test_what_others_wait_for_is_not_canceled_unless_asked(bench: JobBench) -> None:
    key = bench.make('ready')
    waiting = Outgoing('=b', 'q', 0, '0', b'', depends=Dependencies((key,)))
    bench.publish([waiting], 100, lane='other')
    assert bench.state('b') == 'waiting'
    bench.add('a')
    before = bench.contents()
    with pytest.raises(HasDependents, match='cascade'):
        bench.jobs.cancel('a')
    assert bench.contents() == before, 'not even the other one'
    assert bench.jobs.cancel('a', cascade=True) == 'gone'
    bench.claim(0)
    assert bench.state('b') == 'failed'


@pytest.mark.parametrize('action', ['cancel', 'move'])
def test_a_job_that_goes_leaves_a_marker_only_if_somebody_is_needed(
    bench: JobBench, action: str
) -> None:
    bench.add('late', due=f'+{HOUR}')
    bench.make('ready')
    outcome(bench, action)
    assert bench.marked(), 'somebody must watch the clock'
    bench.jobs.cancel('late')
    assert not bench.marked()


# -- move ----------------------------------------------------------------------------------


def test_a_moved_job_keeps_its_place(bench: JobBench) -> None:
    for id in 'abc':
        bench.add(id, queue='r' if id == 'b' else 'q')
    bench.add('late', queue='q', rank=9)
    bench.jobs.move('b', 'q')
    assert [delivery.id for delivery in bench.take()] == ['=late', '=a', '=b', '=c']
    assert bench.counts('r') == QueueCounts(0, 0, 0, 0)


def test_a_moved_job_wakes_those_who_serve_its_new_queue(bench: JobBench) -> None:
    bench.make('ready')
    bench.claim(0, 'r')
    assert not bench.marked('r')
    bench.jobs.move('a', 'r')
    assert bench.marked('r')
    (delivery,) = bench.take(queues='r')
    assert (delivery.id, delivery.envelope) == ('=a', b'message a')
    assert bench.settle(ACK, delivery) == [DONE]
    assert bench.left() == set()


def test_a_moved_delay_ends_in_time(bench: JobBench) -> None:
    bench.make('delayed')
    bench.jobs.move('a', 'r')
    bench.wait(HOUR)
    assert bench.take(queues='q') == []
    assert [one.queue for one in bench.take(queues='r')] == ['r']


def test_a_moved_dead_letter_is_replayed_there(bench: JobBench) -> None:
    bench.make('failed')
    bench.jobs.move('a', 'r')
    assert [job.id for job in bench.jobs.failed('r')] == ['a']
    bench.jobs.replay('a')
    assert bench.take_ids(queues='r') == ['=a']


def test_a_moved_dead_letter_is_kept_as_long(bench: JobBench) -> None:
    bench.make('failed')
    bench.jobs.move('a', 'r')
    bench.wait(7 * 24 * HOUR)
    bench.claim(0)
    assert bench.state() == 'failed'
    bench.live(MINUTE)
    assert bench.left() == set()


def test_a_moved_job_that_was_lost_is_its_owners_no_more(bench: JobBench) -> None:
    bench.make('lost')
    bench.jobs.move('a', 'r')
    assert bench.renew(bench.held['a']) == [FENCED]
    assert bench.settle(ACK, bench.held['a']) == [FENCED]
    (delivery,) = bench.take(queues='r')
    assert delivery.deliveries == 2
    assert bench.settle(ACK, delivery) == [DONE]
    assert bench.left() == set()


def test_nothing_is_moved_into_a_queue_that_was_deleted(bench: JobBench) -> None:
    bench.make('ready')
    bench.store.run(bench.operations.declare('r', HOUR))
    bench.store.delete('r')
    before = bench.contents()
    with pytest.raises(UnknownQueue):
        bench.jobs.move('a', 'r')
    assert bench.contents() == before
    bench.store.run(bench.operations.declare('r', HOUR))
    bench.jobs.move('a', 'r')
    assert bench.take_ids(queues='r') == ['=a']


def test_a_queue_that_is_somebody_elses_key_takes_nothing(bench: JobBench) -> None:
    bench.make('ready')
    bench.client.set(bench.keys.ready('r'), 'theirs')
    before = bench.client.zrange(bench.keys.ready('q'), 0, -1)
    with pytest.raises(ReliableError):
        bench.jobs.move('a', 'r')
    assert bench.client.zrange(bench.keys.ready('q'), 0, -1) == before
    assert bench.take_ids() == ['=a']


# -- priority and time ---------------------------------------------------------------------


def test_a_new_priority_is_a_new_order(bench: JobBench) -> None:
    for id in 'abcd':
        bench.add(id)
    bench.jobs.set_priority('c', 255)
    bench.jobs.set_priority('d', 255)
    bench.jobs.set_priority('c', 0)
    assert bench.take_ids() == ['=d', '=a', '=b', '=c']


def test_a_delayed_job_has_its_new_priority_when_it_is_due(bench: JobBench) -> None:
    bench.make('delayed')
    bench.jobs.set_priority('a', 9)
    bench.add('b', rank=5)
    bench.wait(HOUR)
    assert bench.take_ids() == ['=a', '=b']


def test_a_lost_job_comes_back_to_the_place_of_its_new_priority(bench: JobBench) -> None:
    bench.make('lost')
    bench.jobs.set_priority('a', 9)
    bench.renew(bench.held['a'])
    bench.add('b', rank=5)
    assert bench.settle(RELEASE, bench.held['a']) == [DONE]
    assert bench.take_ids() == ['=a', '=b']


def test_a_ready_job_can_be_put_off(bench: JobBench) -> None:
    bench.make('ready')
    bench.claim(0)
    bench.jobs.reschedule('a', START + MINUTE)
    assert bench.marked(), 'somebody must watch the clock'
    assert bench.claim().wake_in == 60
    bench.wait(MINUTE)
    assert bench.take_ids() == ['=a']


def test_a_lost_job_that_is_put_off_is_its_owners_no_more(bench: JobBench) -> None:
    bench.make('lost')
    bench.jobs.reschedule('a', bench.now + MINUTE)
    assert bench.renew(bench.held['a']) == [FENCED]
    assert bench.state() == 'delayed'


def test_a_delay_can_be_changed_both_ways(bench: JobBench) -> None:
    bench.make('delayed')
    bench.claim(0)
    bench.jobs.reschedule('a', START + MINUTE)
    assert bench.marked()
    bench.jobs.reschedule('a', START + 2 * MINUTE)
    bench.wait(MINUTE)
    assert bench.take() == []
    bench.wait(MINUTE)
    assert bench.take_ids() == ['=a']


@pytest.mark.parametrize('when', [0, -5, START - HOUR, START, 1.5])
def test_what_is_put_into_the_past_runs_now(bench: JobBench, when: float) -> None:
    bench.make('delayed')
    bench.claim(0)
    bench.jobs.reschedule('a', when)
    assert bench.marked()
    assert bench.take_ids() == ['=a']


def test_a_ready_job_that_is_put_into_the_past_keeps_its_place(bench: JobBench) -> None:
    bench.add('a')
    bench.add('b')
    bench.jobs.reschedule('a', START - 1)
    assert bench.take_ids() == ['=a', '=b']


def test_a_waiting_job_has_its_new_time_for_later(bench: JobBench) -> None:
    bench.make('waiting')
    bench.jobs.reschedule('a', START + HOUR)
    job = bench.jobs.get('a')
    assert job is not None and (job.state, job.due) == ('waiting', START + HOUR)


# -- dead letters --------------------------------------------------------------------------


def test_a_replayed_job_has_all_its_deliveries_again(
    store_factory: Callable[..., Store],
) -> None:
    bench = JobBench(store_factory(delivery_limit=2))
    bench.add('a')
    for _ in range(2):
        bench.settle(REQUEUE, *bench.take())
    assert bench.take() == []
    job = bench.jobs.get('a')
    assert job is not None and job.failure is not None
    assert job.failure.reason == job.failure.group == 'delivery-limit'
    bench.jobs.replay('a')
    (delivery,) = bench.take()
    assert delivery.deliveries == 1
    bench.settle(ACK, delivery)
    assert bench.left() == set()


def test_a_replayed_job_wakes_a_worker_and_comes_last(bench: JobBench) -> None:
    bench.make('failed')
    bench.claim(0)
    assert not bench.marked()
    bench.add('b')
    bench.jobs.replay('a')
    assert bench.marked()
    assert bench.take_ids() == ['=b', '=a']


def test_dead_letters_by_queue_and_group(bench: JobBench) -> None:
    for number in range(6):
        bench.wait(10)
        bench.die(f'{number}', group='even' if number % 2 == 0 else 'odd', queue='qr'[number // 3])

    def found(**what: Any) -> list[str]:
        return [job.id for job in bench.jobs.failed(**what)]

    assert found() == ['5', '4', '3', '2', '1', '0']
    assert found(queue='q') == ['2', '1', '0']
    assert found(group='odd') == ['5', '3', '1']
    assert found(queue='r', group='odd') == ['5', '3']
    assert found(offset=1, limit=2) == ['4', '3']
    assert found(queue='q', offset=2) == ['0']
    assert found(group='odd', limit=1) == ['5']
    assert found(queue='q', group='even', offset=1) == ['0']
    assert found(group='none') == found(queue='none') == []
    assert bench.jobs.groups() == [Group('odd', 3, START + 60), Group('even', 3, START + 50)]
    assert bench.jobs.groups(1, 1) == [Group('even', 3, START + 50)]


@pytest.mark.parametrize('end', ['replay_group', 'discard_group'])
def test_a_group_ends_in_bounded_steps(bench: JobBench, end: str) -> None:
    ids = [f'{number:03}' for number in range(250)]
    for id in ids:
        bench.die(id, 'g', queue='r' if int(id) % 2 else 'q')
    bench.die('other', 'h')
    steps: list[int] = []
    assert getattr(bench.jobs, end)('g', steps.append) == 250
    assert steps == [50, 100, 150, 200, 250]
    assert [group.name for group in bench.jobs.groups()] == ['h']
    assert bench.jobs.counts('q').dead == 1
    assert bench.jobs.counts('q').ready == (125 if end == 'replay_group' else 0)
    assert getattr(bench.jobs, end)('g') == 0


def test_what_dies_again_meanwhile_is_not_replayed_again(bench: JobBench) -> None:
    bench.die('a', 'g')

    def die_again(count: int) -> None:
        bench.wait(1)
        bench.held['a'] = bench.take(1)[0]
        bench.fail('a', '{"reason": "failed", "group": "g"}')

    assert bench.jobs.replay_group('g', die_again) == 1
    assert bench.state() == 'failed'


@pytest.mark.parametrize('end', ['replay_group', 'discard_group'])
def test_a_group_with_stale_members_ends_as_well(bench: JobBench, end: str) -> None:
    bench.die('a', 'g')
    bench.client.zadd(bench.keys.group('g'), {'=ghost': 1, '=live': 2})
    bench.add('live', queue='r')
    assert getattr(bench.jobs, end)('g') == 1
    assert bench.jobs.groups() == []
    assert bench.state('live') == 'ready'


@pytest.mark.parametrize('end', ['replay', 'discard', 'age', 'number', 'purge'])
def test_the_groups_know_what_is_dead(store_factory: Callable[..., Store], end: str) -> None:
    bench = JobBench(store_factory(failed_limit=2))
    for id in 'ab':
        bench.die(id, 'g')
        bench.wait(1)
    assert [group.count for group in bench.jobs.groups()] == [2]
    if end == 'replay':
        bench.jobs.replay('a')
    elif end == 'discard':
        bench.jobs.discard('a')
    elif end == 'number':
        bench.die('c', 'other')
    elif end == 'purge':
        bench.jobs.purge('q', ['failed'])
    else:
        bench.wait(7 * 24 * HOUR + HOUR)
        bench.claim()
    groups = {group.name: group.count for group in bench.jobs.groups()}
    known = {'age': {}, 'purge': {}, 'number': {'g': 1, 'other': 1}}.get(end, {'g': 1})
    assert groups == known
    if not known:
        assert bench.left() == set()


def test_of_a_group_those_in_deleted_queues_stay(bench: JobBench) -> None:
    bench.store.run(bench.operations.declare('r', HOUR))
    for number in range(60):
        bench.die(f'r{number}', 'g', queue='r')
    bench.die('a', 'g')
    bench.store.delete('r')
    assert bench.jobs.replay_group('g') == 1
    assert [(group.name, group.count) for group in bench.jobs.groups()] == [('g', 60)]
    assert bench.state() == 'ready'


def test_a_dead_letter_in_a_deleted_queue_is_kept(bench: JobBench) -> None:
    bench.store.run(bench.operations.declare('q', HOUR))
    bench.make('failed')
    bench.store.delete('q')
    with pytest.raises(UnknownQueue):
        bench.jobs.replay('a')
    assert bench.state() == 'failed'
    bench.jobs.move('a', 'r')
    bench.jobs.replay('a')
    assert bench.take_ids(queues='r') == ['=a']


def test_foreign_data_under_the_groups_stands_in_nobodys_way(bench: JobBench) -> None:
    bench.client.set(bench.keys.groups, 'theirs')
    bench.client.set(bench.keys.group('g'), 'theirs')
    bench.die('a', 'g')
    assert bench.state() == 'failed'
    bench.jobs.replay('a')
    assert bench.state() == 'ready'


# -- history -------------------------------------------------------------------------------


def events(bench: JobBench, id: str = 'a') -> list[str]:
    job = bench.jobs.get(id)
    assert job is not None
    return [event.event for event in job.history]


def test_a_job_remembers_what_befell_it(bench: JobBench) -> None:
    bench.make('leased')
    bench.settle(RELEASE, bench.held['a'])
    bench.settle(REQUEUE, *bench.take())
    bench.take()
    bench.live(2 * LEASE)
    bench.jobs.move('a', 'r')
    bench.settle(FAIL, *bench.take(queues='r'), detail='why')
    bench.jobs.replay('a')
    (delivery,) = bench.take(queues='r')
    retry = Outgoing('=a', 'q', 0, '0', b'', run=(delivery.token, '=a'))
    bench.publish([retry], 1, lane='other')
    assert events(bench) == [
        'requeued', 'lost', 'moved', 'failed', 'replayed', 'retried'
    ]  # fmt: skip
    job = bench.jobs.get('a')
    assert job is not None
    assert job.history[0] == Event(START, 'requeued')
    assert job.history[1].detail == 'w'
    assert job.history[2].detail == 'q > r'
    assert job.history[3].detail == 'why'


def test_a_history_has_an_end(bench: JobBench) -> None:
    bench.add('a')
    for number in range(30):
        bench.wait(1)
        bench.jobs.move('a', 'r' if number % 2 else 's')
    job = bench.jobs.get('a')
    assert job is not None
    assert [event.at - START for event in job.history] == [1, *range(12, 31)]


def test_a_detail_is_one_line(bench: JobBench) -> None:
    bench.make('leased')
    bench.fail('a', 'two\nlines\u2028and ' + 'more ' * 100)
    job = bench.jobs.get('a')
    assert job is not None
    (event,) = job.history
    assert event.detail.startswith('two lines')
    assert len(event.detail) <= 200


def test_success_costs_no_history(bench: JobBench) -> None:
    key = bench.make('leased')
    assert not bench.client.exists(bench.keys.extra(key))
    bench.settle(ACK, bench.held['a'])
    assert bench.left() == set()


# -- pause ---------------------------------------------------------------------------------


def test_a_paused_queue_is_not_claimed_from_and_wakes_nobody(bench: JobBench) -> None:
    bench.add('a')
    assert bench.jobs.pause('q')
    assert not bench.marked()
    bench.add('b')
    claimed = bench.claim()
    assert (claimed.deliveries, claimed.left) == ((), False)
    assert not bench.marked()
    assert bench.counts() == QueueCounts(2, 0, 0, 0, paused=True)
    assert bench.jobs.paused() == ['q']


def test_a_resumed_queue_wakes_somebody(bench: JobBench) -> None:
    bench.jobs.pause('q')
    bench.add('a')
    assert bench.jobs.resume('q')
    assert bench.marked()
    assert bench.take_ids() == ['=a']
    assert bench.meta('paused') == 0
    assert bench.jobs.paused() == []


def test_pausing_twice_is_pausing_once(bench: JobBench) -> None:
    assert bench.jobs.pause('q')
    assert not bench.jobs.pause('q')
    bench.jobs.pause('r')
    assert bench.meta('paused') == 2
    assert bench.jobs.resume('q')
    assert not bench.jobs.resume('q')
    assert bench.meta('paused') == 1


def test_delays_that_end_in_a_paused_queue_wait_for_its_end(bench: JobBench) -> None:
    bench.make('delayed')
    bench.claim()
    bench.jobs.pause('q')
    bench.wait(HOUR)
    assert bench.take() == []
    assert not bench.marked()
    bench.jobs.resume('q')
    assert bench.take_ids() == ['=a']


def test_who_watches_the_clock_is_found_when_a_queue_goes_on(bench: JobBench) -> None:
    bench.jobs.pause('q')
    bench.make('delayed')
    assert not bench.marked()
    bench.jobs.resume('q')
    assert bench.marked()
    assert bench.claim().wake_in == HOUR / 1000


@pytest.mark.parametrize('verdict', [RELEASE, REQUEUE])
def test_what_is_given_back_to_a_paused_queue_waits(bench: JobBench, verdict: Any) -> None:
    bench.make('leased')
    bench.jobs.pause('q')
    assert bench.settle(verdict, bench.held['a']) == [DONE]
    assert not bench.marked()
    assert bench.take() == []
    bench.jobs.resume('q')
    assert bench.take_ids() == ['=a']


def test_what_was_taken_before_the_pause_goes_on(bench: JobBench) -> None:
    bench.make('leased')
    bench.jobs.pause('q')
    assert bench.renew(bench.held['a']) == [DONE]
    assert bench.settle(ACK, bench.held['a']) == [DONE]


def test_leases_end_in_a_paused_queue_too(bench: JobBench) -> None:
    bench.make('leased')
    bench.jobs.pause('q')
    bench.live(2 * LEASE)
    assert bench.counts().ready == 1
    assert not bench.marked()


def test_a_paused_queue_does_not_stop_others(bench: JobBench) -> None:
    bench.add('a')
    bench.add('b', queue='r')
    bench.jobs.pause('q')
    assert bench.take_ids(queues='q r') == ['=b']
    bench.add('c', queue='r')
    assert bench.marked('r')


@pytest.mark.parametrize('action', ['move', 'replay', 'reschedule'])
def test_actions_do_not_wake_a_paused_queue(bench: JobBench, action: str) -> None:
    if action == 'move':
        bench.make('ready', queue='r')
        bench.jobs.pause('q')
        bench.jobs.move('a', 'q')
    elif action == 'replay':
        bench.make('failed')
        bench.jobs.pause('q')
        bench.jobs.replay('a')
    else:
        bench.make('delayed')
        bench.jobs.pause('q')
        bench.jobs.reschedule('a', START)
    assert not bench.marked()
    assert bench.take() == []
    bench.jobs.resume('q')
    assert bench.take_ids() == ['=a']


@pytest.mark.parametrize('life', [0, HOUR])
def test_a_deleted_queue_is_paused_no_more(bench: JobBench, life: int) -> None:
    bench.store.run(bench.operations.declare('q', life))
    bench.jobs.pause('q')
    bench.store.delete('q')
    assert bench.jobs.paused() == []
    assert bench.meta('paused') == 0


@pytest.mark.parametrize('state', ['ready', 'failed'])
def test_a_queue_to_which_jobs_were_moved_is_listed(bench: JobBench, state: str) -> None:
    bench.make(state)
    bench.jobs.move('a', 'never declared')
    assert 'never declared' in bench.jobs.queues()


def test_a_paused_queue_is_listed(bench: JobBench) -> None:
    bench.jobs.pause('empty')
    assert bench.jobs.queues() == ['empty']


def test_a_queue_that_ends_by_itself_is_neither_paused_nor_listed(bench: JobBench) -> None:
    bench.store.run(bench.operations.declare('r', 1000))
    bench.jobs.pause('r')
    assert bench.jobs.queues() == ['r']
    bench.claim(0)
    bench.wait(2000)
    bench.claim(0)
    assert bench.jobs.paused() == bench.jobs.queues() == []


# -- purge and the list of queues ----------------------------------------------------------


def test_a_purge_by_state_spares_the_others(bench: JobBench) -> None:
    for state in STATES:
        for number in range(3):
            bench.make(state, f'{state}{number}')
            if state == 'ready':  # or the next would be leased instead
                bench.jobs.move(f'{state}{number}', 'aside')
    for number in range(3):
        bench.jobs.move(f'ready{number}', 'q')
    full = QueueCounts(3, 3, 3, 3, 3, throttled=3, completed=3)
    assert bench.counts() == full
    for state, left in (
        ('delayed', QueueCounts(3, 0, 3, 3, 3, throttled=3, completed=3)),
        ('failed', QueueCounts(3, 0, 3, 0, 3, throttled=3, completed=3)),
        ('waiting', QueueCounts(3, 0, 3, 0, 0, throttled=3, completed=3)),
        ('completed', QueueCounts(3, 0, 3, 0, 0, throttled=3)),
        ('ready', QueueCounts(0, 0, 3, 0, 0, throttled=3)),
        ('throttled', QueueCounts(0, 0, 3, 0, 0)),
    ):
        assert bench.jobs.purge('q', [state]) == 3
        assert bench.counts() == left
    bench.settle(ACK, *bench.held.values())
    assert bench.left() == set()


def test_a_purge_tells_how_far_it_is(bench: JobBench) -> None:
    for n in range(250):
        bench.add(f'{n}')
    bench.make('delayed')
    steps: list[int] = []
    assert bench.jobs.purge('q', progress=steps.append) == 251
    assert steps == [*range(25, 251, 25), 251]
    assert not bench.marked()
    assert bench.left() == set()


def test_a_purged_job_is_not_brought_back_by_its_late_owner(bench: JobBench) -> None:
    bench.make('lost')
    assert bench.jobs.purge('q') == 1
    assert bench.settle(REQUEUE, bench.held['a']) == [UNHELD]
    assert bench.take() == []
    assert bench.left() == set()


def test_queues_that_were_declared_or_hold_something(bench: JobBench) -> None:
    bench.store.run(bench.operations.declare('idle'))
    bench.store.run(bench.operations.declare('brief', HOUR))
    bench.make('delayed', queue='delays')
    bench.make('failed', 'b', queue='dead')
    bench.add('c', queue='plain')
    bench.store.notice('plain')
    bench.store.notice('empty')
    assert bench.jobs.queues() == ['brief', 'dead', 'delays', 'idle', 'plain']
    bench.store.delete('brief')
    bench.store.delete('idle')
    assert bench.jobs.queues() == ['dead', 'delays', 'plain']


def test_declared_queues_are_not_noticed_and_others_are_forgotten(bench: JobBench) -> None:
    bench.store.run(bench.operations.declare('q'))
    bench.store.run(bench.operations.declare('r', HOUR))
    bench.store.notice('q')
    bench.store.notice('r')
    assert not bench.client.exists(bench.keys.noticed)
    for at in range(0, 4200, 100):
        bench.wait(1)
        names = [f'n{number}' for number in range(at, at + 100)]
        bench.store.run(bench.jobs.operations.notice(names))
    assert bench.client.zcard(bench.keys.noticed) == 4096
    assert bench.client.zscore(bench.keys.noticed, 'n0') is None
