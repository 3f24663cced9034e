"""Publishes that wait until they would survive the loss of the server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection
from kombu.exceptions import OperationalError

from kombu_reliable import InvalidOption, NotConfirmed, Options
from tests.support.servers import Server
from tests.support.wait import wait_for


@pytest.fixture
def pair() -> Iterator[tuple[Server, Server]]:
    with Server('valkey', repl_diskless_sync_delay=0) as server, Server('valkey') as replica:
        with replica.client() as client:
            client.replicaof('127.0.0.1', server.port)

            def follows() -> bool:
                info: Any = client.info('replication')
                return bool(info['master_link_status'] == 'up')

            wait_for(follows, what='the replica')
        yield server, replica


def connect(server: Server, **options: Any) -> Connection:
    """Confirmations come at once, but on a busy machine late."""
    patient = {'socket_timeout': 30, 'confirm_timeout': 20}
    return Connection(f'reliable+{server.url()}', transport_options=patient | options)


def waiting(connection: Connection) -> int:
    return int(connection.SimpleQueue('safe').qsize())


def test_a_publish_returns_when_a_replica_has_it(pair: tuple[Server, Server]) -> None:
    server, replica = pair
    with connect(server, confirm_replicas=1) as connection:
        connection.Producer().publish({'n': 1}, routing_key='safe')
        with replica.client() as client:
            assert client.exists('{kr:0:0}:r:safe')


def test_a_publish_that_is_not_confirmed_says_so_and_is_stored_once(
    pair: tuple[Server, Server],
) -> None:
    server, replica = pair
    with connect(server, confirm_replicas=1) as connection:
        connection.Producer().publish({'n': 1}, routing_key='safe')
    with connect(server, confirm_replicas=1, confirm_timeout=0.2) as connection:
        producer = connection.Producer()
        replica.pause()
        try:
            with pytest.raises(NotConfirmed, match='0 of 1 replicas'):
                producer.publish({'n': 2}, routing_key='safe')
            # Repeated, it writes nothing: also then it must not count as confirmed.
            with pytest.raises(OperationalError, match='0 of 1 replicas') as failure:
                producer.publish(
                    {'n': 3}, routing_key='safe', retry=True,
                    retry_policy={'max_retries': 2, 'interval_start': 0},
                )  # fmt: skip
            assert isinstance(failure.value.__cause__, NotConfirmed)
            assert waiting(connection) == 3
        finally:
            replica.resume()
    with connect(server, confirm_replicas=1) as connection:
        connection.Producer().publish({'n': 4}, routing_key='safe')
        assert waiting(connection) == 4


def test_a_batch_is_confirmed_as_well(pair: tuple[Server, Server]) -> None:
    server, replica = pair
    with connect(server, confirm_replicas=1, confirm_timeout=0.2) as connection:
        producer = connection.Producer()
        replica.pause()
        try:
            with pytest.raises(NotConfirmed), producer.batch():
                producer.publish({'n': 1}, routing_key='safe')
        finally:
            replica.resume()


def test_what_is_on_the_disk_survives_a_crash_of_everysec() -> None:
    with Server('valkey', appendfsync='everysec') as server:
        with connect(server, confirm_fsync=True) as connection:
            connection.Producer().publish({'n': 1}, routing_key='safe')
        server.kill()
        server.start()
        with connect(server) as connection:
            assert waiting(connection) == 1


def test_a_publish_may_wait_for_longer_than_a_renewal() -> None:
    with (
        Server('valkey', appendfsync='always') as server,
        connect(server, confirm_fsync=True, lease=2) as connection,
    ):
        connection.Producer().publish({'n': 1}, routing_key='safe')
        message = connection.SimpleQueue('safe').get(timeout=20)
        message.ack()
        assert waiting(connection) == 0


def test_a_server_without_a_log_cannot_confirm() -> None:
    with (
        Server('valkey', appendonly='no') as server,
        connect(server, confirm_fsync=True) as connection,
        pytest.raises(InvalidOption, match='appendonly yes'),
    ):
        connection.Producer().publish({'n': 1}, routing_key='safe')


def test_the_wait_is_shorter_than_the_sockets() -> None:
    with pytest.raises(InvalidOption, match='less than socket_timeout'):
        Options.parse({'confirm_fsync': True, 'confirm_timeout': 9})
