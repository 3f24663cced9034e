"""The long proofs of throttles: thousands of jobs, minutes, killed workers."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import psutil
import pytest

import celery_ext
from celery_ext import Throttle
from tests.support.runs import Run, most_at_once, refill_times, runs_of, starts_in_a_window
from tests.support.wait import wait_for
from tests.support.workers import Fleet, Worker, task

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1500)]

MakeFleet = Callable[..., Fleet]


def start(fleet: Fleet, workers: int, concurrency: int) -> None:
    for _ in range(workers):
        fleet.start(concurrency=concurrency, ready=False)
    for worker in fleet.workers:
        worker.wait_for_log(' ready.', 60)


def await_ends(fleet: Fleet, ids: set[str], timeout: float) -> None:
    def all_ended() -> bool:
        return ids <= {entry['id'] for entry in fleet.ledger.lines('ended')}

    deadline = time.monotonic() + timeout
    while not all_ended():
        assert time.monotonic() < deadline, f'{len(ids)} jobs have not ended'
        time.sleep(1)  # reading a long ledger costs those who are measured


def test_five_thousand_jobs_on_a_throttle_of_three(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    start(fleet, 4, 4)
    limit = Throttle('three', concurrency=3)
    sleep = task(ext.app, 'sleep', 0.01)
    ids = {sleep.apply_async(throttles=limit).id for _ in range(5_000)}
    await_ends(fleet, ids, 600)
    runs = runs_of(fleet.ledger)
    assert len(runs) == 5_000
    assert most_at_once(runs) == 3
    refills = sorted(refill_times(runs, 3))
    print(
        f'\nrefills: median {1000 * median(refills):.1f} ms, '
        f'99th percentile {1000 * refills[len(refills) * 99 // 100]:.1f} ms'
    )
    assert median(refills) <= 0.02
    assert list(ext.throttles) == []


def test_a_rate_of_fifty_a_second(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    start(fleet, 4, 4)
    throttle = ext.throttles['paced']
    throttle.set(concurrency=0)
    sleep = task(ext.app, 'sleep', 0)
    for _ in range(1_200):
        sleep.apply_async(throttles='paced')
    throttle.set(rate='50/s')
    fleet.ledger.wait(1_100, 'started', 60)
    starts = [run.start for run in runs_of(fleet.ledger)]
    within = [at for at in starts if at < starts[0] + 20]
    print(f'\n{len(within)} starts in 20 s')
    assert 980 <= len(within) <= 1_020
    assert starts_in_a_window(runs_of(fleet.ledger), 1.0) <= 55
    throttle.delete()


@pytest.mark.parametrize('orphans', [False, True], ids=['with their pools', 'main processes only'])
def test_workers_are_killed_for_two_minutes(make_fleet: MakeFleet, orphans: bool) -> None:
    """The processes of a pool whose main process was killed end what they run.  Nobody can stop
    them, and their slots are given to others when the lease is over: they are counted apart."""
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    start(fleet, 4, 4)
    limit = Throttle('three', concurrency=3)
    ids = {
        task(ext.app, 'sleep', 0.2).apply_async(throttles=limit).id
        for _ in range(1_000)
    }  # fmt: skip
    deaths: dict[int, float] = {}
    until = time.monotonic() + 120
    victims: list[Worker] = list(fleet.workers)
    while time.monotonic() < until:
        time.sleep(5)
        victim = victims.pop(0)
        pool = victim.pool_pids()
        if orphans:
            os.kill(victim.pid, signal.SIGKILL)
        else:
            os.killpg(victim.pid, signal.SIGKILL)
        deaths.update(dict.fromkeys(pool, time.time()))
        victim.process.wait(10)
        victims.append(fleet.start(concurrency=4, ready=False))
    await_ends(fleet, ids, 600)
    runs = runs_of(fleet.ledger, deaths)
    counted, apart = counted_apart(runs, deaths)
    print(f'\n{len(deaths) // 4} kills, {len(runs)} runs, {len(apart)} of them by orphans')
    assert most_at_once(counted) <= 3
    if not orphans:
        assert apart == []
    wait_for(lambda: not list(ext.throttles), 30, 'end of all throttles')
    wait_for(lambda: not any(map(psutil.pid_exists, deaths)), 30, 'end of all orphans')


def counted_apart(runs: list[Run], deaths: dict[int, float]) -> tuple[list[Run], list[Run]]:
    """Runs as they count for the limit, and those that somebody's orphans have gone on with."""
    counted, apart = [], []
    for run in runs:
        died = deaths.get(run.pid)
        if died is None or (run.end is not None and run.end <= died):
            counted.append(run)
            continue
        if run.end is None or run.end > died:
            apart.append(run)
        if run.start < died:
            counted.append(Run(run.id, run.pid, run.value, run.start, died))
    return counted, apart


def test_a_tenant_with_a_hundred_thousand_jobs(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    start(fleet, 2, 2)
    many, first = task(ext.app, 'sleep', 0.2, 'many'), task(ext.app, 'sleep', 0, 'first')
    publish(ext.app, many, 100_000, throttles=Throttle('tenant:many', concurrency=2))
    for n in range(20):
        at = time.time()
        first.apply_async(throttles=Throttle(f'tenant:{n}', concurrency=1))
        fleet.ledger.wait(n + 1, 'ended', 30, value='first')
        begun = fleet.ledger.lines('started', value='first')[-1]['at']
        assert begun - at < 0.5
    assert ext.throttles['tenant:many'].get().pending > 90_000  # type: ignore[union-attr]


def test_turns_of_a_hundred_thousand_jobs(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    queue = ext.queues['celery']
    start(fleet, 2, 2)
    publish(ext.app, task(ext.app, 'sleep', 0.2, 'many'), 100_000, fair_by='many')
    for n in range(20):
        at = time.time()
        task(ext.app, 'sleep', 0, 'first').apply_async(fair_by=f'other {n}')
        fleet.ledger.wait(n + 1, 'ended', 30, value='first')
        begun = fleet.ledger.lines('started', value='first')[-1]['at']
        assert begun - at < 0.5
    assert queue.counts().throttled > 90_000


def publish(app: Any, signature: Any, count: int, **options: Any) -> None:
    with app.producer_or_acquire() as producer:
        for _ in range(count):
            signature.apply_async(producer=producer, **options)
