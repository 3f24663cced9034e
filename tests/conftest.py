"""Fixtures for all tests: servers, empty databases, stores with a clock of the test's own."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import hypothesis
import pytest
import redis
from kombu import Connection

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from tests.support.plain import LEASE, Connect
from tests.support.servers import Server

KINDS = ('valkey', 'redis')

# How long an example takes tells of the machine alone.
hypothesis.settings.register_profile(
    'busy',
    hypothesis.settings(),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile('busy')

#: Where the clock of a store begins, ms since the epoch.
START = 1_700_000_000_000

# A test gets another database than the one before, so that what a test left running by mistake
# cannot disturb the next.
_databases = itertools.cycle(range(16))
_names = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--server',
        choices=(*KINDS, 'all'),
        default=os.environ.get('KR_TEST_SERVER', 'valkey'),
        help='real server to test on (default: $KR_TEST_SERVER, or valkey)',
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = metafunc.config.getoption('--server')
    kinds = KINDS if chosen == 'all' else (chosen,)
    for name, values in (('server', kinds), ('backend', ('fakeredis', *kinds))):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, indirect=True, scope='session')


@pytest.fixture(scope='session')
def servers() -> Iterator[Callable[[str], Server]]:
    """Starts a server of each kind when it is first asked for."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda kind: stack.enter_context(Server(kind)))


@pytest.fixture(scope='session')
def server(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server:
    """A running server, shared by all tests of the process."""
    return servers(request.param)


@pytest.fixture(scope='session')
def backend(request: pytest.FixtureRequest, servers: Callable[[str], Server]) -> Server | None:
    """What a store may stand on: a server, or None for fakeredis."""
    return None if request.param == 'fakeredis' else servers(request.param)


@contextlib.contextmanager
def empty_database(server: Server) -> Iterator[int]:
    number = next(_databases)
    with server.client(db=number) as client:
        client.flushdb()
        yield number
        client.flushdb()


@pytest.fixture
def database(server: Server) -> Iterator[int]:
    """The number of an empty database of ``server``."""
    with empty_database(server) as number:
        yield number


@pytest.fixture
def url(server: Server, database: int) -> str:
    return f'reliable+redis://127.0.0.1:{server.port}/{database}'


@pytest.fixture
def keyprefix() -> str:
    """The ``global_keyprefix`` of :func:`connect`; a module may have its own."""
    return ''


@pytest.fixture
def connect(backend: Server | None, keyprefix: str) -> Iterator[Connect]:
    """Opens connections to one empty database, on fakeredis and on the real server."""
    opened: list[Connection] = []

    @contextlib.contextmanager
    def database() -> Iterator[str]:
        if backend is None:
            yield f'reliable+fakeredis://test{next(_names)}'
            return
        with empty_database(backend) as number:
            yield f'reliable+{backend.url(number)}'

    with database() as url:

        def make(**options: Any) -> Connection:
            options = {'lease': LEASE, 'global_keyprefix': keyprefix, **options}
            connection = Connection(url, transport_options=options)
            opened.append(connection)
            return connection

        yield make
        for connection in opened:
            connection.release()


@pytest.fixture
def connection(connect: Connect) -> Connection:
    return connect()


@pytest.fixture
def client(backend: Server | None) -> Iterator[redis.Redis]:
    """A client of an empty database, on fakeredis and on the real server."""
    if backend is None:
        yield fakeredis.FakeRedis(server=fakeredis.FakeServer())
        return
    with empty_database(backend) as number, backend.client(db=number) as client:
        yield client


@pytest.fixture
def store_factory(client: redis.Redis) -> Callable[..., Store]:
    """Makes stores over one database; set ``store.operations.now`` to let time pass."""

    def make(now: int | None = START, **options: Any) -> Store:
        return Store(client, Operations(Keys(), Options(**options), now))

    return make


@pytest.fixture
def store(store_factory: Callable[..., Store]) -> Store:
    return store_factory()
