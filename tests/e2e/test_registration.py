"""A broker URL is enough: no import in user code, on every way into Celery."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from kombu import Connection

from tests.support.servers import Server, find_binary, free_port
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet, task

PLAIN_PRODUCER = """
import sys
from celery import Celery
app = Celery(broker=sys.argv[1], backend=sys.argv[1])
result = app.send_task('tests.support.app.add', (20, 22))
print(result.get(timeout=20))
"""

#: Celery's commands give up after a second; with a name they end with the answer.
PATIENT = ('-t', '20', '-d', 'w1@test')


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-c', code, *arguments],
        capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
        cwd='/',
    )  # fmt: skip


def test_importing_the_package_is_cheap_and_registers() -> None:
    code = """
import sys, kombu_reliable
from kombu.transport import TRANSPORT_ALIASES
assert TRANSPORT_ALIASES['reliable+redis'] == 'kombu_reliable.transport:Transport'
assert 'redis' not in sys.modules and 'celery' not in sys.modules
assert kombu_reliable.Transport.driver_type == 'redis'
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_the_transport_never_imports_celery() -> None:
    code = """
import sys, kombu_reliable
from kombu import Connection
with Connection('reliable+fakeredis://x') as connection:
    connection.SimpleQueue('q').put(1)
assert not [name for name in sys.modules if name.startswith(('celery', 'celery_ext'))]
"""
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_plain_celery_producer_needs_no_import(workers: Fleet) -> None:
    workers.start(concurrency=1)
    done = python(PLAIN_PRODUCER, workers.broker)
    assert done.stdout == '42\n', done.stderr


def test_celery_commands_take_the_url_from_the_command_line(workers: Fleet) -> None:
    workers.start(concurrency=1)
    ping = workers.run('celery', '-b', workers.broker, 'inspect', *PATIENT, 'ping', '--json')
    assert ping.returncode == 0, ping.stderr
    assert json.loads(ping.stdout.strip().splitlines()[-1])
    status = workers.run('celery', '-b', workers.broker, 'status', *PATIENT)
    assert '1 node online' in status.stdout, status.stderr
    help_ = workers.run('celery', 'reliable', '--help')
    assert 'broker_url = "reliable+redis://' in help_.stdout


def test_purge_from_the_command_line(workers: Fleet) -> None:
    app = workers.app()
    for i in range(3):
        task(app, 'run', i).apply_async()
    done = workers.run('celery', '-A', 'tests.support.app', 'purge', '-f')
    assert '3 messages' in done.stdout, done.stderr


def test_flower_starts_and_sees_the_worker(workers: Fleet, tmp_path: Path) -> None:
    pytest.importorskip('flower')
    workers.start(concurrency=1)
    port = free_port()
    process = subprocess.Popen(
        [
            sys.executable, '-m', 'celery', '-b', workers.broker, 'flower',
            '--address=127.0.0.1', f'--port={port}',
        ],
        env={**workers.environment(), 'FLOWER_UNAUTHENTICATED_API': 'true'}, cwd=tmp_path,
        stdout=subprocess.DEVNULL, stderr=(tmp_path / 'flower.log').open('wb'),
    )  # fmt: skip

    def names() -> bool:
        assert process.poll() is None, (tmp_path / 'flower.log').read_text()
        try:
            with urllib.request.urlopen(
                f'http://127.0.0.1:{port}/api/workers?refresh=1', timeout=5
            ) as answer:
                return 'w1@test' in json.load(answer)
        except OSError:
            return False

    try:
        wait_for(names, 40, 'the worker in flower')
    finally:
        process.terminate()
        process.wait(10)


# -- every form of URL serves as broker and as result backend --------------------


def run_one_task(made: Fleet) -> None:
    made.start('--without-mingle', concurrency=1)
    assert task(made.app(), 'add', 1, 2).apply_async().get(30) == 3
    result = task(made.app(), 'fail', 'with words').apply_async()
    with pytest.raises(ValueError, match='with words'):
        result.get(20)


def test_unix_socket(make_fleet: Callable[..., Fleet], server: Server, database: int) -> None:
    run_one_task(make_fleet(broker=f'reliable+unix://{server.socket_path}?db={database}'))


def test_valkey_spelling_and_the_short_form(
    make_fleet: Callable[..., Fleet], server: Server, database: int
) -> None:
    address = f'127.0.0.1:{server.port}/{database}'
    run_one_task(make_fleet(broker=f'reliable+valkey://{address}', backend=f'reliable://{address}'))


def test_options_in_the_query(
    make_fleet: Callable[..., Fleet], server: Server, database: int
) -> None:
    broker = f'reliable://127.0.0.1:{server.port}/{database}?lease=7&global_keyprefix=pre:'
    made = make_fleet(broker=broker)
    run_one_task(made)
    with server.client(db=database) as client:
        assert client.exists(f'pre:{{kr:{database}:0}}:meta')


@pytest.mark.skipif(find_binary('redis') is None, reason='needs a server with TLS')
def test_tls(tmp_path: Path) -> None:
    with Server('redis', tls=True, password='geheim') as secure:
        query = f'ssl_ca_certs={secure.ca_file}'
        for scheme in ('rediss', 'valkeys'):
            broker = f'reliable+{scheme}://:geheim@localhost:{secure.port}/0?{query}'
            directory = tmp_path / scheme
            directory.mkdir()
            with fleet(directory, broker) as made:
                run_one_task(made)
                assert 'geheim' not in made.workers[0].text()


def test_embedded_server_under_worker_and_producer(
    make_fleet: Callable[..., Fleet], tmp_path: Path
) -> None:
    run_one_task(make_fleet(broker=f'reliable+embedded://{tmp_path}/data'))


def test_a_failover_list_with_queries(
    make_fleet: Callable[..., Fleet], server: Server, database: int
) -> None:
    alive = f'reliable+redis://127.0.0.1:{server.port}/{database}?lease=3'
    made = make_fleet(broker=f'reliable+redis://127.0.0.1:1/0?lease=3;{alive}', backend=alive)
    run_one_task(made)


# -- passwords -------------------------------------------------------------------


def test_the_password_is_shown_nowhere(make_fleet: Callable[..., Fleet]) -> None:
    with Server(password='s3cret!/@x') as server:
        secret, quoted = 's3cret!/@x', 's3cret%21%2F%40x'
        broker = f'reliable+redis://:{quoted}@127.0.0.1:{server.port}/0'
        made = make_fleet(broker=broker)
        worker = made.start(concurrency=1)
        app = made.app()
        assert task(app, 'add', 1, 2).apply_async().get(20) == 3
        shown = [worker.text()]
        for command in (['inspect', *PATIENT, 'stats'], ['report'], ['inspect', *PATIENT, 'conf']):
            done = made.run('celery', '-A', 'tests.support.app', *command)
            assert done.returncode == 0, done.stderr
            shown.append(done.stdout + done.stderr)
        connection = app.connection_for_read()
        shown += [repr(connection), connection.as_uri(), str(app.backend.as_uri())]
        assert not [text for text in shown if secret in text or quoted in text]
        clone = connection.clone()
        clone.connect()
        clone.release()
        wrong = Connection(f'reliable+redis://:wr0ng@127.0.0.1:{server.port}/0')
        with pytest.raises(Exception, match='refuses access') as error:
            wrong.connect()
        assert 'wr0ng' not in str(error.value)
        made.close()
