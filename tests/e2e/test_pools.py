"""Leases, settlements and shutdown in every pool that Celery has."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group

from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

LEASE = 2.0
WAIT = 20

matrix = pytest.mark.matrix

#: Pools that run their tasks inside the worker's process.
POOLS = ('threads', 'gevent', 'eventlet', 'solo')


def by_default(*chosen: str, among: tuple[str, ...] = POOLS) -> pytest.MarkDecorator:
    """Runs a test on all pools, on most of them only in the matrix."""
    return pytest.mark.parametrize(
        'pool',
        [pytest.param(pool, marks=() if pool in chosen else matrix) for pool in among],
    )


class Keys:
    """What Redis says of one database."""

    def __init__(self, client: redis.Redis, number: int) -> None:
        self.client = client
        self.prefix = f'{{kr:{number}:0}}'

    def leased(self) -> int:
        return int(self.client.hlen(f'{self.prefix}:own'))

    def leases(self, count: int) -> bool:
        return self.leased() == count

    def ready(self) -> dict[bytes, float]:
        return dict(self.client.zrange(f'{self.prefix}:r:celery', 0, -1, withscores=True))

    def places(self) -> dict[bytes, float]:
        owners = self.client.hgetall(f'{self.prefix}:own')
        return {job: float(owner.split(b';')[1]) for job, owner in owners.items()}

    def counted(self) -> list[bytes]:
        """Jobs that were delivered in vain."""
        noted = self.client.keys(f'{self.prefix}:x:*')  # a release is noted as well
        return [key for key in noted if self.client.hexists(key, 'n')]


@pytest.fixture
def keys(server: Server, database: int) -> Any:
    with server.client(db=database) as client:
        yield Keys(client, database)


# -- leases ----------------------------------------------------------------------


@by_default('gevent', among=('gevent', 'eventlet', 'solo'))
def test_a_task_that_computes_for_three_leases_runs_once(
    workers: Fleet, keys: Keys, pool: str
) -> None:
    """No other greenlet runs meanwhile: what renews the lease must be a real thread.

    It gets along without the event loop, also when its connections are lost.
    """
    app = workers.app()
    workers.start(pool=pool)
    result = task(app, 'burn', 3 * LEASE, value='x').apply_async()
    workers.ledger.wait(1, 'started')
    workers.start(pool=pool)
    keys.client.client_kill_filter(_type='normal')
    assert result.get(30) == 'x'
    assert len(workers.ledger.lines('started')) == len(workers.ledger.lines('ended')) == 1


@matrix
@pytest.mark.parametrize('pool', ['threads', 'gevent', 'eventlet'])
def test_a_task_of_three_leases_runs_once(workers: Fleet, pool: str) -> None:
    app = workers.app()
    workers.start(pool=pool, concurrency=1)
    workers.start(pool=pool, concurrency=1)
    results = [task(app, 'sleep', 3 * LEASE, value=i).apply_async() for i in range(4)]
    assert [result.get(60) for result in results] == [0, 1, 2, 3]
    assert sorted(workers.ledger.values('started')) == [0, 1, 2, 3]
    assert sorted(workers.ledger.values('ended')) == [0, 1, 2, 3]


# -- settlements -----------------------------------------------------------------


@by_default('gevent', 'solo')
def test_each_task_is_settled_when_it_ends(
    workers: Fleet, keys: Keys, tmp_path: Path, pool: str
) -> None:
    """Not when the batch ends in which it was claimed, whatever the event loop does meanwhile."""
    app = workers.app()
    doors = [tmp_path / f'door {i}' for i in range(4)]
    for number, door in enumerate(doors):
        task(app, 'wait_for_file', str(door), value=number).apply_async()
    workers.start('--prefetch-multiplier', '8', pool=pool, concurrency=1, ready=False)
    for number, door in enumerate(doors):
        workers.ledger.wait(number + 1, 'started')
        left = len(doors) - number
        wait_for(partial(keys.leases, left), WAIT, f'{left} leases')
        door.touch()
    wait_for(partial(keys.leases, 0), WAIT, 'all are settled')
    assert workers.ledger.values('ended') == [0, 1, 2, 3]


# -- shutdown --------------------------------------------------------------------


@by_default('threads', 'gevent', among=('threads', 'gevent', 'eventlet'))
def test_warm_shutdown_gives_back_what_has_not_started(
    workers: Fleet, keys: Keys, tmp_path: Path, pool: str
) -> None:
    app = workers.app()
    worker = workers.start('--prefetch-multiplier', '10', pool=pool, concurrency=2)
    door = tmp_path / 'door'
    running = [task(app, 'wait_for_file', str(door), value=i).apply_async() for i in range(2)]
    workers.ledger.wait(2, 'started')
    waiting = [task(app, 'run', value=i).apply_async() for i in range(18)]
    wait_for(lambda: keys.leased() == 20, WAIT, 'all are leased')
    places = keys.places()
    worker.terminate()
    told_at = time.monotonic()
    ready = wait_for(lambda: len(keys.ready()) == 18 and keys.ready(), WAIT, 'those are back')
    print(f'given back after {1e3 * (time.monotonic() - told_at):.0f} ms')
    assert {job: place for job, place in places.items() if job in ready} == ready
    assert not keys.counted(), 'no delivery was counted'
    # What runs on is still leased, for longer than a lease, and its end counts.
    wait_for(lambda: time.monotonic() - told_at > 1.2 * LEASE, WAIT, 'a lease has passed')
    assert keys.leased() == 2
    assert len(keys.ready()) == 18
    door.touch()
    assert worker.wait() == 0
    assert [result.get(10) for result in running] == [0, 1]
    assert not keys.leased()
    assert not workers.ledger.lines('ran')
    workers.start(pool=pool)
    assert [result.get(20) for result in waiting] == list(range(18))
    assert sorted(workers.ledger.values('ran')) == list(range(18))
    assert {entry['redelivered'] for entry in workers.ledger.lines('ran')} == {False}


def test_warm_shutdown_of_solo_gives_back_what_has_not_started(
    workers: Fleet, keys: Keys, tmp_path: Path
) -> None:
    """Its event loop stands still until the running task ends, but not until all have run."""
    app = workers.app()
    worker = workers.start('--prefetch-multiplier', '20', pool='solo')
    door = tmp_path / 'door'
    running = task(app, 'wait_for_file', str(door), value='x').apply_async()
    workers.ledger.wait(1, 'started')
    waiting = [task(app, 'run', value=i).apply_async() for i in range(10)]
    worker.terminate()
    door.touch()
    assert worker.wait() == 0
    assert running.get(10) == 'x'
    assert not keys.leased()
    assert len(keys.ready()) + len(workers.ledger.lines('ran')) == 10
    assert not keys.counted()
    workers.start(pool='threads')
    assert [result.get(20) for result in waiting] == list(range(10))
    assert sorted(workers.ledger.values('ran')) == list(range(10))


@by_default('gevent')
def test_warm_shutdown_gives_back_what_a_rate_limit_holds(
    workers: Fleet, keys: Keys, pool: str
) -> None:
    app = workers.app()
    worker = workers.start('--prefetch-multiplier', '30', pool=pool, concurrency=1)
    results = [task(app, 'limited', i).apply_async() for i in range(20)]
    workers.ledger.wait(2, 'ran')
    worker.terminate()
    assert worker.wait() == 0
    assert not keys.leased()
    assert len(keys.ready()) + len(workers.ledger.lines('ran')) == 20
    assert not keys.counted()
    workers.start(pool='threads')
    assert [result.get(20) for result in results] == list(range(20))
    assert sorted(workers.ledger.values('ran')) == list(range(20))


@by_default('gevent')
def test_workers_that_stop_under_load_run_nothing_twice(workers: Fleet, pool: str) -> None:
    app = workers.app()
    first = workers.start('--prefetch-multiplier', '8', pool=pool, concurrency=4)
    results = [task(app, 'add', i, i).apply_async() for i in range(400)]
    workers.ledger.wait(50, 'ran')
    workers.start('--prefetch-multiplier', '8', pool=pool, concurrency=4)
    first.terminate()
    assert first.wait() == 0
    assert [result.get(30) for result in results] == [2 * i for i in range(400)]
    assert len(workers.ledger.lines('ran')) == 400


# -- what tasks do ---------------------------------------------------------------


@by_default('threads', 'gevent', 'eventlet')
def test_tasks_that_publish(make_fleet: Callable[..., Fleet], keys: Keys, pool: str) -> None:
    """The whole of what Celery builds from messages is in test_canvas; this runs everywhere."""
    workers = make_fleet()
    app = workers.app()
    workers.start(pool=pool, concurrency=4)
    canvas(app)
    # As many at once as there are places: each waits for a message while the pool is full.
    conversations = [task(app, 'converse', i).apply_async() for i in range(6)]
    assert [result.get(WAIT) for result in conversations] == list(range(6))
    retried = task(app, 'flaky', 2, countdown=0.1).apply_async()
    assert retried.get(WAIT) == 2
    assert task(app, 'replaced', 1).apply_async().get(WAIT) == 12
    assert len(workers.ledger.lines('ran', id=retried.id)) == 3
    wait_for(lambda: not keys.leased(), WAIT, 'all are settled')
    assert not keys.ready()


@by_default('threads', among=('threads', 'gevent', 'eventlet'))
def test_tasks_that_exit_become_dead_letters(
    make_fleet: Callable[..., Fleet], keys: Keys, pool: str
) -> None:
    workers = make_fleet(options={'delivery_limit': 3})
    app = workers.app()
    workers.start(pool=pool, concurrency=1)
    task(app, 'leave').apply_async()
    wait_for(lambda: keys.client.zcard(f'{keys.prefix}:f:celery') == 1, WAIT, 'a dead letter')
    assert [entry['deliveries'] for entry in workers.ledger.lines('ran')] == [1, 2, 3]
    assert not keys.leased()
    assert task(app, 'run', value='alive').apply_async().get(WAIT) == 'alive'


@by_default('gevent', among=('gevent', 'eventlet'))
def test_a_greenlet_that_was_killed_has_not_succeeded(workers: Fleet, pool: str) -> None:
    """Celery kills them in a cold shutdown, and would acknowledge their tasks."""
    app = workers.app()
    workers.start(pool=pool)
    assert task(app, 'perish_once').apply_async().get(WAIT) == 2
    assert [entry['deliveries'] for entry in workers.ledger.lines('ran')] == [1, 2]


def canvas(app: Celery) -> None:
    assert group(task(app, 'add', i, i) for i in range(30))().get(WAIT) == [
        2 * i for i in range(30)
    ]
    body = chain(task(app, 'total'), task(app, 'add', 1))
    assert chord([task(app, 'add', i, i) for i in range(10)])(body).get(WAIT) == 91
