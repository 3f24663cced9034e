"""``doctor`` finds what is set up wrong, and nothing where all is well."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.bin.celery import celery
from click.testing import CliRunner

import celery_ext
from celery_ext.doctor import CHECKS
from celery_ext.doctor.patient import Patient
from kombu_reliable.keys import Keys
from tests.support.servers import Server

_numbers = itertools.cycle(range(16))


@pytest.fixture(scope='module')
def patient() -> Iterator[Server]:
    """A server that the tests may spoil."""
    with Server('valkey', appendfsync='everysec') as server:
        yield server


@pytest.fixture
def make(patient: Server) -> Iterator[Callable[..., Celery]]:
    """Makes a healthy app but for what is given."""
    number = next(_numbers)

    def make(options: dict[str, Any] | None = None, install: bool = True, **config: Any) -> Celery:
        url = f'reliable+{patient.url(number)}'
        app = Celery('shop', broker=url, backend=config.pop('backend', url))
        app.conf.update(broker_transport_options=options or {}, **config)
        if install:
            celery_ext.install(app)

        @app.task(name='shop.pay', shared=False)
        def pay() -> None: ...

        return app

    with patient.client(db=number) as client:
        client.flushdb()
        yield make
        client.flushdb()


def doctor(app: Celery, *args: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the findings that are not ok, by check."""
    done = CliRunner().invoke(
        celery, ['reliable', 'doctor', '--json', *args], default_map={'app': app}
    )
    assert done.stdout, (done.output, done.exception)
    found = json.loads(done.stdout)['findings']
    assert all(one['advice'] for one in found if one['level'] != 'ok')
    return done.exit_code, {one['check']: one for one in found if one['level'] != 'ok'}


def test_all_is_well(make: Callable[..., Celery]) -> None:
    app = make()
    assert doctor(app, '--strict') == (0, {})
    done = CliRunner().invoke(
        celery, ['reliable', 'doctor'], default_map={'app': app}, env={'COLUMNS': '60'}
    )
    assert 'All is well.' in done.stdout
    assert all(name in done.stdout for name in CHECKS)
    assert all(len(line) <= 60 for line in done.stdout.splitlines())


def finds(app: Celery, check: str, level: str, text: str) -> None:
    code, found = doctor(app)
    assert list(found) == [check], found
    assert found[check]['level'] == level
    assert text in found[check]['text']
    assert code == (1 if level == 'problem' else 0)
    if level == 'warning':
        assert doctor(app, '--strict')[0] == 1


def test_1_eviction(make: Callable[..., Celery], patient: Server) -> None:
    with patient.client() as client:
        client.config_set('maxmemory-policy', 'allkeys-lru')
        try:
            finds(make(), 'memory', 'problem', 'allkeys-lru')
        finally:
            client.config_set('maxmemory-policy', 'noeviction')


def test_2_nothing_on_disk(make: Callable[..., Celery], patient: Server) -> None:
    with patient.client() as client:
        client.config_set('appendonly', 'no')
        try:
            finds(make(), 'persistence', 'problem', 'keeps nothing on disk')
            client.config_set('save', '60 1')
            finds(make(), 'persistence', 'warning', 'snapshots only')
        finally:
            client.config_set('save', '')
            client.config_set('appendonly', 'yes')


def test_3_a_replica(make: Callable[..., Celery], patient: Server, server: Server) -> None:
    app = make()
    with patient.client() as client:
        client.execute_command('REPLICAOF', '127.0.0.1', server.port)
        try:
            code, found = doctor(app)
        finally:
            client.execute_command('REPLICAOF', 'NO', 'ONE')
    assert code == 1 and 'is a replica' in found['replication']['text']


def test_4_replicas_that_are_not_there(make: Callable[..., Celery]) -> None:
    finds(make({'confirm_replicas': 2}), 'replication', 'problem', '0 replicas are connected')


def test_5_another_layout(make: Callable[..., Celery]) -> None:
    app = make()
    app.send_task('shop.pay')
    store = app.celery_ext.store
    store.client.hset(store.keys.meta, 'v', '99')
    code, found = doctor(app)
    assert code == 1 and 'layout 99' in found['layout']['text']


def test_5_a_key_of_somebody_else(make: Callable[..., Celery]) -> None:
    app = make()
    client = app.celery_ext.store.client
    client.set(Keys(db=client.connection_pool.connection_kwargs['db']).owners, 'foreign')
    finds(app, 'layout', 'problem', 'was overwritten')


def test_6_visibility_timeout(make: Callable[..., Celery]) -> None:
    app = make({'visibility_timeout': 3600, 'unacked_mutex_key': 'x'})
    finds(app, 'leftovers', 'warning', 'unacked_mutex_key, visibility_timeout')


def test_7_messages_of_kombus_transport(make: Callable[..., Celery]) -> None:
    app = make()
    old = Celery(broker=app.conf.broker_url.removeprefix('reliable+'))
    for priority in (0, 9):
        old.send_task('shop.pay', priority=priority)
    finds(app, 'leftovers', 'warning', 'about 2 messages')


def test_8_a_lease_as_long_as_a_visibility_timeout(make: Callable[..., Celery]) -> None:
    finds(make({'lease': 3600}), 'lease', 'warning', 'the lease is 3600 s')
    finds(make({'lease': 60}, task_time_limit=45), 'lease', 'warning', 'longer than 45 s')
    finds(make({'lease': 2}), 'lease', 'warning', 'stalls')


def test_9_early_acks(make: Callable[..., Celery]) -> None:
    finds(make(task_acks_late=False), 'acks', 'warning', 'shop.pay is acknowledged before')
    app = make(task_reject_on_worker_lost=False)
    finds(app, 'acks', 'warning', 'not run again if the process is killed')
    app = make(task_acks_on_failure_or_timeout=False)
    finds(app, 'acks', 'warning', 'run again after each failure')


def test_10_the_extension_is_missing(make: Callable[..., Celery]) -> None:
    code, found = doctor(make(install=False))
    assert code == 0 and set(found) == {'extension', 'acks'}
    assert 'celery_ext.f' not in str(found['acks']), 'these are our own tasks'


def test_11_a_result_backend_that_is_away(make: Callable[..., Celery]) -> None:
    finds(make(backend='redis://127.0.0.1:1'), 'results', 'problem', 'does not answer')


def test_12_a_forgotten_pause(make: Callable[..., Celery]) -> None:
    app = make()
    app.celery_ext.queues['mail'].pause()
    finds(app, 'queues', 'warning', 'mail is paused')


@pytest.mark.parametrize(('skew', 'level'), [(-5, 'warning'), (90, 'problem')])
def test_13_a_clock_that_is_off(make: Callable[..., Celery], skew: int, level: str) -> None:
    patient = Patient(make())
    patient.store.operations.now = round((time.time() + skew) * 1000)
    (finding,) = CHECKS['clock'](patient)
    assert finding.level == level
    assert ('behind' if skew < 0 else 'ahead of') in finding.text


@pytest.mark.parametrize(
    ('broker', 'options', 'text'),
    [
        ('reliable+redis://127.0.0.1:1', {}, 'refused'),
        ('redis://127.0.0.1', {}, 'not kombu_reliable'),
        ('reliable+redis://127.0.0.1', {'leese': 3}, 'lease'),
    ],
)
def test_nothing_to_look_at(broker: str, options: dict[str, Any], text: str) -> None:
    app = Celery('shop', broker=broker)
    app.conf.broker_transport_options = options
    code, found = doctor(app)
    assert code == 1 and text in found['connection']['text'].lower()
