"""Those who wait for a task hear of its end, also when the worker that had it cannot say so."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord
from celery.exceptions import ChordError, NotRegistered, TaskRevokedError, WorkerLostError

import celery_ext
from celery_ext.ends import DependencyFailed
from kombu_reliable.envelope import pack_id
from tests.support.faults import counts, dead_reasons, keys_of
from tests.support.listener import Listener
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

WAIT = 30
LEASE = 2.0

matrix = pytest.mark.matrix


def acks(*by_default: str) -> pytest.MarkDecorator:
    """Runs a test with both kinds of acks, those that are not named only in the matrix."""
    kinds = [('late', True), ('early', False)]
    return pytest.mark.parametrize(
        'late',
        [
            pytest.param(late, id=name, marks=() if name in by_default else matrix)
            for name, late in kinds
        ],
    )


@pytest.fixture
def crew(make_fleet: Callable[..., Fleet]) -> Callable[..., Fleet]:
    """Makes a fleet with the extension."""

    def make(late: bool = True, **options: Any) -> Fleet:
        return make_fleet(
            module='tests.support.installed', options=options, config={'task_acks_late': late}
        )

    return make


@pytest.fixture
def client(server: Server, database: int) -> Any:
    with server.client(db=database) as client:
        yield client


def called_back(workers: Fleet) -> list[str]:
    return [line['value'] for line in workers.ledger.lines('ran', task='on_error')]


# -- tasks that end workers ------------------------------------------------------


@acks('late')
def test_a_task_that_ends_its_worker_ends_no_other(
    crew: Callable[..., Fleet], server: Server, late: bool
) -> None:
    workers = crew(late)
    app = workers.app()
    result = task(app, 'die', 'MemoryError').apply_async(link_error=task(app, 'on_error'))
    worker = workers.start(concurrency=1, ready=False)
    assert worker.wait() != 0
    assert 'Process got: on purpose' in worker.text()
    assert dead_reasons(workers, server) == ['out-of-memory']
    with pytest.raises(MemoryError, match='on purpose'):
        result.get(WAIT)
    assert called_back(workers) == ['on purpose']
    workers.start(concurrency=1)
    assert task(app, 'run', 'alive').apply_async().get(WAIT) == 'alive'
    assert len(workers.ledger.lines('ran', task='die')) == 1


@pytest.mark.parametrize(
    'pool',
    ['threads', pytest.param('gevent', marks=matrix), pytest.param('eventlet', marks=matrix)],
)
@acks('early')
def test_memory_that_runs_out_in_a_thread_is_a_failure(
    crew: Callable[..., Fleet], server: Server, pool: str, late: bool
) -> None:
    workers = crew(late)
    app = workers.app()
    workers.start(pool=pool)
    result = task(app, 'die', 'MemoryError').apply_async()
    with pytest.raises(MemoryError, match='on purpose'):
        result.get(WAIT)
    wait_for(lambda: dead_reasons(workers, server) == ['out-of-memory'], WAIT, 'a dead letter')
    assert task(app, 'run', 'alive').apply_async().get(WAIT) == 'alive'
    assert len(workers.ledger.lines('ran', task='die')) == 1


def test_a_task_that_was_acknowledged_early_and_lost_has_failed(
    crew: Callable[..., Fleet], server: Server, tmp_path: Path
) -> None:
    workers = crew(late=False)
    app = workers.app()
    first = workers.start(concurrency=1)
    result = task(app, 'wait_for_file', str(tmp_path / 'door')).apply_async(
        link_error=task(app, 'on_error')
    )
    workers.ledger.wait(1, 'started')
    # It is renewed as any.
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.5 * LEASE, WAIT, 'a lease has passed')
    assert counts(workers, server).leased == 1
    workers.start(concurrency=1)
    first.kill()
    with pytest.raises(WorkerLostError, match='acknowledged early'):
        result.get(WAIT)
    assert dead_reasons(workers, server) == ['lost']
    wait_for(lambda: len(called_back(workers)) == 1, WAIT, 'the error callback')
    assert len(workers.ledger.lines('started')) == 1


@acks('early')
def test_shutdown_gives_back_what_has_not_begun(
    crew: Callable[..., Fleet], client: redis.Redis, tmp_path: Path, late: bool
) -> None:
    workers = crew(late)
    app, keys = workers.app(), keys_of(workers)
    door = tmp_path / 'door'
    worker = workers.start('--prefetch-multiplier', '10', concurrency=1)
    running = task(app, 'wait_for_file', str(door), 'x').apply_async()
    workers.ledger.wait(1, 'started')
    waiting = [task(app, 'run', i).apply_async() for i in range(5)]
    wait_for(lambda: client.hlen(keys.owners) == 6, WAIT, 'all are leased')
    worker.terminate()
    wait_for(lambda: client.zcard(keys.ready('celery')) == 5, WAIT, 'those are back')
    door.touch()
    assert worker.wait() == 0
    assert running.get(WAIT) == 'x'
    assert not client.exists(keys.owners, keys.dead('celery'))
    workers.start(concurrency=1)
    assert [result.get(WAIT) for result in waiting] == list(range(5))
    assert {line['deliveries'] for line in workers.ledger.lines('ran')} == {1}


@acks('late')
def test_it_is_recorded_that_a_task_is_terminated_before_it_is(
    crew: Callable[..., Fleet], server: Server, database: int, late: bool
) -> None:
    """Or another worker would run it, if this one died now."""
    workers = crew(late)
    app = workers.app()
    workers.start(concurrency=1)
    listener = Listener(server.client(db=database))
    result = task(app, 'last_words').apply_async()
    workers.ledger.wait(1, 'started')
    app.control.broadcast('revoke', arguments={'task_id': [result.id], 'terminate': True})
    with pytest.raises(TaskRevokedError):
        result.get(WAIT)
    (killed,) = workers.ledger.wait(1, 'killed')
    listener.close()
    assert listener.times[pack_id(result.id), 'cancel'] < killed['at']
    assert 'requeue' not in listener.verdicts[pack_id(result.id)]


# -- chords ----------------------------------------------------------------------


def never_succeeds(app: Celery, member: Any) -> Any:
    """A chord of which one member does not succeed."""
    header = [task(app, 'add', 1, 1), member, task(app, 'add', 2, 2)]
    return chord(header)(task(app, 'total').on_error(task(app, 'on_error')))


def assert_every_get_ends(workers: Fleet, result: Any, text: str) -> None:
    """In processes that wait already, and in those that come later."""

    def wait(app: Celery) -> Any:
        return app.AsyncResult(result.id).get(WAIT, propagate=False)

    apps = [workers.app() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(wait, apps))
    for answer in answers:
        assert isinstance(answer, ChordError), answer
        assert text in str(answer)
    # Whoever has the header as well gets the error of its member.
    with pytest.raises(
        (ChordError, WorkerLostError, TaskRevokedError, DependencyFailed, NotRegistered)
    ):
        result.get(WAIT)
    workers.ledger.wait(1, 'ran', task='on_error')


def test_a_chord_whose_member_reaches_the_limit(crew: Callable[..., Fleet]) -> None:
    workers = crew(delivery_limit=2)
    app = workers.app()
    workers.start(concurrency=2)
    result = never_succeeds(app, task(app, 'die', 'killed'))
    assert_every_get_ends(workers, result, 'limit of deliveries')
    assert workers.ledger.deliveries(task='die') == [1, 2]


def test_a_chord_whose_member_is_lost(
    crew: Callable[..., Fleet], client: redis.Redis, tmp_path: Path
) -> None:
    workers = crew(late=False)
    app, keys = workers.app(), keys_of(workers)
    first = workers.start(concurrency=3)
    member = task(app, 'wait_for_file', str(tmp_path / 'door')).set(task_id='member')
    result = never_succeeds(app, member)
    workers.ledger.wait(2, 'ran')
    # Until then it would be delivered again.
    once = partial(client.hexists, keys.extra(pack_id('member')), 'once')
    wait_for(once, WAIT, 'it has begun, and the server knows')
    first.kill()
    workers.start(concurrency=2)
    assert_every_get_ends(workers, result, 'the worker that ran the task was lost')


@pytest.mark.parametrize('when', ['before', 'after'])
def test_a_chord_whose_member_is_canceled(crew: Callable[..., Fleet], when: str) -> None:
    """Before or after somebody is there who can say so."""
    workers = crew()
    app = workers.app()
    ext = celery_ext.install(app)
    if when == 'after':
        workers.start(concurrency=2)
    result = never_succeeds(app, task(app, 'run').set(countdown=600, task_id='unwanted'))
    ext.jobs['unwanted'].cancel()
    if when == 'before':
        workers.start(concurrency=2)
    assert_every_get_ends(workers, result, 'unwanted')
    with pytest.raises(TaskRevokedError):
        app.AsyncResult('unwanted').get(WAIT)
    assert not workers.ledger.lines('ran', id='unwanted')


def test_a_chord_whose_member_fails_by_policy(crew: Callable[..., Fleet]) -> None:
    workers = crew()
    app = workers.app()
    celery_ext.install(app)
    failing = task(app, 'fail', 'boom').set(countdown=1).apply_async()
    member = task(app, 'run').set(depends_on=[failing.id], dependency_policy='fail')
    result = never_succeeds(app, member)
    workers.start(concurrency=2)
    assert_every_get_ends(workers, result, 'what the task depends on did not succeed')


def test_a_chord_whose_member_nobody_knows(crew: Callable[..., Fleet]) -> None:
    """Celery writes its failure, but not the chord's."""
    workers = crew()
    app = workers.app()
    workers.start(concurrency=2)
    assert_every_get_ends(workers, never_succeeds(app, app.signature('nobody.knows')), 'nobody')


def test_the_end_of_a_chain_hears_of_its_beginning(crew: Callable[..., Fleet]) -> None:
    workers = crew()
    app = workers.app()
    ext = celery_ext.install(app)
    workers.start(concurrency=1)
    first = task(app, 'run', 1).set(countdown=600, task_id='first')
    result = chain(first, task(app, 'add', 1), task(app, 'add', 2))()
    ext.jobs['first'].cancel()
    with pytest.raises(TaskRevokedError):
        app.AsyncResult(result.id).get(WAIT)


def test_an_end_is_told_again_until_it_could_be(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    results = tmp_path / 'results'
    results.mkdir()
    workers = make_fleet(module='tests.support.installed', backend=f'file://{results}')
    app = workers.app()
    ext = celery_ext.install(app)
    worker = workers.start(concurrency=1)
    result = task(app, 'run').apply_async(countdown=600, link_error=task(app, 'on_error'))
    results.rename(tmp_path / 'away')
    ext.jobs[result.id].cancel()
    worker.wait_for_log('cannot be told, again')
    (tmp_path / 'away').rename(results)
    with pytest.raises(TaskRevokedError):
        result.get(WAIT)
    wait_for(lambda: called_back(workers) == ['canceled'], WAIT, 'the error callback')


# -- those who are late ----------------------------------------------------------


@pytest.mark.parametrize(
    ('name', 'event'), [('retry_after', 'retries'), ('replaced_after', 'replaces')]
)
def test_a_fenced_worker_tells_nobody_of_a_failure(
    crew: Callable[..., Fleet], client: redis.Redis, tmp_path: Path, name: str, event: str
) -> None:
    """Its next run is refused, because another worker has the task."""
    workers = crew()
    app, keys = workers.app(), keys_of(workers)
    door = tmp_path / 'door'
    frozen = workers.start(concurrency=1)
    result = task(app, name, str(door)).apply_async(link_error=task(app, 'on_error'))
    workers.ledger.wait(1, 'started')
    frozen.pause()
    try:
        second = workers.start(concurrency=1)
        assert result.get(WAIT) == 'done'
        wait_for(lambda: not client.exists(keys.owners), 20, 'it is settled')
        # Without the result it can be seen who writes one.
        result.forget()
        second.pause()
        door.touch()
    finally:
        frozen.resume()
    try:
        workers.ledger.wait(1, event)
        frozen.wait_for_log('changed nothing')
        assert task(app, 'run', 7).apply_async().get(WAIT) == 7
    finally:
        second.resume()
    assert app.AsyncResult(result.id).state == 'PENDING'
    assert not called_back(workers)
    assert not client.exists(keys.dead('celery'))
