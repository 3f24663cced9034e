"""What no worker survives, or nobody can read, ends as a dead letter; the worker lives on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from kombu import Connection

from kombu_reliable.types import QueueCounts
from tests.support.faults import (
    counts,
    database_of,
    dead_reasons,
    keys_of,
    wait_for_counts,
)
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

WAYS_TO_DIE = ('exit at once', 'SystemExit', 'segfault', 'killed')


def test_tasks_that_end_their_process_become_dead_letters(
    make_fleet: Callable[..., Fleet], server: Server
) -> None:
    workers = make_fleet(options={'delivery_limit': 3, 'lease': 1})
    app = workers.app()
    worker = workers.start(concurrency=2)
    for how in WAYS_TO_DIE:
        task(app, 'die', how).apply_async()
    wait_for(lambda: counts(workers, server).dead == len(WAYS_TO_DIE), 60, 'all are dead')
    for how in WAYS_TO_DIE:
        assert workers.ledger.deliveries(value=how) == [1, 2, 3]
    assert set(dead_reasons(workers, server)) == {'delivery-limit'}
    assert task(app, 'run', value='alive').apply_async().get(20) == 'alive'
    assert worker.text().count(' ready.') == 1


def test_a_task_that_ends_whole_workers_becomes_a_dead_letter(
    make_fleet: Callable[..., Fleet], server: Server
) -> None:
    """Celery ends the worker when a task runs out of memory; something starts it again."""
    workers = make_fleet(options={'delivery_limit': 1, 'lease': 1})
    app = workers.app()
    task(app, 'die', 'MemoryError').apply_async()
    results = [task(app, 'run', value=i).apply_async() for i in range(3)]
    worker = workers.start(concurrency=1, ready=False)
    assert worker.wait() != 0
    assert 'Process got: on purpose' in worker.text()
    workers.start(concurrency=1)
    assert [result.get(20) for result in results] == [0, 1, 2]
    wait_for(lambda: dead_reasons(workers, server) == ['delivery-limit'], 10, 'a dead letter')
    assert len(workers.ledger.lines('ran', task='die')) == 1
    assert len(workers.ledger.lines('ran', task='run')) == 3


def damage(workers: Fleet, server: Server, identity: str) -> None:
    """Cuts a record short, as a foreign hand may do."""
    with server.client(db=database_of(workers)) as client:
        key = keys_of(workers).job(identity)
        record = client.get(key)
        assert record is not None
        client.set(key, record[: len(record) // 2])


def test_what_cannot_be_read_becomes_a_dead_letter_at_once(
    make_fleet: Callable[..., Fleet], server: Server
) -> None:
    workers = make_fleet()
    app = workers.app()
    known = {'task': 'tests.support.app.run', 'id': 'known'}
    with Connection(workers.broker) as connection, connection.Producer() as producer:

        def publish(body: bytes, content_type: str, **headers: str) -> None:
            producer.publish(
                body, routing_key='celery', content_type=content_type,
                content_encoding='utf-8', headers=headers,
            )  # fmt: skip

        publish(b'{garbage', 'application/json')
        publish(b'{garbage', 'application/json', **known)
        publish(b'unknown', 'application/x-unheard-of')
        publish(b'unknown', 'application/x-unheard-of', **known | {'id': 'other'})
        publish(b'not deflated', 'application/json', compression='application/x-gzip')
        publish(b'["no", "task"]', 'application/json')
        publish(b'[[], {}, {}]', 'application/json', task='tests.support.app.run')
        publish(b'[[], {}, {}]', 'application/json', task='nobody.knows', id='damaged')
        damage(workers, server, '=damaged')
    worker = workers.start(concurrency=1)
    wait_for(lambda: counts(workers, server).dead == 8, 20, 'all are dead letters')
    assert Counter(dead_reasons(workers, server)) == {
        'undecodable': 5, 'corrupt': 1, 'rejected': 2,
    }  # fmt: skip
    assert not workers.ledger.lines()
    assert task(app, 'run', value='alive').apply_async().get(20) == 'alive'
    assert worker.text().count(' ready.') == 1


def test_an_unknown_task_is_rejected_as_celery_does_it(workers: Fleet, server: Server) -> None:
    app = workers.app()
    worker = workers.start(concurrency=1)
    result = app.send_task('nobody.knows.this')
    wait_for(lambda: dead_reasons(workers, server) == ['rejected'], 20, 'a dead letter')
    worker.wait_for_log('Received unregistered task')
    wait_for(lambda: result.state == 'FAILURE', 10, 'Celery says so in the result')
    assert task(app, 'run', value='alive').apply_async().get(20) == 'alive'
    wait_for_counts(workers, server, QueueCounts(ready=0, delayed=0, leased=0, dead=1))
