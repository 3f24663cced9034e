"""Unique jobs over real workers: one at a time, whoever publishes and whatever dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

import celery_ext
from celery_ext import DuplicateJob, Extension
from kombu_reliable import open_store, pack_id
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet, task

Send = Callable[..., AsyncResult]

PROCESSES = 8
EACH = 125


@pytest.fixture(scope='module')
def crew(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A worker with two processes, which all tests share that kill nobody."""
    with Server(server.binary) as own:
        url = f'reliable+redis://127.0.0.1:{own.port}'
        directory = tmp_path_factory.mktemp('unique')
        with fleet(
            directory, f'{url}/0', backend=f'{url}/1', module='tests.support.installed'
        ) as made:
            made.start(concurrency=2)
            yield made


@pytest.fixture(scope='module')
def crew_ext(crew: Fleet) -> Extension:
    return celery_ext.install(crew.app())


@pytest.fixture
def call(crew_ext: Extension) -> Send:
    def call(name: str, *args: Any, **options: Any) -> AsyncResult:
        return task(crew_ext.app, name, *args).apply_async(**options)

    return call


@pytest.fixture
def door(tmp_path: Path) -> Path:
    return tmp_path / 'door'


def locks(ext: Extension) -> list[str]:
    store = ext.store
    return [key.decode() for key in store.client.scan_iter(store.keys.unique('') + '*')]


def free(ext: Extension) -> None:
    wait_for(lambda: not locks(ext), 20, 'no key is taken any more')


def ran(crew: Fleet, result: AsyncResult, event: str = 'ran') -> list[Any]:
    return [line['value'] for line in crew.ledger.lines(event, id=result.id)]


# -- the whole fleet -------------------------------------------------------------------------


#: Forks once it has loaded everything, and publishes in all processes at once.
PROGRAM = """
import os, sys
import celery_ext
from celery import Celery

app = Celery('testapp', broker=sys.argv[1])
celery_ext.install(app)
signature = app.signature('tests.support.app.run', args=(1,))
wanted = {'key': 'the one', 'scope': 'global'}
processes, each = int(sys.argv[2]), int(sys.argv[3])
children = []
for _ in range(processes):
    child = os.fork()
    if not child:
        ids = {signature.apply_async(unique=wanted).id for _ in range(each)}
        os.write(1, (' '.join(ids) + '\\n').encode())
        os._exit(0)
    children.append(child)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_many_publishes_from_many_processes_give_one_job(
    installed: Fleet, ext: Extension, send: Send
) -> None:
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM, installed.broker, str(PROCESSES), str(EACH)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    told = done.stdout.splitlines()
    assert len(told) == PROCESSES
    ids = set(told)
    assert len(ids) == 1
    assert ext.queues['celery'].counts().ready == 1
    assert len(locks(ext)) == 1
    installed.start(concurrency=1)
    installed.ledger.wait(1, 'ran')
    free(ext)
    assert [line['id'] for line in installed.ledger.lines('ran')] == list(ids)
    again = send('run', 2, unique={'key': 'the one', 'scope': 'global'})
    assert again.get(20) == 2


def test_the_death_of_its_worker_leaves_no_lock(
    installed: Fleet, ext: Extension, send: Send, door: Path
) -> None:
    first = installed.start(concurrency=1)
    result = send('wait_for_file', str(door), unique='report')
    installed.ledger.wait(1, 'started')
    first.kill()
    assert send('wait_for_file', str(door), unique='report').id == result.id
    installed.start(concurrency=1)
    installed.ledger.wait(2, 'started')
    assert send('wait_for_file', str(door), unique='report').id == result.id
    door.touch()
    result.get(20)
    free(ext)
    assert send('wait_for_file', str(door), unique='report').id != result.id
    free(ext)


def test_a_job_that_runs_once_and_is_lost_leaves_no_lock(
    make_fleet: Callable[..., Fleet], door: Path
) -> None:
    crew = make_fleet(module='tests.support.installed', config={'task_acks_late': False})
    ext = celery_ext.install(crew.app())
    first = crew.start(concurrency=1)
    wait = task(ext.app, 'wait_for_file', str(door))
    result = wait.apply_async(unique='report')
    crew.ledger.wait(1, 'started')
    noted = ext.store.keys.extra(pack_id(result.id))
    wait_for(lambda: ext.store.client.hexists(noted, 'once'), 10, 'it was acknowledged')
    first.kill()
    crew.start(concurrency=1)
    free(ext)
    assert ext.jobs[result].state == 'failed'
    door.touch()
    again = wait.apply_async(unique='report')
    again.get(20)
    free(ext)


# -- until the start -------------------------------------------------------------------------


def test_a_key_that_is_free_when_the_run_starts(
    installed: Fleet, ext: Extension, send: Send, tmp_path: Path
) -> None:
    installed.start(concurrency=1)
    doors = [tmp_path / name for name in 'abc']
    busy = send('wait_for_file', str(doors[0]))
    installed.ledger.wait(1, 'started')
    wanted = {'key': 'report', 'until': 'start'}
    first = send('wait_for_file', str(doors[1]), 1, unique=wanted)
    wait_for(lambda: ext.jobs[first].state == 'leased', 10, 'the worker has it')
    # It has been claimed, but not begun: what is published now would do the same.
    assert send('wait_for_file', str(doors[1]), 2, unique=wanted).id == first.id
    doors[0].touch()
    busy.get(20)
    installed.ledger.wait(2, 'started')
    second = send('wait_for_file', str(doors[2]), 3, unique=wanted)
    assert second.id != first.id
    assert send('wait_for_file', str(doors[2]), 4, unique=wanted).id == second.id
    for door in doors[1:]:
        door.touch()
    assert (first.get(20), second.get(20)) == (1, 3)
    free(ext)


@pytest.mark.parametrize(
    'pool',
    [
        'threads',
        pytest.param('solo', marks=pytest.mark.matrix),
        pytest.param('gevent', marks=pytest.mark.matrix),
    ],
)
def test_other_pools_free_it_as_well(
    installed: Fleet, ext: Extension, send: Send, door: Path, pool: str
) -> None:
    installed.start(concurrency=2, pool=pool)
    wanted = {'key': 'report', 'until': 'start'}
    result = send('wait_for_file', str(door), 1, unique=wanted)
    installed.ledger.wait(1, 'started')
    assert not locks(ext)
    door.touch()
    assert result.get(20) == 1


# -- conflicts -------------------------------------------------------------------------------


def test_skip_gives_the_result_of_the_other(call: Send, crew_ext: Extension, door: Path) -> None:
    first = call('wait_for_file', str(door), 7, unique='skipped')
    second = call('wait_for_file', str(door), 8, unique='skipped', task_id='mine')
    assert second.id == first.id
    assert 'mine' not in crew_ext.jobs
    door.touch()
    assert second.get(20) == 7
    free(crew_ext)


def test_raise_names_the_other(call: Send, crew_ext: Extension, door: Path) -> None:
    first = call('wait_for_file', str(door), unique='raised')
    with pytest.raises(DuplicateJob, match=first.id) as caught:
        call('wait_for_file', str(door), unique={'key': 'raised', 'on_conflict': 'raise'})
    assert caught.value.id == first.id
    door.touch()
    first.get(20)
    free(crew_ext)


def test_replace_behind_one_that_runs(
    call: Send, crew: Fleet, crew_ext: Extension, door: Path
) -> None:
    wanted = {'key': 'replaced', 'on_conflict': 'replace'}
    first = call('wait_for_file', str(door), 0, unique=wanted)
    crew.ledger.wait(1, 'started', id=first.id)
    others = [call('wait_for_file', str(door), n, unique=wanted) for n in range(1, 6)]
    for displaced in others[:-1]:
        with pytest.raises(TaskRevokedError, match='replaced'):
            displaced.get(20)
    assert crew_ext.jobs[others[-1]].state == 'waiting'
    door.touch()
    assert (first.get(20), others[-1].get(20)) == (0, 5)
    ended = crew.ledger.lines('ended', id=first.id)[0]['at']
    assert crew.ledger.lines('started', id=others[-1].id)[0]['at'] >= ended
    assert not any(crew.ledger.lines('started', id=one.id) for one in others[:-1])
    free(crew_ext)


def test_debounce(call: Send, crew: Fleet, crew_ext: Extension) -> None:
    wanted = {'key': 'debounced', 'on_conflict': 'replace'}
    calls = [call('run', n, countdown=4, unique=wanted) for n in range(20)]
    assert calls[-1].get(20) == 19
    assert [ran(crew, one) for one in calls] == [[]] * 19 + [[19]]
    free(crew_ext)


def test_a_retry_keeps_its_key(call: Send, crew: Fleet, crew_ext: Extension) -> None:
    first = call('retry_once', 60, unique={'key': 'retried'})
    wait_for(lambda: crew_ext.jobs[first].state == 'delayed', 20, 'it waits for its retry')
    assert call('retry_once', unique={'key': 'retried'}).id == first.id
    crew_ext.store.jobs.reschedule(first.id, 0)
    assert first.get(20) == 1
    free(crew_ext)


def test_a_task_with_the_decorator(crew: Fleet, crew_ext: Extension, door: Path) -> None:
    signature = crew_ext.app.signature('tests.support.installed.nightly', (str(door),))
    first = signature.apply_async()  # this program does not know the task, nor its decorator
    crew.ledger.wait(1, 'started', id=first.id)
    assert locks(crew_ext) == []
    # The worker does: what it publishes is unique.
    parent = crew_ext.app.send_task('tests.support.installed.start_nightly', (str(door), 3))
    ids = parent.get(20)
    assert len(set(ids)) == 1
    door.touch()
    AsyncResult(ids[0], app=crew_ext.app).get(20)
    free(crew_ext)


def test_a_dead_letter_and_its_replay(call: Send, crew_ext: Extension, door: Path) -> None:
    first = call('reject_until', str(door), 1, unique='dead')
    wait_for(lambda: crew_ext.jobs[first].state == 'failed', 20, 'it has failed')
    free(crew_ext)
    second = call('wait_for_file', str(door), unique={'key': 'x', 'scope': 'global'})
    third = call('reject_until', str(door), 2, unique='dead', countdown=60)
    with pytest.raises(DuplicateJob, match=third.id):
        crew_ext.jobs.retry(first)
    crew_ext.jobs.cancel(third)
    door.touch()
    crew_ext.jobs.retry(first)
    second.get(20)
    free(crew_ext)


# -- canvas ----------------------------------------------------------------------------------


def test_a_chord_with_members_that_are_skipped(
    call: Send, crew: Fleet, crew_ext: Extension, door: Path
) -> None:
    app = crew_ext.app
    first = call('wait_for_file', str(door), 5, unique='member')
    members = [task(app, 'wait_for_file', str(door), n).set(unique='member') for n in (6, 7)]
    whole = chord([*members, task(app, 'run', 1)])(task(app, 'total'))
    door.touch()
    assert whole.get(20) == 11
    assert first.get(20) == 5
    assert len(crew.ledger.lines('started', task='wait_for_file', id=first.id)) == 1
    assert not any(crew.ledger.lines('started', id=one.id) for one in whole.parent.results[:2])
    free(crew_ext)


def test_groups_chains_and_callbacks(call: Send, crew_ext: Extension, door: Path) -> None:
    app = crew_ext.app
    call('wait_for_file', str(door), 5, unique='canvas')
    member = task(app, 'wait_for_file', str(door), 6).set(unique='canvas')
    steps = chain(member, task(app, 'add', 10)).apply_async()
    members = group(member, task(app, 'run', 1)).apply_async()
    linked = call('wait_for_file', str(door), 7, unique='canvas', link=task(app, 'run').clone())
    door.touch()
    assert steps.get(20) == 15
    assert members.get(20) == [5, 1]
    assert linked.get(20) == 5
    free(crew_ext)


def test_who_follows_a_failure_fails(call: Send, crew_ext: Extension, door: Path) -> None:
    app = crew_ext.app
    first = call('fail_after', str(door), unique='failing')
    member = task(app, 'fail_after', str(door)).set(unique='failing')
    whole = chord([member, task(app, 'run', 1)])(task(app, 'total'))
    door.touch()
    with pytest.raises(Exception, match='as told'):
        whole.get(20)
    wait_for(lambda: crew_ext.jobs[first].state == 'failed', 20, 'it is a dead letter')
    # The one that followed it is none.
    assert [job.id for job in crew_ext.jobs.failed(group='tests.support.app.fail_after')] == [
        first.id
    ]
    assert not [job for job in crew_ext.jobs.failed() if job.task == 'celery_ext.follow']
    free(crew_ext)


# -- plain kombu -----------------------------------------------------------------------------


def test_plain_kombu(crew: Fleet) -> None:
    app = crew.app()
    with app.connection_for_write() as connection, connection.Producer() as producer:
        headers = {'x-unique-key': 'kombu', 'id': 'one', 'task': 'x'}
        send = {'routing_key': 'plain', 'headers': headers}
        assert producer.publish('a', **send) is None
        assert producer.publish('b', **(send | {'headers': {**headers, 'id': 'two'}})) == 'one'
        store = open_store(connection)
        assert store.counts('plain').ready == 1
        message = connection.SimpleQueue('plain').get(timeout=10)
        assert message.payload == 'a'
        assert producer.publish('c', **send) == 'one'
        assert message.unlock()
        assert not message.unlock()
        assert producer.publish('d', **(send | {'headers': {**headers, 'id': 'three'}})) is None
        message.ack()
        store.purge('plain')
