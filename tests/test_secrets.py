"""A password is never seen: not in a log, a repr, a command's output, or an error."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from celery import Celery
from celery.app.utils import bugreport
from kombu import Connection, Queue

from kombu_reliable import Options, parse_url
from kombu_reliable.masking import Masked
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import fleet, task

#: The middle survives every way of quoting a part of it, so it is what is searched for.
CORE = 'geheim'
PASSWORD = f'a/ @;{CORE}%#?b'
#: The name lets it end with the answer; without, it gives up after a second.
INSPECT = ('inspect', '-d', 'w1@test', '-t', '20')
QUOTED = quote(PASSWORD, '')


def harmless(*shown: Any) -> None:
    for one in shown:
        text = one if isinstance(one, str) else repr(one)
        assert CORE not in text, text


@pytest.fixture(scope='module')
def guarded(server: Server) -> Iterator[Server]:
    with Server(server.binary, password=PASSWORD) as own:
        yield own


def with_password(server: Server, db: int = 0, query: str = '') -> str:
    return f'reliable+redis://:{QUOTED}@127.0.0.1:{server.port}/{db}{query}'


def login(server: Server, way: str) -> tuple[str, dict[str, Any]]:
    """A URL and transport options that carry the password in one of the ways."""
    bare = f'reliable+redis://127.0.0.1:{server.port}/0'
    return {
        'url': (with_password(server), {}),
        'user': (with_password(server).replace('://', '://default'), {}),
        'query': (f'{bare}?password={QUOTED}&lease=9', {}),
        'options': (bare, {'password': PASSWORD}),
        'alternate': (f'{with_password(server)};{with_password(server, 1, "?lease=3")}', {}),
    }[way]


WAYS = pytest.mark.parametrize('way', ['url', 'user', 'query', 'options', 'alternate'])


# -- connections -----------------------------------------------------------------


@WAYS
def test_a_connection_works_and_shows_nothing(guarded: Server, way: str) -> None:
    url, options = login(guarded, way)
    given = dict(options)
    first = Connection(url, transport_options=options)
    for connection in (first, first.clone(), first.clone().clone(), pickle_around(first)):
        with connection:
            harmless(connection, connection.as_uri(), connection.transport.endpoint.options)
            harmless(connection.transport.url, str(connection.transport.url))
            info = connection.info()
            info.pop('password')  # so does Celery, whatever its version
            harmless(info, json.dumps(info, default=str))
            connection.connect()
            connection.default_channel.queue_declare('q')
    assert options == given, "the user's own settings are left alone"


def pickle_around(connection: Connection) -> Connection:
    copy: Connection = pickle.loads(pickle.dumps(connection))
    return copy


def test_a_key_password_is_masked_wherever_it_was_given() -> None:
    secret = {'ssl_password': PASSWORD, 'ssl_keyfile': '/k', 'ssl_certfile': '/c'}
    for connection in (
        Connection('reliable+rediss://h', transport_options=dict(secret)),
        Connection('reliable+rediss://h', ssl=dict(secret)),
        Connection(f'reliable+rediss://h?ssl_password={QUOTED}&ssl_keyfile=/k'),
    ):
        for one in (connection, connection.clone(), connection.clone().clone()):
            harmless(one, one.info(), json.dumps(one.info(), default=str))
            settings = one.transport.endpoint.options.ssl
            assert settings is not None
            assert settings['ssl_password'] == PASSWORD


@pytest.mark.parametrize('strategy', ['round-robin', 'shuffle'])
def test_failover_knows_the_password_of_each_alternate(server: Server, strategy: str) -> None:
    other = 'x' + PASSWORD
    with (
        Server(server.binary, password=PASSWORD) as one,
        Server(server.binary, password=other) as two,
    ):
        urls = [
            f'reliable+redis://:{quote(word, "")}@127.0.0.1:{own.port}/{db}?lease={lease}'
            for own, word, db, lease in ((one, PASSWORD, 1, 5), (two, other, 2, 6))
        ]
        original = Connection(';'.join(urls), failover_strategy=strategy)
        for connection in (original, original.clone(), pickle_around(original)):
            connection.connect()
            connection.close()
        one.stop()
        for connection in (original, original.clone(), pickle_around(original)):
            failures: list[str] = []
            connection.ensure_connection(
                errback=lambda error, pause, seen=failures: seen.append(repr(error)),
                max_retries=20, interval_start=0.01, interval_step=0, interval_max=0.01,
            )  # fmt: skip
            assert connection.as_uri() == f'reliable+redis://:**@127.0.0.1:{two.port}/2?lease=6'
            assert connection.transport.endpoint.options.lease == 6
            connection.default_channel.queue_declare('q')
            harmless(connection.info()['alternates'], *failures)
            connection.release()


def test_every_alternate_gets_its_turn() -> None:
    connection = Connection(';'.join(f'reliable+redis://:{QUOTED}@h{n}/{n}?lease=3' for n in '123'))
    seen = []
    for _ in range(6):
        seen.append(connection.transport.url.host)
        harmless(connection, connection.info()['alternates'])
        connection.maybe_switch_next()
    assert seen == ['h1', 'h2', 'h3', 'h1', 'h2', 'h3']


def test_masked_text_stays_masked_in_copies() -> None:
    masked = Masked('**', PASSWORD)
    for one in (masked, pickle.loads(pickle.dumps(masked))):
        harmless(one, str(one), f'{one}', json.dumps([one]), [one])
        assert one.hidden == PASSWORD


# -- errors and logs -------------------------------------------------------------


BAD: dict[str, Callable[[Server], Connection]] = {
    'wrong password': lambda s: Connection(with_password(s).replace(QUOTED, f'x{QUOTED}')),
    'refused': lambda s: Connection(f'reliable+redis://:{QUOTED}@127.0.0.1:1/0'),
    'no such host': lambda s: Connection(f'reliable+redis://u:{QUOTED}@nowhere.invalid/0'),
    'port': lambda s: Connection(f'reliable+redis://:{QUOTED}@127.0.0.1:port/0'),
    'not encoded': lambda s: Connection(f'reliable+redis://:a/{CORE}@127.0.0.1:1/0'),
    'not encoded, in a user': lambda s: Connection(f'reliable+redis://a/{CORE}@127.0.0.1/0'),
    'hosts': lambda s: Connection(f'reliable+redis://:{QUOTED}@h1,h2/0'),
    'no scheme': lambda s: Connection(f'u:{CORE}@127.0.0.1', transport='reliable'),
    'database': lambda s: Connection(with_password(s, 99)),
    'option': lambda s: Connection(with_password(s, query='?leese=3')),
    'value': lambda s: Connection(with_password(s, query='?lease=long')),
    'type': lambda s: Connection('reliable://', transport_options={'password': [PASSWORD]}),
    'alternate': lambda s: Connection(f'reliable://h;reliable://:{CORE}#@h'),
}


@pytest.mark.parametrize('what', BAD)
def test_an_error_shows_nothing(
    guarded: Server, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    connection = BAD[what](guarded)
    with caplog.at_level(logging.DEBUG), pytest.raises(Exception) as error:
        connection.ensure_connection(max_retries=1, interval_start=0)
    chain = traceback.TracebackException.from_exception(error.value, compact=True)
    while chain is not None:
        harmless(''.join(chain.format_exception_only()))
        chain = chain.__cause__ or chain.__context__
    harmless(caplog.text)


@WAYS
def test_an_outage_shows_nothing(
    server: Server, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(server.binary, password=PASSWORD) as own, caplog.at_level(logging.DEBUG):
        url, options = login(own, way)
        received: list[Any] = []
        with (
            Connection(url, transport_options=options) as connection,
            connection.Consumer([Queue('q')], on_message=received.append),
        ):
            with pytest.raises(TimeoutError):
                connection.drain_events(timeout=0.1)
            own.restart()

            def reconnected() -> bool:
                with pytest.raises(TimeoutError):
                    connection.drain_events(timeout=0.05)
                return 'connected again' in caplog.text

            wait_for(reconnected, 20, 'reconnect')
        harmless(caplog.text)


def test_parsed_values_show_nothing() -> None:
    for url in (f'reliable://:{QUOTED}@h', f'reliable://h?password={QUOTED}'):
        parsed = parse_url(url)
        assert parsed.password == PASSWORD
        harmless(parsed, str(parsed), parsed.without_password())
    harmless(Options.parse({'password': PASSWORD, 'ssl_password': PASSWORD}))


# -- Celery ----------------------------------------------------------------------


def test_the_result_backend_shows_nothing(guarded: Server) -> None:
    app = Celery(backend=with_password(guarded), broker=with_password(guarded))
    harmless(app.backend, str(app.backend), app.backend.as_uri(), bugreport(app))
    app.backend.client.ping()
    # Celery itself prints the query of a result backend, so a secret does not belong there;
    # what we print is masked all the same.
    app = Celery(backend=with_password(guarded, query=f'?ssl_password={QUOTED}'))
    harmless(app.backend, app.backend.as_uri())
    assert parse_url(app.backend.url).password == PASSWORD
    assert parse_url(app.backend.url).query['ssl_password'] == PASSWORD
    broken = Celery(backend=f'reliable+redis://:{QUOTED}@h1,h2')
    with pytest.raises(Exception) as error:
        _ = broken.backend
    harmless(str(error.value))


def test_celery_shows_nothing(server: Server, tmp_path: Path) -> None:
    with Server(server.binary, password=PASSWORD) as one, Server(server.binary) as two:
        broker = f'{with_password(one)};{with_password(two, 1, "?lease=3")}'
        options = {'password': PASSWORD}
        with fleet(tmp_path, broker, backend=with_password(one), options=options) as crew:
            worker = crew.start('-E', '-l', 'DEBUG')
            app = crew.app()
            assert task(app, 'run', 5).delay().get(timeout=20) == 5
            outputs = [
                done.stdout + done.stderr
                for done in (
                    crew.run('celery', '-A', 'tests.support.app', *INSPECT, 'stats', '--json'),
                    crew.run('celery', '-A', 'tests.support.app', *INSPECT, 'conf', '--json'),
                    crew.run('celery', '-A', 'tests.support.app', 'report'),
                    crew.run('celery', '-A', 'tests.support.app', *INSPECT, 'report'),
                )
            ]
            assert 'alternates' in outputs[0], outputs[0]
            assert f'{two.port}/1' in outputs[0]
            one.restart()
            worker.wait_for_log('connected again')
            worker.terminate()
            worker.wait()
            assert 'transport:   reliable+redis://' in worker.text()
            harmless(*outputs, worker.text())


def test_a_refused_worker_shows_nothing(guarded: Server, tmp_path: Path) -> None:
    wrong = with_password(guarded).replace(QUOTED, f'x{QUOTED}')
    with fleet(tmp_path, wrong, backend='cache+memory://') as crew:
        worker = crew.start('-l', 'DEBUG', ready=False)
        assert worker.wait(20) == 1
        assert worker.text().count('Unrecoverable error: AccessRefused') == 1
        harmless(worker.text())
