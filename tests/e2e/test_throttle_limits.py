"""Throttles by their header alone, without celery_ext."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import most_at_once, runs_of
from tests.support.workers import Fleet, task

MakeFleet = Callable[..., Fleet]


def throttled(**limits: Any) -> dict[str, Any]:
    return {'x-throttles': [{'name': 'api', **limits}]}


def send_many(fleet: Fleet, count: int, seconds: float, headers: dict[str, Any]) -> None:
    app = fleet.app()
    with app.producer_pool.acquire(block=True) as producer, producer.batch():
        for number in range(count):
            one = task(app, 'sleep', seconds, number)
            one.apply_async(producer=producer, headers=headers)


def test_never_more_at_once_than_the_throttle_lets(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    for _ in range(2):
        fleet.start(concurrency=2)
    send_many(fleet, 60, 0.03, throttled(concurrency=3))
    fleet.ledger.wait(60, 'ended', timeout=30)
    assert most_at_once(runs_of(fleet.ledger)) == 3


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
