"""Delays live in Redis: on time, and in no worker's memory."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import quantiles

from celery import Celery

from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

HOUR = 3600
#: The promise is 5 ms, which benchmarks/ measure; a test must not fail because the machine was
#: busy for a moment.
GENEROUS = 0.25


def test_thousands_of_countdowns_rest_in_the_server(workers: Fleet, server: Server) -> None:
    app = workers.app()
    worker = workers.start(concurrency=1)
    task(app, 'run', value='warm').apply_async().get(20)
    before = worker.memory()
    with app.pool.acquire(block=True) as connection:
        producer = app.amqp.Producer(connection)
        for i in range(5000):
            task(app, 'run', value=i).apply_async(countdown=HOUR, producer=producer)
    number = int(workers.broker.rpartition('/')[2])
    with server.client(db=number) as client:
        prefix = f'{{kr:{number}:0}}'
        assert client.zcard(f'{prefix}:d:celery') == 5000
        # The worker answers, so whatever it wanted to fetch it has.
        task(app, 'run', value='still').apply_async().get(20)
        wait_for(lambda: not client.hlen(f'{prefix}:own'), 20, 'the ack; nothing is prefetched')
        assert worker.memory() - before < 5_000_000, 'memory is flat'
        stored = client.zrange(f'{prefix}:d:celery', 0, -1, withscores=True)
        worker.terminate()
        assert worker.wait() == 0
        workers.start(concurrency=1)
        task(app, 'run', value='after').apply_async().get(20)
        assert client.zrange(f'{prefix}:d:celery', 0, -1, withscores=True) == stored
    assert workers.ledger.values('ran') == ['warm', 'still', 'after']


def lateness_of(workers: Fleet, app: Celery, count: int) -> list[float]:
    """Publishes tasks that are due one by one and returns how late each started."""
    now = datetime.now(UTC)
    rng = random.Random(7)
    due = {}
    for i in range(count):
        moment = now + timedelta(seconds=2 + i * 0.02 + rng.random() * 0.01)
        due[i] = moment.timestamp()
        task(app, 'run', value=i).apply_async(eta=moment, ignore_result=True)
    entries = workers.ledger.wait(count, 'ran', timeout=60)
    return sorted(entry['at'] - due[entry['value']] for entry in entries)


def test_delayed_tasks_start_on_time_on_an_idle_worker(make_fleet: Callable[..., Fleet]) -> None:
    # A worker that nobody wakes would sleep for 10 s.
    workers = make_fleet(options={'lease': 30})
    app = workers.app()
    workers.start(concurrency=2)
    lateness = lateness_of(workers, app, 200)
    assert lateness[0] >= -0.001, 'none is early'
    p99 = quantiles(lateness, n=100)[98]
    print(f'lateness p50 {1e3 * lateness[100]:.1f} ms, p99 {1e3 * p99:.1f} ms')
    # One pause of a busy machine makes many late: the bar for p99 is that of the benchmark.
    assert lateness[len(lateness) // 4] <= GENEROUS


def test_a_dead_timekeeper_delays_nothing_beyond_the_cap(workers: Fleet) -> None:
    app = workers.app()
    first = workers.start(concurrency=1)
    workers.start(concurrency=1)
    # Whoever claims now watches the clock; one of the two dies before it is time.
    due = datetime.now(UTC) + timedelta(seconds=4)
    task(app, 'run', value='due').apply_async(eta=due, ignore_result=True)
    time.sleep(0.5)
    first.kill()
    entry = workers.ledger.wait(1, 'ran', value='due')[0]
    # The longest sleep is a third of a lease here, of any worker 10 s.
    assert 0 <= entry['at'] - due.timestamp() <= workers.options['lease'] / 3 + 4


def test_eta_is_over_when_the_task_runs(workers: Fleet, server: Server) -> None:
    """Celery must not put a task with an eta on its own timer and raise the prefetch for it."""
    app = workers.app()
    workers.start(concurrency=1)
    for i in range(40):
        task(app, 'run', value=i).apply_async(countdown=1)
    workers.ledger.wait(40, 'ran')
    stats = app.control.inspect(timeout=20, limit=1).stats()
    assert stats['w1@test']['prefetch_count'] == 4


def test_a_past_eta_and_an_x_delay(workers: Fleet) -> None:
    app = workers.app()
    workers.start(concurrency=1)
    past = datetime.now(UTC) - timedelta(hours=1)
    task(app, 'run', value='past').apply_async(eta=past).get(10)
    asked = time.time()
    task(app, 'run', value='x').apply_async(headers={'x-delay': 700})
    entry = workers.ledger.wait(1, 'ran', value='x')[0]
    assert entry['at'] - asked >= 0.69
