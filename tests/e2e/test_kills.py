"""Killed workers lose nothing, frozen ones are fenced, long tasks run once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.faults import counts
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

LEASE = 2.0
#: What a loaded machine may add to a deadline that the transport keeps by itself.
LOAD = 10.0


def test_a_killed_workers_tasks_start_again_within_a_lease(
    workers: Fleet, server: Server, tmp_path: Path
) -> None:
    app = workers.app()
    victim = workers.start(concurrency=2)
    door = tmp_path / 'door'
    results = [task(app, 'wait_for_file', str(door), value=i).apply_async() for i in range(8)]
    # Two run, six wait in the worker's prefetch.
    workers.ledger.wait(2, 'started')
    wait_for(lambda: counts(workers, server).leased == 8, 20, 'all eight are its')
    survivor = workers.start(concurrency=8)
    victim.kill()
    killed_at = time.time()
    started = wait_for(
        lambda: (
            entries if len(entries := workers.ledger.lines('started')) >= 2 + len(results) else None
        ),
        LEASE + 1 + LOAD,
        'all eight run on the survivor',
    )
    again = [entry for entry in started if entry['at'] > killed_at]
    assert sorted(entry['value'] for entry in again) == list(range(8))
    assert max(entry['at'] for entry in again) - killed_at <= LEASE + 1 + LOAD
    assert all(entry['pid'] in survivor.pool_pids() for entry in again)
    door.touch()
    assert [result.get(20) for result in results] == list(range(8))
    # Those that had run or waited in the dead worker count as delivered before.
    assert {entry['redelivered'] for entry in again} == {True}


def test_a_killed_pool_process_costs_nothing(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    workers = make_fleet(options={'lease': 30})
    app = workers.app()
    workers.start(concurrency=1)
    door = tmp_path / 'door'
    result = task(app, 'wait_for_file', str(door), value='x').apply_async()
    first = workers.ledger.wait(1, 'started')[0]
    wait_for(lambda: workers.runs(1), 20, 'the worker has heard of it')
    os.kill(first['pid'], signal.SIGKILL)
    killed_at = time.time()
    second = workers.ledger.wait(2, 'started')[1]
    # At once, not after a lease: the worker itself says that the process is gone.
    assert second['at'] - killed_at < 15
    assert second['pid'] != first['pid']
    assert second['redelivered'] is True
    door.touch()
    assert result.get(20) == 'x'


def test_nothing_is_missing_after_everything_was_killed(
    make_fleet: Callable[..., Fleet],
) -> None:
    with Server(appendfsync='always') as server:
        workers = make_fleet(broker=f'reliable+{server.url()}')
        app = workers.app()
        workers.start(concurrency=2)
        ids = [task(app, 'sleep', 0.05, value=i).apply_async().id for i in range(100)]
        delayed = [
            task(app, 'run', value=f'late {i}').apply_async(countdown=3).id for i in range(20)
        ]
        workers.ledger.wait(20, 'ended')
        workers.workers[0].kill()
        server.kill()
        server.restart()
        workers.start(concurrency=2)
        wait_for(
            lambda: {entry['id'] for entry in workers.ledger.lines('ended')} >= set(ids), 40,
            'every task has ended',
        )  # fmt: skip
        wait_for(
            lambda: {entry['id'] for entry in workers.ledger.lines('ran')} == set(delayed), 20,
            'every delayed task has run',
        )  # fmt: skip
        ended = Counter(entry['id'] for entry in workers.ledger.lines('ended'))
        # Only what ran or had ended without its settlement at the kill may have ended twice.
        assert sum(count > 1 for count in ended.values()) <= 8
        workers.close()


@pytest.mark.parametrize('pool', ['prefork', 'solo'])
def test_a_task_of_three_leases_runs_once(make_fleet: Callable[..., Fleet], pool: str) -> None:
    # The other worker takes it as soon as the lease is over: a busy machine needs a long one.
    workers = make_fleet(options={'lease': 4})
    app = workers.app()
    workers.start(pool=pool, concurrency=1)
    workers.start(pool=pool, concurrency=1)
    results = [task(app, 'sleep', 12, value=i).apply_async() for i in range(2)]
    assert [result.get(60) for result in results] == [0, 1]
    assert sorted(workers.ledger.values('started')) == [0, 1]
    assert sorted(workers.ledger.values('ended')) == [0, 1]


def test_a_frozen_worker_is_fenced(workers: Fleet, server: Server, tmp_path: Path) -> None:
    app = workers.app()
    door = tmp_path / 'door'
    frozen = workers.start(concurrency=1)
    result = task(app, 'wait_for_file', str(door), value='x').apply_async()
    workers.ledger.wait(1, 'started')
    workers.start(concurrency=1)
    frozen.pause()
    paused_at = time.time()
    try:
        again = workers.ledger.wait(2, 'started', 30)[1]
        assert 0 < again['at'] - paused_at <= LEASE + 1 + LOAD
        door.touch()
        assert result.get(20) == 'x'
        wait_for(lambda: paused_at + 2 * LEASE < time.time(), 10, 'two leases have passed')
    finally:
        frozen.resume()
    # The late end changes nothing, and the worker says so.
    workers.ledger.wait(2, 'ended')
    frozen.wait_for_log('lease was lost')
    number = int(workers.broker.rpartition('/')[2])
    with server.client(db=number) as client:
        wait_for(lambda: not client.exists(f'{{kr:{number}:0}}:own'), 10, 'nothing is leased')
        assert client.zcard(f'{{kr:{number}:0}}:r:celery') == 0
        assert client.zcard(f'{{kr:{number}:0}}:f:celery') == 0
    assert len(workers.ledger.lines('started')) == 2


@pytest.mark.slow
def test_the_default_lease_of_30_s_holds(make_fleet: Callable[..., Fleet]) -> None:
    workers = make_fleet(options={'lease': 30})
    app = workers.app()
    victim = workers.start(concurrency=1)
    task(app, 'sleep', 300, value='x').apply_async()
    workers.ledger.wait(1, 'started')
    victim.kill()
    killed_at = time.time()
    workers.start(concurrency=1)
    again = workers.ledger.wait(2, 'started', timeout=45)[1]
    assert again['at'] - killed_at <= 30 + 1 + LOAD


def test_a_poison_task_becomes_a_dead_letter(
    make_fleet: Callable[..., Fleet], server: Server
) -> None:
    workers = make_fleet(options={'delivery_limit': 3})
    app = workers.app()
    workers.start(concurrency=1)
    task(app, 'die').apply_async()
    number = int(workers.broker.rpartition('/')[2])
    with server.client(db=number) as client:
        prefix = f'{{kr:{number}:0}}'
        wait_for(lambda: client.zcard(f'{prefix}:f:celery') == 1, 30, 'a dead letter')
        [job] = client.zrange(f'{prefix}:f:celery', 0, -1)
        assert client.hget(f'{prefix}:x:{job.decode()}', 'reason') == b'delivery-limit'
    assert workers.ledger.deliveries() == [1, 2, 3]
    # The worker lives on.
    assert task(app, 'run', value='alive').apply_async().get(20) == 'alive'
