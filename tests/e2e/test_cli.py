"""``celery reliable ...`` over a real worker: tables, JSON, and what can go wrong."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery
from celery.result import AsyncResult
from click.testing import CliRunner, Result

import celery_ext
from celery_ext import Extension, Throttle
from celery_ext.cli import COMMANDS
from tests.conftest import empty_database
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet, fleet, task

ODD = (
    '<script>alert("1")</script>',
    "it's/a/path",
    'grün 日本語',
    'x' * 500,
    'red \x1b[31m\n\u202e',
)

Run = Callable[..., Result]


@pytest.fixture(scope='module')
def shop(
    servers: Callable[[str], Server], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """A worker for all tests of this module."""
    server = servers('valkey')
    with empty_database(server) as number:
        url = f'reliable+{server.url(number)}'
        directory = tmp_path_factory.mktemp('shop')
        with fleet(directory, url, module='tests.support.installed') as made:
            made.start()
            yield made


@pytest.fixture(scope='module')
def ext(shop: Fleet) -> Extension:
    return celery_ext.install(shop.app())


@pytest.fixture(scope='module')
def send(ext: Extension) -> Callable[..., AsyncResult]:
    def send(name: str, *args: Any, **options: Any) -> AsyncResult:
        return task(ext.app, name, *args).apply_async(**options)

    return send


def invoke(app: Any, *args: str, input: str | None = None, columns: int | None = None) -> Result:
    return CliRunner().invoke(
        celery, ['reliable', *args], input=input, default_map={'app': app},
        env={'COLUMNS': str(columns) if columns else None},
    )  # fmt: skip


@pytest.fixture(scope='module')
def reliable(ext: Extension) -> Run:
    def run(*args: str, code: int = 0, **how: Any) -> Result:
        done = invoke(ext.app, *args, **how)
        assert done.exit_code == code, (done.output, done.exception)
        return done

    return run


@pytest.fixture
def document(reliable: Run) -> Callable[..., Any]:
    def run(*args: str, **how: Any) -> Any:
        return json.loads(reliable(*args, '--json', **how).stdout)

    return run


def until_failed(ext: Extension, *results: AsyncResult) -> None:
    for result in results:
        wait_for(lambda one=result: (job := ext.jobs.get(one)) and job.state == 'failed', 20)


def shell(shop: Fleet, *args: str) -> list[str]:
    return [sys.executable, '-m', 'celery', '-A', shop.module, 'reliable', *args]


# -- queues ----------------------------------------------------------------------


def test_queues_as_table_and_as_json(
    reliable: Run, document: Callable[..., Any], send: Callable[..., Any]
) -> None:
    for _ in range(3):
        send('run', queue='counted')
    send('run', queue='counted', countdown=600)
    found = document('queues', 'counted')['queues']
    assert found == [
        {
            'name': 'counted', 'ready': 3, 'delayed': 1, 'waiting': 0, 'throttled': 0,
            'leased': 0, 'failed': 0, 'paused': False,
        }
    ]  # fmt: skip
    lines = reliable('queues').stdout.splitlines()
    assert lines[0].split() == [
        'queue', 'ready', 'delayed', 'waiting', 'throttled', 'leased', 'failed', 'paused',
    ]  # fmt: skip
    assert next(line for line in lines if line.startswith('counted')).split()[1:3] == ['3', '1']


@pytest.mark.parametrize('name', ODD)
def test_odd_names(
    reliable: Run, document: Callable[..., Any], send: Callable[..., Any], name: str
) -> None:
    send('run', queue=name)
    assert document('queues', name)['queues'][0]['ready'] == 1
    assert name in [one['name'] for one in document('queues')['queues']]
    text = reliable('queues', columns=60).stdout
    assert all(character.isprintable() for line in text.split('\n') for character in line)
    assert document('pause', name)['queues'] == [{'name': name, 'changed': True}]
    assert name not in reliable('resume', name).stdout or name.isprintable()


def test_a_paused_queue_starts_nothing_until_it_is_resumed(
    reliable: Run, document: Callable[..., Any], send: Callable[..., Any], shop: Fleet
) -> None:
    assert 'celery: paused' in reliable('pause', 'celery').stdout
    assert 'was paused before' in reliable('pause', 'celery').stdout
    assert document('queues', 'celery')['queues'][0]['paused'] is True
    result = send('run', 'held up')
    assert document('jobs', result.id)['jobs'][0]['state'] == 'ready'
    assert 'celery: goes on' in reliable('resume', 'celery').stdout
    shop.ledger.wait(1, 'ran', value='held up')
    assert document('resume', 'celery')['queues'] == [{'name': 'celery', 'changed': False}]


# -- jobs ------------------------------------------------------------------------


def test_jobs_are_listed_and_filtered(
    reliable: Run, document: Callable[..., Any], send: Callable[..., Any]
) -> None:
    late = [send('run', n, queue='listed', countdown=600) for n in range(3)]
    other = send('add', 1, 2, queue='listed', tags=['mine'])
    ids = {one['id'] for one in document('jobs', '--queue', 'listed')['jobs']}
    assert ids == {other.id, *(one.id for one in late)}
    delayed = document('jobs', '--queue', 'listed', '--state', 'delayed', '--limit', '2')
    assert [one['state'] for one in delayed['jobs']] == ['delayed', 'delayed']
    assert delayed['complete'] is False
    adds = document('jobs', '--queue', 'listed', '--task', 'tests.support.app.add')
    assert [one['id'] for one in adds['jobs']] == [other.id]
    assert adds['complete'] is True
    assert document('jobs', '--tag', 'mine', '--queue', 'listed', '--state', 'ready') == adds
    assert document('jobs', '--tag', 'mine', '--tag', 'not mine')['jobs'] == []
    table = reliable('jobs', '--queue', 'listed', columns=60).stdout
    assert all(len(line) <= 60 for line in table.splitlines())
    assert all(one.id in table for one in late)  # an id is there to be copied
    assert '…upport.app.add' in table or 'app.add' in table
    assert 'no jobs' in reliable('jobs', '--queue', 'nothing here').stdout


def test_one_job_with_everything(
    ext: Extension, reliable: Run, document: Callable[..., Any], send: Callable[..., Any]
) -> None:
    first = send('run', queue='shown', countdown=600)
    second = send('run', queue='shown', depends_on=[first])
    (job,) = document('jobs', first.id)['jobs']
    assert job['dependents'] == [second.id] and job['due']
    assert second.id in reliable('jobs', first.id).stdout
    assert f'depends on         {first.id}' in reliable('jobs', second.id).stdout

    broken = send('fail', 'boom \x1b[31m')
    until_failed(ext, broken)
    (job,) = document('jobs', broken.id)['jobs']
    assert (job['failure']['type'], job['failure']['message']) == ('ValueError', 'boom \x1b[31m')
    assert [event['event'] for event in job['history']] == ['failed']
    text = reliable('jobs', broken.id).stdout
    assert 'Traceback' in text and 'ValueError' in text and '\x1b' not in text


def test_an_id_that_nobody_knows(reliable: Run) -> None:
    done = reliable('jobs', 'nobody', code=1)
    assert "no job lives under 'nobody'" in done.stderr
    assert 'Traceback' not in done.output


def test_move_and_priority(
    ext: Extension, reliable: Run, document: Callable[..., Any], send: Callable[..., Any]
) -> None:
    one = send('run', queue='here')
    answer = document('move', '--to', 'there', one.id)
    assert answer['jobs'] == [
        {'id': one.id, 'done': True, 'outcome': 'done', 'message': 'moved from here to there'}
    ]
    assert 'has priority 7' in reliable('priority', '--to', '7', one.id).stdout
    job = ext.jobs[one]
    assert (job.queue, job.priority) == ('there', 7)
    assert '0<=x<=255' in reliable('priority', '--to', '256', one.id, code=2).stderr


def test_cancel_asks_first(
    ext: Extension, reliable: Run, document: Callable[..., Any], send: Callable[..., Any]
) -> None:
    one, two = (send('run', queue='canceled') for _ in range(2))
    assert 'nothing was changed' in reliable('cancel', one.id, input='n\n', code=1).stderr
    assert 'nothing was changed' in reliable('cancel', one.id, code=1).stderr
    assert ext.jobs[one].state == 'ready'
    assert 'canceled' in reliable('cancel', one.id, input='y\n').stdout
    assert ext.jobs.get(one) is None
    # Those that have gone meanwhile do not stop the others.
    answer = document('cancel', '-y', '-', input=f'{one.id}\n{two.id}\n', code=1)
    assert [each['outcome'] for each in answer['jobs']] == ['unknown', 'gone']
    assert ext.jobs.get(two) is None


def test_cancel_refuses_what_others_wait_for(
    ext: Extension, reliable: Run, send: Callable[..., Any]
) -> None:
    first = send('run', queue='canceled', countdown=600)
    send('run', queue='canceled', depends_on=[first])
    refused = reliable('cancel', '-y', first.id, code=1)
    assert 'other jobs wait for' in refused.stderr and refused.stdout == ''
    reliable('cancel', '-y', '--cascade', first.id)
    assert ext.jobs.get(first) is None


def test_a_job_that_has_gone_between_list_and_act(
    ext: Extension, reliable: Run, document: Callable[..., Any], send: Callable[..., Any]
) -> None:
    one = send('run', queue='vanishing')
    (listed,) = document('jobs', '--queue', 'vanishing')['jobs']
    ext.jobs.cancel(one)
    for act in (['move', '--to', 'x'], ['priority', '--to', '3'], ['retry'], ['failed', 'discard',
                '-y'], ['failed', 'replay']):  # fmt: skip
        done = reliable(*act, listed['id'], code=1)
        assert 'no job lives under' in done.stderr and not done.stdout


# -- dead letters ----------------------------------------------------------------


def test_dead_letters(
    ext: Extension, reliable: Run, document: Callable[..., Any], send: Callable[..., Any],
    shop: Fleet, tmp_path: Path,
) -> None:  # fmt: skip
    reliable('failed', 'discard', '--all', '-y')
    door = tmp_path / 'door'
    dead = [send('fail_unless', str(door)) for _ in range(3)]
    others = [send('fail', '<b>bold</b>') for _ in range(2)]
    until_failed(ext, *dead, *others)
    groups = {one['group']: one['count'] for one in document('failed', 'groups')['groups']}
    assert groups == {'tests.support.app.fail_unless': 3, 'tests.support.app.fail': 2}
    assert 'app.fail_unless' in reliable('failed', 'groups', columns=60).stdout
    listed = document('failed', 'list', '--group', 'tests.support.app.fail')['jobs']
    assert {one['id'] for one in listed} == {one.id for one in others}
    assert listed[0]['error'] == 'ValueError: <b>bold</b>'
    assert dead[0].id in reliable('failed', 'list', columns=60).stdout

    door.touch()
    assert 'runs again in queue celery' in reliable('retry', dead[0].id).stdout
    answer = document('failed', 'replay', '--group', 'tests.support.app.fail_unless')
    assert answer['groups'] == [{'group': 'tests.support.app.fail_unless', 'count': 2}]
    wait_for(lambda: not any(ext.jobs.get(one) for one in dead), 20, 'the end of all three')

    done = reliable('failed', 'discard', '--all', input='n\n', code=1)
    assert 'Delete 2 dead letters of all groups for good?' in done.stderr
    reliable('failed', 'discard', others[0].id, '--yes')
    reliable('failed', 'discard', '--group', 'tests.support.app.fail', '--yes')
    assert document('failed', 'groups') == {'groups': []}
    assert 'no dead letters' in reliable('failed', 'groups').stdout


@pytest.mark.parametrize('action', ['replay', 'discard'])
def test_which_dead_letters_must_be_said(reliable: Run, action: str) -> None:
    assert 'say which' in reliable('failed', action, code=2).stderr
    assert 'say which' in reliable('failed', action, 'id', '--all', code=2).stderr


# -- status ----------------------------------------------------------------------


def test_status(reliable: Run, document: Callable[..., Any], send: Callable[..., Any]) -> None:
    send('run', queue='overview')
    send('run', queue='overview', throttles=Throttle('narrow', concurrency=1))

    def all_alive() -> Any:
        found = document('status')
        return found if {one['state'] for one in found['workers']} == {'alive'} else None

    found = wait_for(all_alive, 20, 'signs of life')
    assert [one['name'] for one in found['throttles']] == ['narrow']
    assert found['server']['kind'] == 'valkey' and found['server']['version']
    assert {'overview', 'celery'} <= {one['name'] for one in found['queues']}
    text = reliable('status', '--once', columns=60).stdout
    assert 'overview' in text and 'narrow' in text and 'w1@test' in text
    assert all(len(line) <= 60 for line in text.splitlines())


def read_until(fd: int, enough: Callable[[str], bool]) -> str:
    text = ''

    def there() -> bool:
        nonlocal text
        text += os.read(fd, 65536).decode(errors='replace')
        return enough(text)

    wait_for(there, 30, 'the expected screen')
    return text


def test_status_redraws_on_a_narrow_terminal(shop: Fleet, send: Callable[..., Any]) -> None:
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (20, 60))
    process = subprocess.Popen(
        shell(shop, 'status', '--interval', '0.3'), cwd=ROOT, env=shop.environment(),
        stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
    )  # fmt: skip
    try:
        read_until(main, lambda text: 'leased' in text)
        send('run', queue='appears later')
        text = read_until(main, lambda text: 'appears' in text and text.count('\x1b[H') > 2)
        assert '\x1b[1mqueue' in text  # colours, as this is a terminal
        process.send_signal(2)
        assert process.wait(10) == 0
    finally:
        process.kill()
        os.close(main)
        os.close(terminal)


# -- surroundings ----------------------------------------------------------------


def test_output_into_a_closed_pipe(shop: Fleet, send: Callable[..., Any]) -> None:
    for _ in range(5):
        send('run', queue='piped', countdown=600)
    process = subprocess.Popen(
        shell(shop, 'jobs', '--queue', 'piped', '--json'), cwd=ROOT, env=shop.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.wait(20)
    assert errors == ''


def test_what_goes_into_a_pipe_has_no_colours(shop: Fleet) -> None:
    done = subprocess.run(
        shell(shop, 'queues'), cwd=ROOT, env={**shop.environment(), 'PYTHONIOENCODING': 'ascii'},
        capture_output=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0 and b'\x1b' not in done.stdout
    assert rb'gr\xfcn' in done.stdout or b'celery' in done.stdout


def test_without_an_app_or_on_another_broker() -> None:
    done = invoke(Celery('default'), 'queues')  # as Celery names the one that it makes itself
    assert done.exit_code == 1 and 'celery -A proj reliable' in done.stderr
    done = invoke(Celery('shop', broker='redis://localhost'), 'queues')
    assert done.exit_code == 1
    assert 'write "reliable+" in front of its broker URL' in done.stderr


def test_a_server_that_is_not_there() -> None:
    app = Celery('shop', broker='reliable+redis://127.0.0.1:1')
    for args in (['queues'], ['jobs', 'x'], ['status', '--once'], ['failed', 'groups']):
        done = invoke(app, *args)
        assert done.exit_code == 1
        assert done.stderr.startswith('Error: ') and len(done.stderr.splitlines()) == 1


def test_an_app_that_has_not_installed_the_extension(shop: Fleet, send: Callable[..., Any]) -> None:
    send('run', queue='plain')
    app = shop.app()
    assert json.loads(invoke(app, 'queues', 'plain', '--json').stdout)['queues'][0]['ready'] == 1
    assert 'celery_ext' not in app.__dict__


def test_a_worker_does_not_pay_for_the_commands() -> None:
    code = (
        'import sys, celery.bin.celery\n'
        "print([name for name in sys.modules if name.startswith('celery_ext.cli.')])"
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == '[]'


@pytest.mark.parametrize('name', sorted(COMMANDS))
def test_help_has_examples(reliable: Run, name: str) -> None:
    text = reliable(name, '--help').stdout
    assert 'Examples:' in text and f'reliable {name}' in text


def test_the_shell_completes_names_of_queues(shop: Fleet, send: Callable[..., Any]) -> None:
    send('run', queue='completed-one')
    words = f'celery -A {shop.module} reliable pause compl'
    done = subprocess.run(
        [sys.executable, '-c', 'import sys; sys.argv[0] = "celery"; from celery.bin.celery import '
         'main; main()'], cwd=ROOT, capture_output=True, text=True, timeout=30,
        env={**shop.environment(), '_CELERY_COMPLETE': 'bash_complete', 'COMP_WORDS': words,
             'COMP_CWORD': '5'},
    )  # fmt: skip
    assert done.stdout.strip() == 'plain,completed-one'


def test_times_are_iso_in_json(document: Callable[..., Any], send: Callable[..., Any]) -> None:
    one = send('run', queue='timed', countdown=60)
    from datetime import datetime

    (job,) = document('jobs', one.id)['jobs']
    due = datetime.fromisoformat(job['due'])
    assert due.tzinfo is not None and 0 < due.timestamp() - time.time() < 61
