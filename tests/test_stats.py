"""What workers count, and what comes back: histograms, merging, retention, times of waiting."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import redis.exceptions

from kombu_reliable import Counting, ServerFull, Stats, Summary
from kombu_reliable.client import connect_client
from kombu_reliable.envelope import seal, with_due
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.stats import DAY, RETENTION, count
from kombu_reliable.store.summary import LAST, bounds, bucket_of
from kombu_reliable.transport.messages import payload
from kombu_reliable.transport.throttles import THROTTLES, take_lane
from kombu_reliable.types import Delivery, Dependencies, Outgoing
from kombu_reliable.urls import parse_url
from tests.conftest import START
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.test_jobs import JobBench
from tests.test_scripts import ACK, LEASE, REQUEUE

TODAY = datetime.fromtimestamp(START / 1000, UTC).date()

LOADS: dict[str, Callable[[random.Random], float]] = {
    'alike': lambda chance: chance.uniform(0.099, 0.101),
    'even': lambda chance: chance.uniform(0.001, 2.0),
    'waiting in line': lambda chance: chance.expovariate(1 / 0.3),
    'mostly short': lambda chance: math.exp(chance.gauss(-5, 1.7)),
    'two kinds': lambda chance: chance.gauss(0.01, 0.001) if chance.random() < 0.8 else 40.0,
    'very short': lambda chance: chance.uniform(20e-6, 90e-6),
    'days': lambda chance: chance.uniform(3_600, 864_000),
}


def true_percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, max(0, math.ceil(share * len(values)) - 1))]


def assert_close(summary: Summary, values: list[float]) -> None:
    assert summary.count == len(values)
    assert summary.mean == pytest.approx(statistics.fmean(values), rel=1e-9)
    assert summary.stdev == pytest.approx(statistics.pstdev(values), rel=1e-6)
    assert summary.min == pytest.approx(min(values))
    assert summary.max == pytest.approx(max(values))
    for share in (0.5, 0.9, 0.95, 0.99):
        assert summary.percentile(share) == pytest.approx(true_percentile(values, share), rel=0.1)


@pytest.mark.parametrize('load', LOADS)
def test_percentiles_of_many_workers_are_within_a_tenth(store: Store, load: str) -> None:
    chance = random.Random(load)
    waits = [LOADS[load](chance) for _ in range(2_000)]
    runs = [LOADS[load](chance) for _ in range(2_000)]
    for worker in range(5):
        counting = Counting()
        for number in range(worker, 2_000, 5):
            counting.waited('q', 'shop.pay', waits[number])
            counting.ran('q', 'shop.pay', runs[number])
            if number % 1_000 < 5:
                counting.hand_over(store)
        counting.hand_over(store)
        assert not counting
    [found] = store.stats.read([TODAY])
    assert (found.queue, found.task, found.day) == ('q', 'shop.pay', TODAY)
    assert_close(found.wait, waits)
    assert_close(found.run, runs)


def test_a_small_spread_around_a_large_mean_is_not_lost(store: Store) -> None:
    values = [3_600 + 0.001 * (number % 3) for number in range(999)]
    for part in (values[:400], values[400:]):
        counting = Counting()
        for value in part:
            counting.ran('q', 't', value)
        counting.hand_over(store)
    [found] = store.stats.read([TODAY])
    assert found.run.stdev == pytest.approx(statistics.pstdev(values), rel=1e-3)


def test_summaries_add_up_as_if_they_were_one() -> None:
    chance = random.Random(3)
    values = [chance.expovariate(1) for _ in range(3_000)]
    parts = [Summary.of(values[:10]), Summary.of(values[10:2_000]), Summary.of(values[2_000:])]
    assert_close(sum(parts, Summary()), values)
    assert Summary() + parts[0] == parts[0] + Summary() == parts[0]


def test_buckets_leave_no_gap() -> None:
    for bucket in range(LAST):
        low, high = bounds(bucket)
        assert high == pytest.approx(bounds(bucket + 1)[0])
        assert bucket_of(low + (high - low) / 2) == bucket
    assert bucket_of(0) == 0
    assert bucket_of(1e18) == LAST


def test_what_is_known_of_nothing() -> None:
    nothing = Summary()
    assert (nothing.percentile(0.5), nothing.below(1), nothing.bars()) == (0.0, 0.0, [])
    assert Summary.of([]) == nothing
    for share in (-0.1, 95):
        with pytest.raises(ValueError, match='0 to 1'):
            nothing.percentile(share)


def test_shares_below_a_bound() -> None:
    summary = Summary.of([number / 100 for number in range(1, 1_001)])
    assert summary.below(5) == pytest.approx(500, rel=0.02)
    assert summary.below(100) == 1_000
    assert sum(bar.count for bar in summary.bars()) == 1_000


# -- on the server ---------------------------------------------------------------


def counted(**times: int) -> Counting:
    counting = Counting()
    for what, often in times.items():
        for _ in range(often):
            counting.happened('q', 't', what)
    return counting


def test_a_call_that_is_repeated_counts_once(store: Store) -> None:
    entry = '["q", "t", {"failed": 1}, [1, 5.0, 0.0, 5.0, 5.0, [50, 1]], []]'
    call = count(store.operations, 'lane', 7, [entry])
    assert [store.run(call) for _ in range(3)] == [True, False, False]
    [found] = store.stats.read([TODAY])
    assert (found.failed, found.wait.count) == (1, 1)


def test_what_was_handed_over_without_an_answer_counts_once(server: Server, database: int) -> None:
    """The server takes it and its answers are lost; then it is away; then it is back."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        url = parse_url(f'reliable+{proxy.url(database)}')
        store = Store(connect_client(url, Options()), operations(database))
        counted(failed=1).hand_over(store)
        counting = counted(retried=1)
        proxy.drop_reply(1)
        proxy.drop_reply(2)
        with pytest.raises((OSError, redis.exceptions.ConnectionError)):
            counting.hand_over(store)
        assert counting
        proxy.refuse()
        counting.happened('q', 't', 'stalled')
        with pytest.raises((OSError, redis.exceptions.ConnectionError)):
            counting.hand_over(store)
        proxy.refuse(False)
        counting.hand_over(store)
        [found] = store.stats.read([store.stats.today()])
        assert (found.failed, found.retried, found.stalled) == (1, 1, 1)
        store.client.close()


def test_pairs_of_a_day_are_bounded(server: Server, database: int) -> None:
    store = Store(server.client(db=database), operations(database))
    for first in range(0, 6_000, 500):
        counting = Counting()
        for number in range(first, first + 500):
            counting.happened(f'queue {number}', 't', 'failed')
        counting.hand_over(store)
    found = store.stats.read([store.stats.today()])
    store.client.close()
    assert len(found) == 5_001
    assert sum(one.failed for one in found) == 6_000
    [others] = [one for one in found if not one.queue]
    assert others.failed == 1_000


@pytest.mark.parametrize('queue', ['', 'Zürich: 1;{q}', 'a' * 300, '12:x'])
@pytest.mark.parametrize('task', ['', 'shop.päy', ':'])
def test_names_may_be_anything(store: Store, queue: str, task: str) -> None:
    counting = Counting()
    counting.happened(queue, task, 'failed')
    counting.hand_over(store)
    [found] = store.stats.read([TODAY], queue, task)
    assert (found.queue, found.task) == (queue, task)
    assert store.stats.read([TODAY], f'{queue}x') == []


def test_days_are_those_of_the_server(store: Store) -> None:
    days = []
    for _ in range(3):
        counted(failed=1).hand_over(store)
        days.append(store.stats.today())
        store.operations.now = (store.operations.now or 0) + DAY
    assert days == [TODAY, TODAY + timedelta(days=1), TODAY + timedelta(days=2)]
    assert [one.day for one in store.stats.read(days)] == days
    assert store.stats.last(3) == [TODAY + timedelta(days=back) for back in (1, 2, 3)]


def test_nothing_stays_for_longer_than_promised(store: Store) -> None:
    counted(failed=1).hand_over(store)
    keys = [key for key in store.client.scan_iter() if b':st' in key]
    assert len(keys) == 2
    for key in keys:
        life: Any = store.client.pttl(key)
        assert RETENTION * DAY - 60_000 < life <= (RETENTION + 1) * DAY


def test_the_keyspace_is_clean_after_the_retention(store: Store) -> None:
    """The last moment of a day, and a short retention."""
    store.operations.now = (START // DAY + 1) * DAY - 10
    store.run(
        store.operations.call('count', bool, 'l', 1, 5_000, '["q", "t", {"failed": 1}, [], []]')
    )
    assert len(store.stats.read([TODAY])) == 1
    prefix = store.keys.meta.removesuffix('meta')
    wait_for(
        lambda: {key.decode().removeprefix(prefix) for key in store.client.scan_iter()}
        == {'meta', 'pub'}, 10, 'a clean keyspace',
    )  # fmt: skip


def test_foreign_data_costs_only_what_is_under_its_key(store: Store) -> None:
    counting = Counting()
    for task in 'abc':
        counting.happened('q', task, 'failed')
    store.client.set(store.keys.stats(START // DAY, '1:qb'), 'foreign')
    counting.hand_over(store)
    assert [one.task for one in store.stats.read([TODAY])] == ['a', 'c']


def test_a_full_server_gets_it_later(server: Server) -> None:
    with Server(server.binary, maxmemory_policy='noeviction') as own, own.client() as client:
        store = Store(client, operations())
        counted(failed=1).hand_over(store)
        client.config_set('maxmemory', 1)
        counting = counted(failed=1)
        with pytest.raises(ServerFull):
            counting.hand_over(store)
        store.presence.beat('w', 30, 0, {})  # workers are seen all the same
        client.config_set('maxmemory', 0)
        counting.hand_over(store)
        [found] = store.stats.read([store.stats.today()])
        assert found.failed == 2
        assert [sign.worker for sign in store.presence.signs()] == ['w']


def test_calls_are_short(server: Server, database: int) -> None:
    """A flush of very many histograms holds nothing up."""
    with server.client(db=database) as client:
        store = Store(client, operations(database))
        chance = random.Random(1)
        counting = Counting()
        for _ in range(100_000):
            counting.ran('q', f'task {chance.randrange(300)}', chance.expovariate(1))
        client.config_set('slowlog-log-slower-than', 10_000)
        client.slowlog_reset()
        client.config_resetstat()
        counting.hand_over(store)
        calls = client.info('commandstats')['cmdstat_evalsha']['calls']
        slow = [one for one in client.slowlog_get(1000) if one['command'].startswith(b'EVALSHA')]
        # A machine may lose its processor; what is slow by itself is slow nearly each time.
        assert 2 * len(slow) < calls
        found = store.stats.read([store.stats.today()])
        assert sum(one.run.count for one in found) == 100_000


def operations(database: int = 0) -> Operations:
    return Operations(Keys(database), Options())


# -- since when a job waits ------------------------------------------------------


@pytest.fixture
def bench(store: Store) -> JobBench:
    return JobBench(store)


def waited_since(delivery: Delivery) -> tuple[int, bool]:
    """Milliseconds after the test began."""
    envelope = seal(['', '', {}, {}], b'')
    if delivery.envelope.startswith(b'@'):
        envelope = delivery.envelope.partition(b';')[0] + b';' + envelope
    opened = Delivery(
        delivery.queue, delivery.id, '', 1, envelope, delivery.published, delivery.since
    )
    _, ready_at, lost = payload(opened)['origin']
    assert ready_at is not None
    return round(ready_at * 1000) - START, lost


def test_a_job_waits_from_its_publish(bench: JobBench) -> None:
    bench.wait(5)
    bench.make('ready')
    bench.wait(1_000)
    assert waited_since(bench.take()[0]) == (5, False)


@pytest.mark.parametrize('due', ['+2000', f'{START + 2_000}'])
def test_a_delayed_job_waits_from_when_it_is_due(bench: JobBench, due: str) -> None:
    message = Outgoing('a', 'q', 0, due, with_due(b'message', due))
    bench.publish([message], 1)
    bench.wait(10_000)
    assert waited_since(bench.take()[0]) == (2_000, False)


def test_a_lost_job_waits_from_when_it_was_taken_back(bench: JobBench) -> None:
    bench.make('lost')
    taken_back = bench.now - START
    bench.wait(700)
    since, lost = waited_since(bench.take()[0])
    assert lost
    assert LEASE <= since <= taken_back


def test_a_requeued_job_waits_from_then(bench: JobBench) -> None:
    bench.make('leased')
    bench.wait(300)
    bench.settle(REQUEUE, bench.held['a'])
    bench.wait(100)
    assert waited_since(bench.take()[0]) == (300, False)


def test_a_replayed_job_waits_from_then(bench: JobBench) -> None:
    bench.make('failed')
    bench.wait(900)
    bench.jobs.replay('a')
    bench.wait(100)
    assert waited_since(bench.take()[0]) == (900, False)


@pytest.mark.parametrize(('moment', 'ready'), [(50, 400), (60_000, 60_000)])
def test_a_rescheduled_job_waits_from_its_new_time(
    bench: JobBench, moment: int, ready: int
) -> None:
    bench.publish([Outgoing('=a', 'q', 0, '+30000', with_due(b'message', '+30000'))], 1)
    bench.wait(400)
    bench.jobs.reschedule('a', START + moment)
    bench.wait(100_000)
    assert waited_since(bench.take()[0]) == (ready, False)


@pytest.mark.parametrize(('due', 'ready'), [('0', 700), ('+5000', 5_000)])
def test_a_dependent_waits_from_the_end_of_what_it_waited_for(
    bench: JobBench, due: str, ready: int
) -> None:
    bench.add('first')
    depends = Dependencies(('=first',))
    bench.publish([Outgoing('=a', 'q', 0, due, with_due(b'm', due), depends=depends)], 50)
    [held] = bench.take()
    bench.wait(700)
    bench.settle(ACK, held)
    bench.wait(10_000)
    assert waited_since(bench.take()[0]) == (ready, False)


def test_the_next_run_begins_anew(bench: JobBench) -> None:
    bench.make('lost')
    [held] = bench.take()
    bench.wait(1_000)
    published = bench.now - START
    bench.publish([Outgoing(held.id, 'q', 0, '0', b'm', run=(held.token, held.id))], 50)
    bench.wait(10)
    assert waited_since(bench.take()[0]) == (published, False)


def test_the_oldest_job_of_a_queue(bench: JobBench) -> None:
    """Those of a low priority are behind others and wait for longest."""
    assert bench.store.overview(['q']).queues['q'].oldest is None
    bench.add('low', rank=0)
    bench.wait(1_000)
    bench.add('high', rank=9)
    bench.publish([Outgoing('=later', 'r', 0, '+500', with_due(b'm', '+500'))], 90)
    bench.wait(2_000)
    bench.claim(0, queues='q r')  # promotes what is due
    found = bench.store.overview(['q', 'r', 'none'])
    assert found.queues['q'].oldest == 3.0
    assert found.queues['r'].oldest == 1.5
    assert found.queues['none'].oldest is None
    assert found.queues['q'].counts == bench.store.counts('q')


def test_stats_of_several_days_and_queues_are_told_apart(store: Store) -> None:
    one = Stats('q', 't', date(2026, 1, 1), Summary.of([1.0]), failed=1)
    other = Stats('q', 'u', date(2026, 1, 2), Summary.of([3.0]), failed=2)
    both = one + other
    assert (both.queue, both.task, both.day) == ('q', None, None)
    assert (both.wait.mean, both.failed) == (2.0, 3)


def test_a_throttled_job_waits_until_it_starts(bench: JobBench) -> None:
    lane = take_lane({THROTTLES: [{'name': 't', 'concurrency': 1}]})
    for number, id in enumerate(('=a', '=b'), 60):
        bench.publish([Outgoing(id, 'q', 0, '0', b'm', lane=lane)], number)
    [first] = bench.take()
    bench.wait(4_000)
    found = bench.store.overview(['q']).queues['q']
    assert (found.counts.throttled, found.oldest) == (1, 4.0)
    bench.settle(REQUEUE, first)
    assert waited_since(bench.take()[0]) == (4_000, False), 'it has its place again'
