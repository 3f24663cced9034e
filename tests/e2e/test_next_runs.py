"""A retry or replacement is its job's next run: exactly one, whatever dies in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chord

from kombu_reliable.keys import Keys
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

LEASE = 2.0


@pytest.fixture
def client(workers: Fleet, server: Server) -> Iterator[redis.Redis]:
    with server.client(db=database_of(workers)) as client:
        yield client


def database_of(workers: Fleet) -> int:
    return int(workers.broker.rpartition('/')[2])


def keys_of(workers: Fleet) -> Keys:
    return Keys(database_of(workers))


def nothing_left(workers: Fleet, client: redis.Redis, queue: str = 'celery') -> bool:
    keys = keys_of(workers)
    places = (keys.ready(queue), keys.delayed(queue), keys.leased(queue), keys.dead(queue))
    return not client.exists(keys.owners, *places)


@pytest.mark.parametrize(
    ('name', 'arguments', 'runs'),
    [
        ('retry_once', {}, {'retry_once': 2}),
        ('autoretried', {}, {'autoretried': 2}),
        ('replaced_by_task', {'value': 1}, {'replaced_by_task': 1, 'run': 1}),
    ],
)
def test_a_worker_that_dies_between_publish_and_ack(
    workers: Fleet, client: redis.Redis, name: str, arguments: dict[str, Any], runs: dict[str, int]
) -> None:
    app = workers.app()
    workers.kill_next_worker('after-next-run')
    first = workers.start(concurrency=1)
    result = task(app, name, **arguments).apply_async()
    wait_for(lambda: first.process.poll() is not None, 20, 'the worker has died')
    assert len(workers.ledger.lines('ran')) == 1
    # Ready at once, not after a lease: the run has ended with the publish of the next one.
    assert client.zcard(keys_of(workers).ready('celery')) == 1
    assert not client.exists(keys_of(workers).owners)
    workers.start(concurrency=1)
    assert result.get(20) == 1
    wait_for(lambda: nothing_left(workers, client), 10, 'all is settled')
    ran = workers.ledger.lines('ran')
    assert {name: sum(line['task'] == name for line in ran) for name in runs} == runs
    assert len(ran) == sum(runs.values())
    # A next run is delivered anew.
    assert [line['deliveries'] for line in ran] == [1] * len(ran)
    assert not any(line['redelivered'] for line in ran)


def test_the_countdown_of_a_retry_survives_the_death_of_its_worker(workers: Fleet) -> None:
    app = workers.app()
    workers.kill_next_worker('after-next-run')
    first = workers.start(concurrency=1)
    result = task(app, 'retry_once', countdown=4).apply_async()
    wait_for(lambda: first.process.poll() is not None, 20, 'the worker has died')
    workers.start(concurrency=1)
    assert result.get(20) == 1
    one, two = workers.ledger.lines('ran')
    assert 4 - 0.1 <= two['at'] - one['at'] <= 4 + LEASE + 15


def test_chord_unlock_goes_on_after_the_death_of_its_worker(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    """With a backend that cannot join by itself, a task polls for the end of the header."""
    results = tmp_path / 'results'
    results.mkdir()
    workers = make_fleet(backend=f'file://{results}', config={'result_chord_retry_interval': 0.2})
    app = workers.app()
    door = tmp_path / 'door'
    header = [task(app, 'wait_for_file', str(door), value=i) for i in range(2)]
    workers.start('-Q', 'header', concurrency=2)
    for signature in header:
        signature.set(queue='header')
    workers.kill_next_worker('after-next-run')
    first = workers.start(concurrency=1)
    result = chord(header)(task(app, 'total'))
    wait_for(lambda: first.process.poll() is not None, 20, 'the worker has died')
    door.touch()
    workers.start(concurrency=1)
    assert result.get(30) == 1


def test_a_fenced_worker_cannot_retry(workers: Fleet, client: redis.Redis, tmp_path: Path) -> None:
    app = workers.app()
    door = tmp_path / 'door'
    frozen = workers.start(concurrency=1)
    result = task(app, 'retry_after', str(door)).apply_async()
    workers.ledger.wait(1, 'started')
    frozen.pause()
    try:
        workers.start(concurrency=1)
        assert result.get(20) == 'done'
        wait_for(lambda: nothing_left(workers, client), 10, 'the job is done and forgotten')
        door.touch()
    finally:
        frozen.resume()
    workers.ledger.wait(1, 'retries')
    frozen.wait_for_log('was refused')
    assert nothing_left(workers, client)
    # Another task shows that nothing of the refused one is on its way.
    assert task(app, 'run', 7).apply_async().get(20) == 7
    assert len(workers.ledger.lines('started')) == 2


def test_deduplication_knows_a_retry_from_a_redelivery(make_fleet: Callable[..., Fleet]) -> None:
    workers = make_fleet(config={'worker_deduplicate_successful_tasks': True})
    app = workers.app()
    worker = workers.start(concurrency=1)
    assert task(app, 'flaky', 2).apply_async().get(20) == 2
    assert len(workers.ledger.lines('ran', task='flaky')) == 3
    # One that has succeeded is delivered again because its worker died: it is not run again.
    workers.kill_next_worker('after-run')
    result = task(app, 'run', 'once').apply_async()
    wait_for(lambda: worker.process.poll() is not None, 20, 'the worker has died')
    assert result.get(5) == 'once'
    second = workers.start(concurrency=1)
    second.wait_for_log(result.id)
    assert task(app, 'run', 'after').apply_async().get(20) == 'after'
    assert len(workers.ledger.lines('ran', value='once')) == 1


def test_one_id_published_twice_is_two_jobs(workers: Fleet, tmp_path: Path) -> None:
    app = workers.app()
    door = tmp_path / 'door'
    for value in (1, 2):
        task(app, 'wait_for_file', str(door), value=value).apply_async(task_id='fixed')
    workers.start(concurrency=2)
    workers.ledger.wait(2, 'started')
    # Both run at the same time; a third comes when they are done.
    door.touch()
    workers.ledger.wait(2, 'ended')
    task(app, 'wait_for_file', str(door), value=3).apply_async(task_id='fixed')
    assert [line['value'] for line in workers.ledger.wait(3, 'ended')][2] == 3
    assert {line['id'] for line in workers.ledger.lines('ended')} == {'fixed'}


def test_a_retry_does_not_wait_for_its_first_delay_again(workers: Fleet) -> None:
    app = workers.app()
    workers.start(concurrency=1)
    sent_at = time.time()
    headers = {'x-delay': 10_000, 'mine': 'kept'}
    assert task(app, 'retry_once').apply_async(headers=headers).get(20) == 1
    one, two = workers.ledger.lines('ran')
    assert one['at'] - sent_at >= 10 - 0.1
    assert two['at'] - one['at'] < 10


def test_early_acks_retry_as_ever(make_fleet: Callable[..., Fleet], server: Server) -> None:
    """Their run is settled before it begins, so a retry is a job of its own."""
    workers = make_fleet(config={'task_acks_late': False})
    app = workers.app()
    workers.start(concurrency=2)
    results = [task(app, 'flaky', 3, countdown=0.2).apply_async() for _ in range(10)]
    assert [result.get(30) for result in results] == [3] * 10
    assert len(workers.ledger.lines('ran')) == 40
    with server.client(db=database_of(workers)) as client:
        wait_for(lambda: nothing_left(workers, client), 10, 'all is settled')
