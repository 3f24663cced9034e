"""What Celery offers on top of messages works over this transport, in every pool."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest
from celery import Celery, chain, chord, group
from celery.exceptions import TaskRevokedError, TimeLimitExceeded

from tests.conftest import empty_database
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet, task

WAIT = 20


matrix = pytest.mark.matrix


@pytest.fixture(
    scope='module',
    params=[
        'prefork',
        *(pytest.param(name, marks=matrix) for name in ('threads', 'gevent', 'eventlet', 'solo')),
    ],
)
def pool(request: pytest.FixtureRequest) -> str:
    """The default run has prefork; test_pools.py has a little of this for the others."""
    return str(request.param)


@pytest.fixture
def kills(pool: str) -> None:
    """Tasks that do not end by themselves can be ended by force."""
    if pool in ('threads', 'solo'):
        pytest.skip(f'Celery cannot end a running task in the {pool} pool')


@pytest.fixture(scope='module')
def workers(pool: str, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """One worker for all tests of the module: they only ask for results."""
    directory = tmp_path_factory.mktemp('canvas')
    with (
        empty_database(server) as number,
        fleet(directory, f'reliable+{server.url(number)}') as made,
    ):
        made.start('-E', concurrency=4, pool=pool)
        yield made


@pytest.fixture
def app(workers: Fleet) -> Celery:
    return workers.app()


def test_chain(app: Celery) -> None:
    result = chain(task(app, 'add', 1, 2), task(app, 'add', 3), task(app, 'add', 4))()
    assert result.get(WAIT) == 10


def test_group(app: Celery) -> None:
    result = group(task(app, 'add', i, i) for i in range(20))()
    assert result.get(WAIT) == [2 * i for i in range(20)]


def test_chord(app: Celery) -> None:
    result = chord([task(app, 'add', i, i) for i in range(10)])(task(app, 'total'))
    assert result.get(WAIT) == 90


def test_nested_chords(app: Celery) -> None:
    inner = [
        chord([task(app, 'add', i, j) for j in range(3)], task(app, 'total')) for i in range(3)
    ]
    assert chord(inner)(task(app, 'total')).get(WAIT) == 18


def test_chord_of_a_chain_of_a_group(app: Celery) -> None:
    header = [chain(task(app, 'add', i, 1), task(app, 'add', 1)) for i in range(3)]
    result = chain(group(header), task(app, 'total'), task(app, 'add', 100))()
    assert result.get(WAIT) == 109


def test_retries_with_a_countdown(app: Celery, workers: Fleet) -> None:
    result = task(app, 'flaky', 2, countdown=0.3).apply_async()
    assert result.get(WAIT) == 2
    runs = [entry['at'] for entry in workers.ledger.lines('ran', id=result.id)]
    assert len(runs) == 3
    assert all(later - earlier >= 0.29 for earlier, later in itertools.pairwise(runs))


def test_link_runs_after_success(app: Celery, workers: Fleet) -> None:
    linked = task(app, 'add', 10).set(task_id='linked-to-success')
    assert task(app, 'add', 1, 2).apply_async(link=linked).get(WAIT) == 3
    assert app.AsyncResult('linked-to-success').get(WAIT) == 13


def test_link_error_runs_after_failure(app: Celery, workers: Fleet) -> None:
    result = task(app, 'fail', 'as told').apply_async(link_error=task(app, 'on_error'))
    with pytest.raises(ValueError, match='as told'):
        result.get(WAIT)
    workers.ledger.wait(1, 'ran', task='on_error', value='as told')


def test_replace_with_a_chain_and_with_a_group(app: Celery) -> None:
    assert task(app, 'replaced', 1).apply_async().get(WAIT) == 12
    assert task(app, 'replaced_by_group', 3).apply_async().get(WAIT) == [0, 2, 4]


def test_chunks(app: Celery) -> None:
    chunks = [
        app.signature('celery.starmap', args=(task(app, 'add'), [(i, i), (i + 1, i + 1)]))
        for i in range(0, 6, 2)
    ]
    assert group(chunks)().get(WAIT) == [[0, 2], [4, 6], [8, 10]]


def test_revoke_before_the_start(app: Celery) -> None:
    result = task(app, 'run').apply_async(countdown=8)
    app.control.revoke(result.id, reply=True, timeout=WAIT, limit=1)
    with pytest.raises(TaskRevokedError):
        result.get(WAIT)


@pytest.mark.usefixtures('kills')
def test_revoke_terminates_a_running_task(app: Celery, workers: Fleet) -> None:
    result = task(app, 'sleep', 60).apply_async()
    workers.ledger.wait(1, 'started', id=result.id)
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(WAIT)
    assert not workers.ledger.lines('ended', id=result.id)


@pytest.mark.usefixtures('kills')
def test_hard_time_limit(app: Celery, pool: str) -> None:
    if pool == 'eventlet':
        pytest.skip('Celery has no time limits in the eventlet pool')
    with pytest.raises(TimeLimitExceeded):
        task(app, 'sleep', 60).apply_async(time_limit=1).get(WAIT)


def test_expired_tasks_do_not_run(app: Celery, workers: Fleet) -> None:
    result = task(app, 'run').apply_async(countdown=0.6, expires=0.3)
    with pytest.raises(TaskRevokedError):
        result.get(WAIT)
    assert not workers.ledger.lines('ran', id=result.id)


def test_rate_limit(app: Celery, workers: Fleet) -> None:
    group(task(app, 'limited', i) for i in range(12))().get(WAIT)
    runs = sorted(entry['at'] for entry in workers.ledger.lines('ran', task='limited'))
    # The first runs at once, the eleven others a tenth of a second apart.
    assert runs[-1] - runs[0] >= 0.5


def test_inspect_and_control(app: Celery) -> None:
    inspect = app.control.inspect(timeout=20, limit=1)
    assert inspect.ping() == {'w1@test': {'ok': 'pong'}}
    stats = app.control.inspect(timeout=20, limit=1).stats()
    assert stats['w1@test']['broker']['transport'] == 'reliable'
    registered = app.control.inspect(timeout=20, limit=1).registered()
    assert 'tests.support.app.add' in registered['w1@test']


def test_events_reach_a_monitor(app: Celery) -> None:
    seen: set[str] = set()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={'*': lambda event: seen.add(event['type'])}
        )
        with receiver.consumer_context() as (draining, *_):
            task(app, 'add', 1, 1).apply_async().get(WAIT)
            deadline = time.monotonic() + WAIT
            while 'task-succeeded' not in seen and time.monotonic() < deadline:
                with contextlib.suppress(TimeoutError):
                    draining.drain_events(timeout=1)
    assert {'task-received', 'task-started', 'task-succeeded'} <= seen


def test_a_worker_takes_up_a_new_queue_when_told(app: Celery, workers: Fleet) -> None:
    task(app, 'run', 'elsewhere').apply_async(queue='elsewhere')
    app.control.add_consumer('elsewhere', reply=True, timeout=20, limit=1)
    workers.ledger.wait(1, 'ran', value='elsewhere')
    app.control.cancel_consumer('elsewhere', reply=True, timeout=20, limit=1)


def test_nothing_is_left_leased(app: Celery, workers: Fleet, server: Server) -> None:
    """Runs last: every message of the tests above was settled."""
    number = int(workers.broker.rpartition('/')[2])
    with server.client(db=number) as client:
        wait_for(lambda: not client.hlen(f'{{kr:{number}:0}}:own'), WAIT, 'no message is leased')
