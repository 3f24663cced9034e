"""Throttles on plain Celery headers: what runs at once, and what starts in a second, is measured
inside the tasks."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.wait import wait_for
from tests.support.workers import Fleet, Ledger, task

MakeFleet = Callable[..., Fleet]


def throttled(**limits: Any) -> dict[str, Any]:
    return {'x-throttles': [{'name': 'api', **limits}]}


def send_many(fleet: Fleet, count: int, seconds: float, headers: dict[str, Any]) -> None:
    app = fleet.app()
    with app.producer_pool.acquire(block=True) as producer, producer.batch():
        for number in range(count):
            one = task(app, 'sleep', seconds, number)
            one.apply_async(producer=producer, headers=headers)


def events(ledger: Ledger, killed: dict[int, float]) -> Iterator[tuple[float, int]]:
    """Every start and end, by time; what was killed has ended then."""
    ended = {(entry['id'], entry['pid']) for entry in ledger.lines('ended')}
    for entry in ledger.lines():
        if entry['event'] == 'started':
            yield entry['at'], 1
            if (entry['id'], entry['pid']) not in ended:
                yield killed[entry['pid']], -1
        elif entry['event'] == 'ended':
            yield entry['at'], -1


def most_at_once(ledger: Ledger, killed: dict[int, float] | None = None) -> int:
    found = sorted(events(ledger, killed or {}))
    return max(itertools.accumulate(step for _, step in found))


def refills(ledger: Ledger) -> list[float]:
    """How long each slot that became free stayed so, while jobs waited."""
    free: list[float] = []
    found = []
    for at, step in sorted(events(ledger, {})):
        if step < 0:
            free.append(at)
        elif free:
            found.append(at - free.pop(0))
    return found


def starts(ledger: Ledger) -> list[float]:
    return sorted(entry['at'] for entry in ledger.lines('started'))


def most_in_a_second(moments: list[float]) -> int:
    first = most = 0
    for last, at in enumerate(moments):
        while at - moments[first] > 1:
            first += 1
        most = max(most, last - first + 1)
    return most


@pytest.mark.parametrize(
    ('workers', 'processes', 'count'),
    [(2, 2, 60), pytest.param(4, 4, 5_000, marks=[pytest.mark.matrix, pytest.mark.timeout(900)])],
)
def test_never_more_at_once_than_the_throttle_lets(
    make_fleet: MakeFleet, workers: int, processes: int, count: int
) -> None:
    fleet = make_fleet()
    for _ in range(workers):
        fleet.start(concurrency=processes)
    send_many(fleet, count, 0.03, throttled(concurrency=3))
    fleet.ledger.wait(count, 'ended', timeout=30 + count / 10)
    assert most_at_once(fleet.ledger) == 3
    found = refills(fleet.ledger)
    assert statistics.median(found) < 0.02, f'{statistics.quantiles(found, n=10)}'


@pytest.mark.parametrize(
    ('rate', 'seconds', 'most'),
    [(40, 3, 46), pytest.param(50, 20, 55, marks=[pytest.mark.matrix, pytest.mark.timeout(180)])],
)
def test_a_rate_is_kept_evenly(make_fleet: MakeFleet, rate: int, seconds: int, most: int) -> None:
    fleet = make_fleet()
    fleet.start(concurrency=4)
    fleet.start(concurrency=4)
    send_many(fleet, rate * seconds + 2 * rate, 0, throttled(rate=f'{rate}/s'))
    fleet.ledger.wait(rate * seconds + rate, 'started', timeout=seconds + 30)
    moments = starts(fleet.ledger)
    begun = [at for at in moments if at - moments[0] < seconds]
    assert abs(len(begun) - rate * seconds) <= max(5, 0.02 * rate * seconds)
    assert most_in_a_second(begun) <= most


@pytest.mark.parametrize(
    'seconds', [pytest.param(120, marks=[pytest.mark.matrix, pytest.mark.timeout(400)]), 6]
)
def test_the_limit_holds_while_workers_are_killed(make_fleet: MakeFleet, seconds: int) -> None:
    fleet = make_fleet(options={'lease': 1})
    workers = [fleet.start(concurrency=2) for _ in range(3 if seconds > 10 else 2)]
    app = fleet.app()
    killed: dict[int, float] = {}
    end = time.monotonic() + seconds
    number = itertools.count()

    def feed() -> None:
        for _ in range(20):
            task(app, 'sleep', 0.1, next(number)).apply_async(headers=throttled(concurrency=3))

    feed()
    next_kill = time.monotonic() + 2
    while time.monotonic() < end:
        feed()
        time.sleep(0.5)
        if time.monotonic() >= next_kill:
            next_kill = time.monotonic() + 5
            worker = workers.pop(0)
            pids = worker.pool_pids()
            worker.kill()
            killed.update(dict.fromkeys(pids, time.time()))
            workers.append(fleet.start(concurrency=2))
    total = next(number)
    wait_for(
        lambda: len({entry['value'] for entry in fleet.ledger.lines('ended')}) == total,
        60 + total / 15, 'the end of all tasks',
    )  # fmt: skip
    assert killed
    assert most_at_once(fleet.ledger, killed) <= 3


def test_a_throttled_task_does_not_wait_in_a_busy_worker(
    make_fleet: MakeFleet, tmp_path: Path
) -> None:
    """A slot is for a job that runs: while one worker is busy the other starts them all."""
    fleet = make_fleet()
    fleet.start('-n', 'busy@h', '-Q', 'celery,other', concurrency=1)
    app = fleet.app()
    task(app, 'wait_for_file', str(tmp_path / 'go')).apply_async(queue='other')
    fleet.ledger.wait(1, 'started')
    fleet.start('-n', 'free@h', concurrency=1)
    for number in range(5):
        task(app, 'sleep', 0.01, number).apply_async(headers=throttled(concurrency=2))
    fleet.ledger.wait(5, 'ended')


def test_a_busy_worker_is_not_woken_for_what_it_cannot_start(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    fleet.start(concurrency=1)
    app = fleet.app()
    task(app, 'sleep', 4, 'long').apply_async()
    fleet.ledger.wait(1, 'started')
    task(app, 'sleep', 0, 'throttled').apply_async(headers=throttled(concurrency=2))
    client = app.broker_connection().channel().store.client
    time.sleep(0.5)
    before = client.info('commandstats').get('cmdstat_evalsha', {}).get('calls', 0)
    time.sleep(2)
    after = client.info('commandstats').get('cmdstat_evalsha', {}).get('calls', 0)
    assert after - before < 25, 'renewals, and nothing else to speak of'
    fleet.ledger.wait(1, 'started', value='throttled')


@pytest.mark.parametrize('headers', [{}, throttled(concurrency=2)], ids=['alone', 'and a throttle'])
def test_the_rate_limit_of_celery_still_works(make_fleet: MakeFleet, headers: Any) -> None:
    fleet = make_fleet(
        config={'task_annotations': {'tests.support.app.run': {'rate_limit': '5/s'}}}
    )
    fleet.start(concurrency=4)
    app = fleet.app()
    for number in range(10):
        task(app, 'run', number).apply_async(headers=headers)
    moments = sorted(entry['at'] for entry in fleet.ledger.wait(10, 'ran'))
    assert moments[-1] - moments[0] > 1.2
