"""Events of tracked jobs, their history, and what a task tells of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.exceptions
from kombu import Connection

from kombu_reliable import open_store
from kombu_reliable.errors import InvalidArgument, InvalidMessage
from kombu_reliable.options import Options
from kombu_reliable.store import Store
from kombu_reliable.store.events import Gap, JobEvent
from kombu_reliable.transport.marks import take_marks
from kombu_reliable.transport.throttles import take_lane
from kombu_reliable.types import Marks, Outgoing, Status
from tests.conftest import START
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.test_scripts import (
    ACK,
    CANCEL,
    FAIL,
    HOUR,
    LEASE,
    ONCE,
    RELEASE,
    REPLACE,
    REQUEUE,
)
from tests.test_tags import DAY, MarkBench

TASK = 'shop.charge'


@pytest.fixture
def bench(store: Store) -> MarkBench:
    return MarkBench(store)


def heard(bench: MarkBench, since: str | int = '0') -> list[JobEvent | Gap]:
    return list(bench.store.events.listen(since, timeout=0))


def life(bench: MarkBench, id: str = 'job') -> list[str]:
    return [one.event for one in heard(bench) if isinstance(one, JobEvent) and one.key == id]


def history(bench: MarkBench, id: str = 'job') -> list[str]:
    [job] = bench.store.jobs.look([id])
    return [event.event for event in job.history]


def act(bench: MarkBench, name: str, *args: Any, id: str = 'job') -> Any:
    return getattr(bench.store.jobs, name)(bench.store.jobs.look([id])[0], *args)


# -- the events of each life -------------------------------------------------------


def test_a_success(bench: MarkBench) -> None:
    bench.add('job', track=TASK, due=f'+{HOUR}')
    bench.wait(HOUR)
    bench.settle(ACK, *bench.take(worker='me'))
    put, popped, completed = heard(bench)
    assert isinstance(put, JobEvent) and isinstance(popped, JobEvent)
    assert (put.event, put.at, put.key, put.queue, put.task) == ('put', START, 'job', 'q', TASK)
    assert (popped.event, popped.at, popped.detail) == ('popped', START + HOUR, 'me')
    assert completed.event == 'completed'
    assert bench.left() == set()


def test_an_untracked_job_tells_nothing(bench: MarkBench) -> None:
    bench.add('job', 'a', retain=0)
    bench.put('plain')
    bench.settle(ACK, *bench.take())
    assert heard(bench) == []
    assert not bench.client.exists(bench.keys.events)
    assert bench.client.hget(bench.keys.meta, 'events') is None


def test_a_failure_and_a_replay(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    bench.settle(FAIL, *bench.take(), reason='rejected')
    assert heard(bench)[-1].detail == 'rejected'  # type: ignore[union-attr]
    act(bench, 'replay')
    bench.settle(ACK, *bench.take())
    assert life(bench) == ['put', 'popped', 'failed', 'replayed', 'popped', 'completed']


def test_a_dead_letter_that_goes_is_not_canceled(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    bench.settle(FAIL, *bench.take(), reason='rejected')
    act(bench, 'discard')
    assert life(bench) == ['put', 'popped', 'failed']
    assert bench.left() == set()


def test_lost_leases_up_to_the_limit(store_factory: Callable[..., Store]) -> None:
    bench = MarkBench(store_factory(delivery_limit=2))
    bench.add('job', track=TASK)
    for _ in range(2):
        assert bench.take()
        bench.live(2 * LEASE)
    assert bench.take() == []
    assert life(bench) == ['put', 'popped', 'stalled', 'popped', 'stalled', 'failed']
    assert heard(bench)[-1].detail == 'delivery-limit'  # type: ignore[union-attr]


def test_a_run_that_must_not_be_repeated(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    bench.settle(ONCE, *bench.take())
    bench.live(2 * LEASE)
    assert bench.take() == []
    assert life(bench) == ['put', 'popped', 'stalled', 'failed']


@pytest.mark.parametrize(
    'verdict, event',
    [(REQUEUE, 'requeued'), (RELEASE, 'released'), (CANCEL, 'canceled'), (REPLACE, 'replaced')],
)
def test_other_ends_of_a_delivery(bench: MarkBench, verdict: Any, event: str) -> None:
    bench.add('job', track=TASK)
    bench.settle(verdict, *bench.take())
    assert life(bench) == ['put', 'popped', event]


def test_a_retry_is_one_life(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    [held] = bench.take()
    message = Outgoing('job', 'q', 0, '0', b'again', run=(held.token, 'job'))
    bench.publish([message], 1000, lane='other')
    bench.settle(ACK, held)
    bench.settle(ACK, *bench.take())
    assert life(bench) == ['put', 'popped', 'retried', 'popped', 'completed']
    assert bench.left() == set()


def test_a_retry_that_says_so_again(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    [held] = bench.take()
    bench.add('job', track=TASK, run=(held.token, 'job'))
    bench.settle(ACK, *bench.take())
    assert life(bench) == ['put', 'popped', 'retried', 'popped', 'completed']


ENDS: dict[str, Callable[[MarkBench], Any]] = {
    'cancel': lambda bench: act(bench, 'cancel'),
    'purge': lambda bench: bench.store.purge('q'),
    'empty': lambda bench: bench.store.jobs.purge('q', ['ready']),
}


@pytest.mark.parametrize('end', ENDS)
def test_who_is_removed_is_canceled(bench: MarkBench, end: str) -> None:
    bench.add('job', track=TASK)
    ENDS[end](bench)
    assert life(bench) == ['put', 'canceled']
    assert bench.left() == set()


def test_a_job_that_moves(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    act(bench, 'move', 'r')
    assert [(one.event, one.detail) for one in heard(bench)][1:] == [('moved', 'q > r')]  # type: ignore[union-attr]


@pytest.mark.parametrize('leased', [False, True])
def test_track_and_untrack_at_run_time(bench: MarkBench, leased: bool) -> None:
    bench.put('job')
    held = bench.take() if leased else []
    tags = bench.store.tags
    assert tags.track(['job', 'nobody'], TASK) == ['done', 'unknown']
    assert tags.track(['job'], TASK) == ['done']
    assert tags.tracked() == ['job']
    assert bench.store.jobs.look(['job'])[0].tracked
    held = held or bench.take()
    bench.settle(REQUEUE, *held)
    assert tags.untrack(['job']) == ['done']
    assert tags.untrack(['job']) == ['done']
    assert tags.tracked() == []
    bench.settle(ACK, *bench.take())
    expected = ['track', 'popped', 'requeued', 'untrack']
    assert life(bench) == [event for event in expected if not (leased and event == 'popped')]
    bench.wait(2 * HOUR)
    bench.claim(0)
    assert bench.left() == set()


def test_a_tracked_job_is_listed_until_it_is_gone(bench: MarkBench) -> None:
    bench.add('one', track=TASK, retain=HOUR)
    bench.add('two', track=TASK)
    tracked = bench.store.tags.tracked
    assert (tracked(), tracked(1, 5), tracked(0, 0)) == (['two', 'one'], ['one'], [])
    bench.settle(ACK, *bench.take())
    assert tracked() == ['one'], 'it is kept'
    bench.wait(2 * HOUR)
    bench.claim(0)
    assert tracked() == []
    assert bench.left() == set()


def test_who_is_held_back_by_a_throttle_is_told_once(bench: MarkBench) -> None:
    lane = take_lane({'x-throttles': [{'name': 'stripe', 'concurrency': 1}]})
    marks = Marks(track=TASK)
    for number, id in enumerate(('one', 'two')):
        bench.publish(
            [Outgoing(id, 'q', 0, '0', b'', lane=lane, marks=marks)], number, lane='other'
        )
    [one] = bench.take()
    for _ in range(3):
        assert bench.take() == []
    bench.settle(ACK, one)
    bench.settle(ACK, *bench.take())
    assert life(bench, 'one') == ['put', 'popped', 'completed']
    assert life(bench, 'two') == ['put', 'throttled', 'popped', 'completed']
    assert bench.left() == set()


def test_no_event_is_doubled_by_what_is_repeated(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    [held] = bench.take()
    for _ in range(3):
        bench.settle(ACK, held)
    assert life(bench) == ['put', 'popped', 'completed']


# -- listening ---------------------------------------------------------------------


def test_a_listener_goes_on_where_it_was(bench: MarkBench) -> None:
    for number in range(5):
        bench.add(f'j{number}', track=TASK)
    events = heard(bench)
    assert [one.position for one in events] == [f'{START}-{n}' for n in range(1, 6)]
    assert heard(bench, events[2].position) == events[3:]
    assert heard(bench, START - 1) == events
    assert heard(bench, START + 1) == []


def test_what_happens_after_the_call_is_heard(bench: MarkBench) -> None:
    bench.add('before', track=TASK)
    listener = bench.store.events.listen(timeout=0)
    bench.add('after', track=TASK)
    assert [one.key for one in listener if isinstance(one, JobEvent)] == ['after']
    bench.client.unlink(bench.keys.events)
    listener = bench.store.events.listen(timeout=0)
    bench.add('later', track=TASK)
    assert [getattr(one, 'key', one) for one in listener] == ['later']


def test_what_was_trimmed_is_a_gap(bench: MarkBench) -> None:
    for number in range(10):
        bench.add(f'j{number}', track=TASK)
    first = heard(bench)[0].position
    bench.client.xtrim(bench.keys.events, maxlen=4, approximate=False)
    gap, *rest = heard(bench, first)
    assert gap == Gap(lost=5, position=first)
    assert [one.position for one in rest] == [f'{START}-{n}' for n in range(7, 11)]
    bench.wait(5)
    assert heard(bench, START - 1)[0] == Gap(None, f'{START - 1}-0'), 'nobody knows how many'
    assert not isinstance(heard(bench, '0')[0], Gap), 'all that are kept were asked for'


def test_a_gap_in_the_middle_of_listening(bench: MarkBench) -> None:
    bench.add('a', track=TASK)
    listener = bench.store.events.listen('0', timeout=0)
    first = next(listener)
    for number in range(10):
        bench.add(f'j{number}', track=TASK)
    bench.client.xtrim(bench.keys.events, maxlen=2, approximate=False)
    assert [getattr(one, 'lost', one.event) for one in listener] == [8, 'put', 'put']
    assert first.event == 'put'


def test_a_stream_that_ended_for_lack_of_events_is_no_gap(bench: MarkBench) -> None:
    bench.add('a', track=TASK)
    [event] = heard(bench)
    bench.client.unlink(bench.keys.events)
    bench.add('b', track=TASK)
    assert [getattr(one, 'key', one) for one in heard(bench, event.position)] == ['b']


def test_a_server_that_lost_its_data_is_a_gap(bench: MarkBench) -> None:
    for number in range(3):
        bench.add(f'j{number}', track=TASK)
    position = heard(bench)[-1].position
    bench.client.flushdb()
    assert heard(bench, position) == [Gap(None, position)]
    bench.wait(1)
    bench.add('new', track=TASK)
    gap, event = heard(bench, position)
    assert gap == Gap(None, position)
    assert isinstance(event, JobEvent) and event.key == 'new'


def test_a_clock_that_was_put_back(bench: MarkBench) -> None:
    bench.add('a', track=TASK)
    bench.wait(-HOUR)
    bench.add('b', track=TASK)
    bench.wait(2 * HOUR)
    bench.add('c', track=TASK)
    assert [getattr(one, 'key', one) for one in heard(bench)] == ['a', 'b', 'c']


def test_a_listener_far_behind_gets_all_that_is_kept(bench: MarkBench) -> None:
    """The cap is that of the server, so a listener costs it nothing."""
    with bench.client.pipeline(transaction=False) as pipe:
        for number in range(1, 20_001):
            fields = {'e': 'put', 'j': 'job', 'q': 'q', 't': '', 'd': ''}
            pipe.xadd(bench.keys.events, fields, id=f'{START}-{number}', maxlen=5_000)
        pipe.execute()
    bench.client.hset(bench.keys.meta, 'events', 20_000)
    gap, *rest = heard(bench, f'{START}-1')
    assert isinstance(gap, Gap) and gap.lost == 20_000 - len(rest) - 1
    numbers = [int(one.position.partition('-')[2]) for one in rest]
    assert numbers == list(range(20_001 - len(rest), 20_001))
    assert 5_000 <= len(rest) < 6_000


def test_the_stream_is_capped(bench: MarkBench) -> None:
    key = bench.keys.events
    with bench.client.pipeline(transaction=False) as pipe:
        for number in range(1, 101_000):
            pipe.xadd(key, {'e': 'put', 'j': 'j'}, id=f'{START - 1}-{number}')
        pipe.execute()
    bench.client.hset(bench.keys.meta, 'events', 101_000)
    bench.add('job', track=TASK)
    assert 100_000 <= bench.client.xlen(key) < 101_000
    assert 0 < bench.client.pttl(key) <= 7 * DAY


@pytest.mark.parametrize(
    'since', ['', 'x', '1-', '-1', 'x-1', '1-x', -1, True, 1.5, '\u0661-\u0661']
)
def test_a_position_that_is_none(bench: MarkBench, since: Any) -> None:
    with pytest.raises(InvalidArgument, match='since'):
        bench.store.events.listen(since)


def test_foreign_data_in_the_place_of_events_costs_no_job(bench: MarkBench) -> None:
    bench.client.set(bench.keys.events, 'foreign')
    bench.client.set(bench.keys.tracked, 'foreign')
    bench.add('job', track=TASK)
    assert bench.settle(ACK, *bench.take()) == [Status.DONE]


def test_waiting_for_events(store: Store) -> None:
    bench = MarkBench(store)
    found: list[Any] = []
    listener = store.events.listen(timeout=20)
    thread = threading.Thread(target=lambda: found.append(next(listener)))
    thread.start()
    time.sleep(0.05)
    bench.add('job', track=TASK)
    thread.join(20)
    assert [one.key for one in found] == ['job']


def test_bad_headers() -> None:
    for value in ('yes', 2, [], 'true'):
        with pytest.raises(InvalidMessage, match='x-track'):
            take_marks({'x-track': value}, Options())


# -- history -----------------------------------------------------------------------


def test_the_history_of_a_marked_job(bench: MarkBench) -> None:
    bench.add('job', 'a', retain=HOUR)
    bench.settle(REQUEUE, *bench.take(worker='one'))
    bench.settle(ACK, *bench.take(worker='two'))
    [job] = bench.store.jobs.look(['job'])
    assert [(event.event, event.detail) for event in job.history] == [
        ('put', ''), ('popped', 'one'), ('requeued', ''), ('popped', 'two'), ('completed', ''),
    ]  # fmt: skip


def test_the_first_entry_is_kept_and_the_length_capped(bench: MarkBench) -> None:
    bench.add('job', track=TASK, retain=HOUR)
    for _ in range(30):
        bench.settle(RELEASE, *bench.take())
    found = history(bench)
    assert (found[0], len(found)) == ('put', 20)


def test_a_plain_job_has_no_history(bench: MarkBench) -> None:
    bench.put('job')
    bench.take()
    assert history(bench) == []
    assert not bench.client.exists(bench.keys.extra('job'))


# -- what a task tells -------------------------------------------------------------


def test_a_log_and_a_progress(bench: MarkBench) -> None:
    bench.put('job')
    [held] = bench.take()
    events = bench.store.events
    assert events.log('job', held.token, 'begun', {'rows': 3}) is Status.DONE
    bench.wait(10)
    assert events.log('job', held.token, 'two\nlines') is Status.DONE
    assert events.progress('job', held.token, 0.25) is Status.DONE
    [job] = bench.store.jobs.look(['job'])
    assert job.progress == 0.25
    assert [event[1:] for event in job.history] == [
        ('log', 'begun', {'rows': 3}), ('log', 'two\nlines', None),
    ]  # fmt: skip
    assert bench.settle(ACK, held) == [Status.DONE]
    assert bench.left() == set()


def test_what_was_logged_stands_in_its_place(bench: MarkBench) -> None:
    bench.add('job', track=TASK, retain=HOUR)
    [held] = bench.take()
    bench.wait(5)
    bench.store.events.log('job', held.token, 'x')
    bench.wait(5)
    bench.settle(REQUEUE, held)
    [held] = bench.take()
    bench.store.events.progress('job', held.token, 1)
    bench.settle(ACK, held)
    assert history(bench) == ['put', 'popped', 'log', 'requeued', 'popped', 'completed']
    assert bench.store.jobs.look(['job'])[0].progress == 1


def test_many_lines_push_out_no_history(bench: MarkBench) -> None:
    bench.add('job', track=TASK)
    [held] = bench.take()
    for number in range(120):
        bench.store.events.log('job', held.token, f'line {number}')
    [job] = bench.store.jobs.look(['job'])
    lines = [event.detail for event in job.history if event.event == 'log']
    assert lines == ['line 0', *(f'line {number}' for number in range(71, 120))]
    assert history(bench)[:2] == ['put', 'popped']


def test_a_run_that_lost_its_job_tells_nothing(bench: MarkBench) -> None:
    bench.put('job')
    [late] = bench.take()
    bench.live(2 * LEASE)
    assert bench.store.events.progress('job', late.token, 0.5) is Status.DONE, 'nobody has it yet'
    [held] = bench.take()
    assert bench.store.events.progress('job', late.token, 0.9) is Status.FENCED
    assert bench.store.events.log('job', late.token, 'x') is Status.FENCED
    assert bench.store.jobs.look(['job'])[0].progress == 0.5
    bench.settle(ACK, held)
    assert bench.store.events.log('job', held.token, 'x') is Status.UNHELD
    assert bench.left() == set()


def test_a_next_run_begins_at_nothing(bench: MarkBench) -> None:
    bench.put('job')
    [held] = bench.take()
    bench.store.events.progress('job', held.token, 0.5)
    bench.publish([Outgoing('job', 'q', 0, '0', b'', run=(held.token, 'job'))], 9, lane='other')
    assert bench.store.events.progress('job', held.token, 0.6) is Status.FENCED
    assert bench.store.jobs.look(['job'])[0].progress is None


@pytest.mark.parametrize('done', [-0.1, 1.1, '0.5', None, float('nan'), float('inf'), True])
def test_a_progress_that_is_none(bench: MarkBench, done: Any) -> None:
    with pytest.raises(InvalidArgument, match='progress'):
        bench.store.events.progress('job', 't', done)


def test_a_log_line_that_is_none(bench: MarkBench) -> None:
    with pytest.raises(InvalidArgument, match='longer'):
        bench.store.events.log('job', 't', 'x' * 10_000)
    with pytest.raises(InvalidArgument, match='JSON'):
        bench.store.events.log('job', 't', 'x', object())


@pytest.fixture
def far(server: Server, database: int) -> Iterator[tuple[Proxy, Store]]:
    """A store behind a proxy, whose sockets are impatient."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        options = {'socket_timeout': 1.9}
        url = f'reliable+{proxy.url(database)}'
        with Connection(url, transport_options=options) as connection:
            yield proxy, open_store(connection)


def test_whoever_listens_in_silence_keeps_his_connection(far: tuple[Proxy, Store]) -> None:
    """A blocking read ends before the socket takes it for lost."""
    proxy, store = far

    def opened() -> int:
        before = {command.connection for command in proxy.seen()}
        assert list(store.events.listen(timeout=3)) == []
        return len({command.connection for command in proxy.seen()} - before)

    opened()
    # A busy machine may be late once, but not each time.
    assert 0 in (opened() for _ in range(3))


def test_an_end_without_a_look_is_an_error(far: tuple[Proxy, Store]) -> None:
    """Nobody knows whether there were events."""
    proxy, store = far
    events = store.events.listen('0', timeout=0.2)
    proxy.refuse()
    proxy.cut()
    with pytest.raises(redis.exceptions.ConnectionError):
        next(events)
    proxy.heal()
    assert list(store.events.listen('0', timeout=0.1)) == []
