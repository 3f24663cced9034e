"""What users get wrong: one clear error or a defined result, and nothing is lost.

URLs stand in ``test_urls.py``, options in ``test_options.py``, damage in Redis in
``test_foreign_data.py``.
"""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection, Exchange, Queue

from kombu_reliable import (
    AccessRefused,
    InvalidMessage,
    InvalidOption,
    InvalidURL,
    LayoutError,
    ServerFull,
    UnsupportedServer,
)
from kombu_reliable.keys import Keys
from kombu_reliable.transport.examination import check_version
from kombu_reliable.types import QueueCounts
from tests.support.servers import Server
from tests.support.wait import wait_for

PASSWORD = 'hard to guess'


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    with Connection(url, transport_options={'lease': 1}) as opened:
        yield opened


def counts(connection: Connection, queue: str = 'q') -> QueueCounts:
    return connection.transport.endpoint.store.counts(queue)


def raw(connection: Connection) -> redis.Redis:
    return connection.transport.endpoint.store.client


def keys(connection: Connection) -> Keys:
    return connection.transport.endpoint.store.keys


def publish(connection: Connection, body: Any = 1, **how: Any) -> None:
    with connection.Producer() as producer:
        producer.publish(body, **{'routing_key': 'q', **how})


def take(connection: Connection, queue: str = 'q') -> Any:
    """Takes a message off a queue and settles it."""
    with connection.channel() as channel:
        message = channel.basic_get(queue)
        if message is not None:
            message.ack()
        return message


# -- messages --------------------------------------------------------------------


@pytest.mark.parametrize('priority', ['high', math.nan, math.inf, [1]])
def test_a_priority_that_is_no_number_is_refused(connection: Connection, priority: Any) -> None:
    with pytest.raises(InvalidMessage, match='is not a number from 0 to 255'):
        publish(connection, priority=priority)
    assert counts(connection) == QueueCounts(0, 0, 0, 0)


def test_a_priority_beyond_the_range_is_the_nearest_one(connection: Connection) -> None:
    for priority in (-5, 1, 254, 999, 255, 10**30):
        publish(connection, priority, priority=priority)
    order = [take(connection).payload for _ in range(6)]
    assert order == [999, 255, 10**30, 254, 1, -5]


@pytest.mark.parametrize('delay', [-1, '-1', math.nan, math.inf, -math.inf, 'soon', 2**60, [1]])
def test_an_impossible_delay_is_refused(connection: Connection, delay: Any) -> None:
    with pytest.raises(InvalidMessage, match='is not a number of milliseconds, 0 or more'):
        publish(connection, headers={'x-delay': delay})
    assert counts(connection) == QueueCounts(0, 0, 0, 0)


@pytest.mark.parametrize(
    'eta', ['tomorrow', '', 5, [1], '2026-13-01T00:00:00+00:00', date(2030, 1, 1)]
)
def test_an_eta_that_is_no_date_is_refused(connection: Connection, eta: Any) -> None:
    with pytest.raises(InvalidMessage, match='is no date in ISO format'):
        publish(connection, headers={'eta': eta})
    assert counts(connection) == QueueCounts(0, 0, 0, 0)


@pytest.mark.parametrize('eta', ['0001-01-01T00:00:00+14:00', '1969-12-31T23:59:59.9Z'])
def test_an_eta_long_ago_is_now(connection: Connection, eta: str) -> None:
    publish(connection, headers={'eta': eta})
    assert take(connection).headers['eta'] is None


def test_an_eta_at_the_end_of_time_waits(connection: Connection) -> None:
    publish(connection, headers={'eta': '9999-12-31T23:59:59-12:00'})
    assert counts(connection) == QueueCounts(0, 1, 0, 0)


@pytest.mark.parametrize('eta', [datetime(2030, 1, 1), '2030-01-01T00:00:00'])
def test_an_eta_without_a_zone_is_left_to_the_consumer(connection: Connection, eta: Any) -> None:
    publish(connection, headers={'eta': eta})
    assert take(connection).headers['eta'] == eta


@pytest.mark.parametrize(
    'where', [{'routing_key': '\ud800'}, {'headers': {'task': 't', 'id': 'a\ud800'}}]
)
def test_half_a_character_is_refused(connection: Connection, where: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match='half a character'):
        publish(connection, **where)


def test_a_message_without_an_address_is_refused(connection: Connection) -> None:
    with pytest.raises(InvalidMessage, match='neither an exchange nor a queue'):
        publish(connection, routing_key='')


def test_a_queue_name_that_is_too_long_is_refused(connection: Connection) -> None:
    publish(connection, routing_key='x' * 9_999)
    assert take(connection, 'x' * 9_999).payload == 1
    with pytest.raises(InvalidMessage, match='at most 9999 bytes'):
        publish(connection, routing_key='x' * 10_000)


NAMES = [' ', 'with spaces', 'ünï-✓', '{braces}', '}{', 'n' * 1000, 'a:b;c', '\0\n"\'', '~1~x', '=']


@pytest.mark.parametrize('name', NAMES)
def test_any_name_of_a_queue_an_exchange_and_a_task(connection: Connection, name: str) -> None:
    queue = Queue(name, Exchange(f'ex {name}', type='topic'), routing_key=f'{name}.#')
    headers = {'task': 't', 'id': name * 10}
    with connection.channel() as channel:
        bound = queue(channel)
        bound.declare()
        for _ in range(2):  # the second lives beside the first, under a key of its own
            publish(
                connection, name, exchange=queue.exchange, routing_key=f'{name}.x', headers=headers
            )
        assert bound.queue_declare(passive=True).message_count == 2
        for _ in range(2):
            message = bound.get()
            assert (message.payload, message.headers['id']) == (name, name * 10)
            message.reject()
        assert bound.purge() == 0
        bound.delete()
    wait_for(lambda: counts(connection, name) == QueueCounts(0, 0, 0, 2), what='dead letters')


@pytest.mark.parametrize(
    'id', ['x' * 10_000, 'a;b', 'a\0b', 'a\nb', '~7~abc', '=', 'ü', '', 5, None]
)
def test_any_id_of_a_task(connection: Connection, id: Any) -> None:
    headers = {'task': 't', 'id': id}
    publish(connection, 1, headers=headers)
    publish(connection, 2, headers=headers)
    received = []
    with connection.Consumer([Queue('q')], on_message=received.append) as consumer:
        consumer.qos(prefetch_count=1)
        for turn in (1, 2):
            while len(received) < turn:
                connection.drain_events(timeout=5)
            received[-1].ack()
    assert [(one.payload, one.headers['id']) for one in received] == [(1, id), (2, id)]
    wait_for(lambda: counts(connection) == QueueCounts(0, 0, 0, 0), what='settlements')


@pytest.mark.parametrize(
    ('how', 'error'),
    [
        ({'priority': 'high'}, InvalidMessage),
        ({'eta': 'tomorrow'}, InvalidMessage),
        ({'countdown': math.nan}, ValueError),
        ({'countdown': math.inf}, OverflowError),
        ({'headers': {'x-delay': -1}}, InvalidMessage),
    ],
)
def test_celery_is_told_at_once(url: str, how: dict[str, Any], error: type[Exception]) -> None:
    with Celery(broker=url) as app, app.connection() as connection:
        with pytest.raises(error):
            app.send_task('t', queue='q', connection=connection, **how)
        app.send_task('t', queue='q', connection=connection)
        assert counts(connection) == QueueCounts(1, 0, 0, 0)


@pytest.mark.parametrize(
    'how',
    [
        {'priority': 999},
        {'countdown': -5},
        {'eta': datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)},
        {'task_id': ''},
        {'expires': -1},
    ],
)
def test_what_celery_can_make_sense_of_is_ready_at_once(url: str, how: dict[str, Any]) -> None:
    with Celery(broker=url) as app, app.connection() as connection:
        app.send_task('t', queue='q', connection=connection, **how)
        assert counts(connection) == QueueCounts(1, 0, 0, 0)


def test_a_message_of_64_mib(connection: Connection) -> None:
    body = bytes(range(256)) * (64 * 4096)
    assert len(body) == 64 * 2**20
    began = time.monotonic()
    publish(connection, body, serializer='raw', content_type='application/data')
    published = time.monotonic()
    received: list[Any] = []
    with connection.Consumer([Queue('q')], on_message=received.append):
        while not received:
            connection.drain_events(timeout=30)
    taken = time.monotonic()
    assert received[0].body == body
    received[0].ack()
    del received[0]
    wait_for(lambda: counts(connection) == QueueCounts(0, 0, 0, 0), what='settlement')
    print(f'64 MiB: published in {published - began:.2f} s, received in {taken - published:.2f} s')


# -- servers ---------------------------------------------------------------------


@pytest.fixture(scope='module')
def guarded(server: Server) -> Iterator[Server]:
    """A server with a password and users of few rights."""
    with Server(server.binary, password=PASSWORD) as own, own.client() as client:
        users: dict[str, list[str]] = {
            'anna': ['~*', '+@all', '-info'],
            'otto': ['~other*', '+@all'],
            'emil': ['~*', '+@all', '-evalsha'],
            'nora': ['~*', '+@all', '-eval'],
            'paul': ['off'],
        }
        for name, rights in users.items():
            client.execute_command('ACL', 'SETUSER', name, 'on', f'>{name}s', *rights)
        yield own


@pytest.mark.parametrize('user', ['', ':wrong@', 'anna:wrong@', 'nobody:x@', 'paul:pauls@'])
def test_a_wrong_password_is_said_at_once(guarded: Server, user: str) -> None:
    url = f'reliable+redis://{user}127.0.0.1:{guarded.port}/0'
    for attempt in (
        lambda connection: connection.connect(),
        lambda connection: connection.ensure_connection(max_retries=3),
        lambda connection: publish(connection, retry=True),
        lambda connection: connection.SimpleQueue('q').get(timeout=1),
    ):
        with Connection(url) as connection, pytest.raises(AccessRefused, match='refuses') as error:
            attempt(connection)
        assert 'wrong' not in str(error.value)


@pytest.mark.parametrize(
    ('user', 'words'),
    [('otto', 'permission.* key'), ('emil', "'evalsha'"), ('nora', "'eval'")],
)
def test_a_missing_right_is_named(guarded: Server, user: str, words: str) -> None:
    url = f'reliable+redis://{user}:{user}s@127.0.0.1:{guarded.port}/0'
    with Connection(url) as connection, pytest.raises(AccessRefused, match=words) as error:
        publish(connection)
    assert 'redis.call' not in str(error.value)


def test_a_user_who_may_not_ask_for_info_is_served(guarded: Server) -> None:
    with Connection(f'reliable+redis://anna:annas@127.0.0.1:{guarded.port}/0') as connection:
        publish(connection)
        assert take(connection).payload == 1


def test_a_password_that_changes_under_a_connection(guarded: Server) -> None:
    url = f'reliable+redis://mary:one@127.0.0.1:{guarded.port}/0'
    with guarded.client() as client:
        client.execute_command('ACL', 'SETUSER', 'mary', 'on', '>one', '~*', '+@all')
        with Connection(url) as connection:
            publish(connection)
            client.execute_command('ACL', 'SETUSER', 'mary', 'resetpass', '>two')
            client.execute_command('CLIENT', 'KILL', 'USER', 'mary')
            with pytest.raises(AccessRefused, match='refuses'):
                publish(connection, retry=True, retry_policy={'max_retries': 3})
        with Connection(url.replace('one', 'two')) as connection:
            assert take(connection).payload == 1


def test_a_database_that_does_not_exist(server: Server) -> None:
    connection = Connection(f'reliable+redis://127.0.0.1:{server.port}/99')
    with pytest.raises(InvalidURL, match='a database that the server does not have'):
        connection.connect()


def test_options_are_checked_before_a_connection_is_made() -> None:
    with pytest.raises(InvalidOption, match="did you mean 'lease'"):
        Connection('reliable+redis://nowhere.invalid/0?leese=3').connect()


@pytest.mark.parametrize(
    ('info', 'error'),
    [
        ({'redis_version': '6.2.0'}, None),
        ({'redis_version': '7.0.15'}, None),
        ({'redis_version': '10.0'}, None),
        ({'redis_version': '7.2.4', 'valkey_version': '7.2.5'}, None),
        ({'redis_version': 'unstable'}, None),
        ({}, None),
        ({'redis_version': '6.0.16'}, 'Redis 6.0.16; at least 6.2'),
        ({'redis_version': '5.0.0'}, 'Redis 5.0.0; at least 6.2'),
        ({'redis_version': '7.2.4', 'valkey_version': '7.1.0'}, 'Valkey 7.1.0; at least 7.2'),
    ],
)
def test_which_versions_are_served(info: dict[str, str], error: str | None) -> None:
    if error is None:
        check_version(info)
        return
    with pytest.raises(UnsupportedServer, match=error):
        check_version(info)


@pytest.fixture
def old_server() -> Iterator[int]:
    """The port of something that says it is Redis 5."""
    info = b'# Server\r\nredis_version:5.0.0\r\n'
    listener = socket.create_server(('127.0.0.1', 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                while request := client.recv(65_536):
                    client.sendall(
                        b'+PONG\r\n' if b'PING' in request else b'$%d\r\n%b\r\n' % (len(info), info)
                    )

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def test_an_old_server_is_refused(old_server: int) -> None:
    connection = Connection(f'reliable+redis://127.0.0.1:{old_server}/0')
    with pytest.raises(UnsupportedServer, match=r'Redis 5\.0\.0; at least 6\.2 is needed'):
        connection.ensure_connection(max_retries=3)


@pytest.mark.parametrize('policy', ['allkeys-lru', 'volatile-ttl', 'noeviction'])
def test_eviction_is_warned_about_once(
    server: Server, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(server.binary, maxmemory_policy=policy) as own:
        for lease in (1, 2, 3):
            url = f'reliable+redis://127.0.0.1:{own.port}/0'
            with Connection(url, transport_options={'lease': lease}) as connection:
                publish(connection)
    warnings = [record.getMessage() for record in caplog.records]
    if policy == 'noeviction':
        assert warnings == []
    else:
        [warning] = warnings
        assert f'is {policy}' in warning
        assert 'CONFIG SET maxmemory-policy noeviction' in warning


def test_a_full_server_refuses_a_publish_and_goes_on(server: Server) -> None:
    with Server(server.binary) as own, own.client() as client:
        url = f'reliable+redis://127.0.0.1:{own.port}/0'
        with Connection(url, transport_options={'lease': 1}) as connection:
            for body in range(5):
                publish(connection, body)
            client.config_set('maxmemory', 1)
            with pytest.raises(ServerFull, match='maxmemory'):
                publish(connection, 5, retry=True)
            with pytest.raises(ServerFull, match='maxmemory'):
                publish(connection, 6, headers={'x-delay': 50})
            assert [take(connection).payload for _ in range(5)] == [0, 1, 2, 3, 4]
            client.config_set('maxmemory', 0)
            publish(connection, 7)
            assert take(connection).payload == 7


@pytest.mark.parametrize('limit', [1, 2, 3])
def test_few_connections_are_enough(url: str, limit: int) -> None:
    with Connection(url, transport_options={'max_connections': limit}) as connection:
        for body in range(3):
            publish(connection, body)
            assert connection.default_channel.queue_declare('q').message_count == 1
            assert take(connection).payload == body


# -- data of another version -----------------------------------------------------


@pytest.fixture
def future(connection: Connection) -> Callable[[], None]:
    return lambda: raw(connection).hset(keys(connection).meta, 'v', '99')


def test_data_of_the_future_is_refused_at_the_start(
    connection: Connection, future: Callable[[], None], url: str
) -> None:
    future()
    other = Connection(url, transport_options={'lease': 9})
    with pytest.raises(LayoutError, match='layout 99, this version'):
        other.connect()


def test_data_of_the_future_is_refused_by_each_operation(
    connection: Connection, future: Callable[[], None]
) -> None:
    publish(connection)
    publish(connection)
    channel = connection.channel()
    held = channel.basic_get('q')
    future()
    for attempt in (
        lambda: publish(connection, retry=True),
        lambda: channel.basic_get('q'),
        lambda: channel.queue_purge('q'),
        lambda: connection.transport.endpoint.keeper.renew(),
    ):
        with pytest.raises(LayoutError, match='layout 99, this version'):
            attempt()
    held.ack()
    with pytest.raises(LayoutError, match='layout 99, this version'):
        connection.transport.endpoint.keeper.flush()
    assert counts(connection) == QueueCounts(1, 0, 1, 0)
    raw(connection).hset(keys(connection).meta, 'v', '1')
    # The ack was kept and counts as soon as the data can be read again.
    wait_for(lambda: counts(connection) == QueueCounts(1, 0, 0, 0), what='a late ack')


def test_a_consumer_says_it_once_when_the_data_changes_under_it(
    connection: Connection, future: Callable[[], None]
) -> None:
    received: list[Any] = []
    with connection.Consumer([Queue('q')], on_message=received.append):
        publish(connection, 1)
        while not received:
            connection.drain_events(timeout=5)
        publish(connection, 2)
        future()
        with pytest.raises(LayoutError, match='layout 99'):
            while len(received) < 3:
                connection.drain_events(timeout=5)
    # Neither the cancel nor the close met it again.
    connection.release()
    assert len(received) < 3


# -- foreign data ----------------------------------------------------------------


def test_a_consumer_outlives_foreign_data(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Damage in one queue, in a marker, and in single messages; the good ones arrive."""
    received: list[Any] = []
    spell, client = keys(connection), raw(connection)
    client.set(spell.ready('bad'), 'foreign')
    client.set(spell.wake('q'), 'foreign')
    client.zadd(spell.alarms, {'junk': 0, b'\xff': 0})
    client.hset(spell.owners, 'junk', 'nonsense')
    client.zadd(spell.ready('q'), {'no record': 1, 'a hash': 2, 'an invalid id \\': 3})
    client.hset(spell.job('a hash'), 'a', 'b')
    for number, text in enumerate(['', 'x', '{"a": 1}', '-00000000000000000001q1', '*' * 1000]):
        client.set(spell.job(f'foreign{number}'), text)
        client.zadd(spell.ready('q'), {f'foreign{number}': 10 + number})
    with connection.Consumer([Queue('bad'), Queue('q')], on_message=received.append):
        with contextlib.suppress(TimeoutError):
            connection.drain_events(timeout=0.1)
        publish(connection, 'one')
        while not received:
            connection.drain_events(timeout=5)
        received[0].ack()
        publish(connection, 'two')
        while len(received) < 2:
            connection.drain_events(timeout=5)
        received[1].ack()
    assert [message.payload for message in received] == ['one', 'two']
    wait_for(lambda: counts(connection) == QueueCounts(0, 0, 0, 5), what='dead letters')
    messages = [record.getMessage() for record in caplog.records]
    assert sum('cannot be read and becomes a dead letter' in text for text in messages) == 5
    assert sum('a key holds foreign data: WRONGTYPE' in text for text in messages) == 1


@pytest.mark.parametrize('family', ['meta', 'producers', 'ready', 'delayed'])
def test_a_publisher_is_told_of_foreign_data(connection: Connection, family: str) -> None:
    connection.connect()
    key = getattr(keys(connection), family)
    raw(connection).set(key if isinstance(key, str) else key('q'), 'foreign')
    with pytest.raises(LayoutError, match='data of another program'):
        publish(connection, headers={'x-delay': 1000} if family == 'delayed' else {})
