"""What the proxy can do to a single call: that the server has done it, or not, and what is seen."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.proxy import HOST, Command, Kind, Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for

TIMEOUT = 1.0

UNDONE = (Kind.CUT_REQUEST, Kind.RESET_REQUEST, Kind.TORN_REQUEST)
DONE = (Kind.CUT_REPLY, Kind.RESET_REPLY, Kind.TORN_REPLY, Kind.CLOSED_TO_CLIENT)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy((HOST, server.port)) as proxy:
        yield proxy


@pytest.fixture
def far(proxy: Proxy, database: int) -> Iterator[redis.Redis]:
    """A client behind the proxy, with one connection."""
    client = redis.Redis(
        host=HOST, port=proxy.port, db=database, protocol=2, socket_timeout=TIMEOUT,
        retry=Retry(NoBackoff(), 0), single_connection_client=True,
    )  # fmt: skip
    with client:
        assert client.ping()
        yield client


@pytest.fixture
def near(server: Server, database: int) -> Iterator[redis.Redis]:
    with server.client(db=database) as client:
        yield client


def increments(command: Command) -> bool:
    return command.name == 'INCRBY'


@pytest.mark.parametrize('kind', UNDONE)
def test_the_server_never_gets_it(
    proxy: Proxy, far: redis.Redis, near: redis.Redis, kind: Kind
) -> None:
    fault = proxy.fault(kind, 2, increments)
    assert far.incr('n') == 1
    with pytest.raises(redis.ConnectionError):
        far.incr('n')
    assert fault.fired is not None and fault.over.wait(5)
    assert near.get('n') == b'1'
    assert far.incr('n') == 2, 'a new connection works'
    assert proxy.counts()[kind] == 1


@pytest.mark.parametrize('kind', DONE)
def test_the_server_does_it_and_nobody_hears_of_it(
    proxy: Proxy, far: redis.Redis, near: redis.Redis, kind: Kind
) -> None:
    fault = proxy.fault(kind, 1, increments)
    with pytest.raises(redis.ConnectionError):
        far.incr('n')
    assert fault.fired is not None and fault.over.wait(5)
    wait_for(lambda: near.get('n') == b'1')
    assert far.incr('n') == 2


def test_a_request_in_silence(proxy: Proxy, far: redis.Redis, near: redis.Redis) -> None:
    proxy.fault(Kind.SILENT_REQUESTS, 1, increments)
    start = time.monotonic()
    with pytest.raises(redis.TimeoutError):
        far.incr('n')
    assert time.monotonic() - start >= TIMEOUT
    assert near.get('n') is None
    assert far.incr('n') == 1
    assert proxy.connections() == 2, 'the silent one is closed by nobody'


def test_a_reply_in_silence(proxy: Proxy, far: redis.Redis, near: redis.Redis) -> None:
    proxy.fault(Kind.SILENT_REPLIES, 1, increments)
    with pytest.raises(redis.TimeoutError):
        far.incr('n')
    assert near.get('n') == b'1'
    assert far.incr('n') == 2


def test_a_request_that_arrives_after_it_was_given_up(
    proxy: Proxy, far: redis.Redis, near: redis.Redis
) -> None:
    fault = proxy.fault(Kind.LATE_REQUEST, 1, increments, 3 * TIMEOUT)
    with pytest.raises(redis.TimeoutError):
        far.incr('n')
    far.close()
    assert near.get('n') is None and not fault.over.is_set()
    assert fault.over.wait(10)
    wait_for(lambda: near.get('n') == b'1', 5, 'the late one')


@pytest.mark.parametrize('seconds', [TIMEOUT / 4, 3 * TIMEOUT])
def test_a_late_reply(proxy: Proxy, far: redis.Redis, near: redis.Redis, seconds: float) -> None:
    fault = proxy.fault(Kind.LATE_REPLY, 1, increments, seconds)
    if seconds < TIMEOUT:
        assert far.incr('n') == 1
    else:
        with pytest.raises(redis.TimeoutError):
            far.incr('n')
    assert fault.over.wait(10)
    assert near.get('n') == b'1'
    assert far.incr('n') == 2


def test_the_server_reads_the_end_behind_a_request(
    proxy: Proxy, far: redis.Redis, near: redis.Redis
) -> None:
    fault = proxy.fault(Kind.CLOSED_TO_SERVER, 1, increments)
    assert far.incr('n') == 1, 'its answer arrives'
    assert fault.over.wait(5)
    with pytest.raises(redis.ConnectionError):
        far.incr('n')
    assert near.get('n') == b'1'
    assert far.incr('n') == 2


def test_what_follows_a_half_closed_end_still_arrives(
    proxy: Proxy, far: redis.Redis, near: redis.Redis
) -> None:
    """The client reads the end in the middle of a pipeline, the server does all of it."""
    proxy.fault(Kind.CLOSED_TO_CLIENT, 2, increments)
    with far.pipeline(transaction=False) as pipe:
        for _ in range(4):
            pipe.incr('n')
        with pytest.raises(redis.ConnectionError):
            pipe.execute()
    wait_for(lambda: near.get('n') == b'4', 5, 'all of them')


def test_healing_forgets_what_has_not_happened(proxy: Proxy, far: redis.Redis) -> None:
    fault = proxy.fault(Kind.TORN_REPLY, 1, increments)
    proxy.heal()
    assert far.incr('n') == 1
    assert fault.fired is None
