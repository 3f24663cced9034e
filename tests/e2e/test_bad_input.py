"""Bad input over real workers: odd names, damaged data, data of the future, huge messages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from celery.exceptions import TaskRevokedError
from kombu import Connection

from kombu_reliable.keys import Keys
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

NAMES = ['with spaces', 'ünï-✓', '{braces}', 'n' * 1000, 'a:b;c', '=x', '~1~x', '*.#']


@pytest.fixture
def client(server: Server, database: int) -> redis.Redis:
    return server.client(db=database)


@pytest.fixture
def keys(database: int) -> Keys:
    return Keys(database)


def test_any_name_of_a_queue(workers: Fleet) -> None:
    workers.start('-Q', ','.join(NAMES), '--without-gossip')
    app = workers.app()
    results = [task(app, 'add', name, '!').apply_async(queue=name) for name in NAMES]
    assert [result.get(timeout=20) for result in results] == [f'{name}!' for name in NAMES]
    [active] = app.control.inspect(timeout=20, limit=1).active_queues().values()
    assert sorted(queue['name'] for queue in active) == sorted(NAMES)
    for name in NAMES[:3]:
        app.control.cancel_consumer(name, reply=True, timeout=20, limit=1)
        task(app, 'add', 1, 1).apply_async(queue=name)
        task(app, 'add', 1, 1).apply_async(queue=name, countdown=60)
    queue_names = ','.join(NAMES[:3])
    purged = workers.run('celery', '-A', 'tests.support.app', 'purge', '-f', '-Q', queue_names)
    assert 'Purged 6 messages from 3 known task queues' in purged.stdout, purged.stdout
    app.control.add_consumer(' ', reply=True, timeout=20, limit=1)
    assert task(app, 'add', 20, 1).apply_async(queue=' ').get(timeout=20) == 21


@pytest.mark.parametrize('kind', ['long', 'odd'])
def test_any_id_of_a_task(workers: Fleet, kind: str) -> None:
    ids = {'long': ['x' * 10_000], 'odd': ['a;b', 'a\0b', 'a\nb', '~1~x', '=', 'ü {x}', ' ']}[kind]
    workers.start('--without-gossip', '--without-mingle')
    app = workers.app()
    for id in ids:
        # Countdown, retries and revokes take other ways than a plain run.
        assert task(app, 'flaky', 1).apply_async(task_id=id, countdown=0.05).get(timeout=20) == 1
        later = task(app, 'run', 'never').apply_async(task_id=f'{id}2', countdown=3)
        later.revoke()
        with pytest.raises(TaskRevokedError):
            later.get(timeout=20)


def test_damaged_and_foreign_records_become_dead_letters(
    workers: Fleet, client: redis.Redis, keys: Keys
) -> None:
    worker = workers.start('--without-gossip')
    app = workers.app()
    for number in range(3):
        later = task(app, 'run', 'damaged').apply_async(countdown=3600)
        # What is delayed can be damaged in peace.
        [id] = set(client.zrange(keys.delayed('celery'), 0, -1)) - set(
            client.zrange(keys.ready('celery'), 0, -1)
        )
        record = client.get(keys.job(id.decode()))
        assert record is not None
        client.set(keys.job(id.decode()), record[: (5, 25, len(record) - 5)[number]])
        client.zrem(keys.delayed('celery'), id)
        client.zadd(keys.ready('celery'), {id: 0})
        later.forget()
    client.zadd(keys.ready('celery'), {'nobody': 0})
    client.set(keys.ready('foreign'), 'data')
    with Connection(workers.broker) as connection, connection.Producer() as producer:
        # Messages that are no tasks.
        producer.publish({'not': 'a task'}, routing_key='celery')
        producer.publish(b'\xff\xfe', routing_key='celery', content_type='application/x-foreign',
                         content_encoding='binary')  # fmt: skip
        producer.publish(b'{', routing_key='celery', content_type='application/json',
                         content_encoding='utf-8', headers={'task': 'x', 'id': 'y'})  # fmt: skip
    app.control.add_consumer('foreign', reply=True, timeout=20, limit=1)
    assert task(app, 'add', 1, 1).delay().get(timeout=20) == 2
    wait_for(lambda: client.zcard(keys.dead('celery')) >= 4, what='dead letters')
    assert worker.process.poll() is None
    assert workers.ledger.values('ran') == [[1, 1]]
    assert 'Unrecoverable' not in worker.text()


def test_a_worker_stops_once_when_the_layout_changes_under_it(
    workers: Fleet, client: redis.Redis, keys: Keys, tmp_path: Path
) -> None:
    """What it held is run again by whoever knows the layout."""
    worker = workers.start('--without-gossip', '--without-mingle')
    app = workers.app()
    gate = tmp_path / 'gate'
    task(app, 'wait_for_file', str(gate), 1).delay()
    workers.ledger.wait(1, 'started')
    client.hset(keys.meta, 'v', '99')
    with pytest.raises(Exception, match='layout 99, this version'):
        task(app, 'run', 2).delay()
    gate.touch()
    assert worker.wait(30) == 1
    assert worker.text().count('Unrecoverable error: LayoutError') == 1
    assert worker.text().count('Traceback') == 1, worker.text()
    refused = workers.start(ready=False)
    assert refused.wait(20) == 1
    assert 'the data has layout 99, this version of kombu_reliable reads layout 1' in refused.text()
    client.hset(keys.meta, 'v', '1')
    workers.start('--without-gossip', '--without-mingle')
    workers.ledger.wait(2, 'ended', value=1)
    wait_for(lambda: not client.exists(keys.leased('celery')), what='settlement')


def test_a_message_of_64_mib(workers: Fleet) -> None:
    workers.start('--without-gossip', '--without-mingle')
    app = workers.app()
    text = 'x' * (64 * 2**20)
    began = time.monotonic()
    assert task(app, 'measure', text).delay().get(timeout=60) == len(text)
    print(f'64 MiB through a worker in {time.monotonic() - began:.1f} s')
