"""Publishing through kombu: batches, repeats, next runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue

import kombu_reliable  # noqa: F401  registers the transport
from kombu_reliable.errors import ConnectionLost, Fenced, InvalidMessage, ServerFull
from kombu_reliable.scripts import all_scripts
from kombu_reliable.transport import lanes
from tests.conftest import empty_database
from tests.support.proxy import Command, Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for


@pytest.fixture
def proxy(server: Server, database: int) -> Iterator[Proxy]:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        yield proxy


@pytest.fixture
def connection(proxy: Proxy, database: int) -> Iterator[Connection]:
    with Connection(f'reliable+{proxy.url(database)}') as connection:
        yield connection


@pytest.fixture
def producer(connection: Connection) -> Producer:
    pytest.importorskip('kombu', '5.7')  # which has Producer.batch()
    return connection.Producer()


def publishes(command: Command) -> bool:
    names = {script.name: script.sha for script in all_scripts()}
    return command.sha in (names['publish'], names['publish_featured'], names['fanout'])


def waiting(connection: Connection, queue: str = 'q') -> list[Any]:
    """What the queue holds, taken out of it."""
    channel = connection.channel()
    bodies = []
    while (message := channel.basic_get(queue, no_ack=True)) is not None:
        bodies.append(message.payload)
    keeper = channel.keeper
    wait_for(lambda: not keeper.unsettled, 10, 'settlements')
    return bodies


def test_a_batch_is_one_round_trip(
    connection: Connection, producer: Producer, proxy: Proxy
) -> None:
    assert producer.supports_batch_publish
    producer.publish('warm up', routing_key='q')  # a queue is noticed once
    assert waiting(connection) == ['warm up']
    proxy.clear()
    with producer.batch():
        for number in range(500):
            producer.publish(number, routing_key='q')
        assert not proxy.seen()
    # Three calls, as one takes at most 200 messages, sent without waiting in between.
    assert [publishes(command) for command in proxy.seen()] == [True] * 3
    assert waiting(connection) == list(range(500))


def test_a_full_batch_leaves_by_itself(connection: Connection, producer: Producer) -> None:
    with producer.batch(max_size=10):
        for number in range(25):
            producer.publish(number, routing_key='q')
        assert waiting(connection) == list(range(20))
    assert waiting(connection) == list(range(20, 25))


def test_a_batch_that_ends_with_an_error_sends_nothing_more(
    connection: Connection, producer: Producer
) -> None:
    with pytest.raises(KeyError), producer.batch() as batch:
        producer.publish(1, routing_key='q')
        batch.flush()
        producer.publish(2, routing_key='q')
        raise KeyError
    producer.publish(3, routing_key='q')
    assert waiting(connection) == [1, 3]


def test_a_message_that_makes_no_sense_is_refused_when_it_is_added(
    connection: Connection, producer: Producer
) -> None:
    with producer.batch():
        producer.publish(1, routing_key='q')
        with pytest.raises(InvalidMessage):
            producer.publish(2, routing_key='q', priority='high')
        producer.publish(3, routing_key='q')
    assert waiting(connection) == [1, 3]


@pytest.mark.parametrize('lost', [1, 2, 3])
def test_a_batch_whose_reply_was_lost_is_stored_once(
    connection: Connection, producer: Producer, proxy: Proxy, lost: int
) -> None:
    producer.publish('warm up', routing_key='other')
    with producer.batch():
        for number in range(500):
            producer.publish(number, routing_key='q')
        fault = proxy.drop_reply(lost, publishes)
    assert fault.fired
    assert waiting(connection) == list(range(500))


def test_a_batch_can_be_flushed_again_after_an_outage(
    connection: Connection, producer: Producer, proxy: Proxy
) -> None:
    producer.publish('warm up', routing_key='other')
    with producer.batch() as batch:
        for number in range(300):
            producer.publish(number, routing_key='q')
        proxy.drop_reply(2, publishes)
        proxy.refuse()
        with pytest.raises(connection.connection_errors):
            batch.flush()
        # What comes later does not mix with what is in doubt.
        producer.publish(300, routing_key='q')
        proxy.refuse(False)
    assert waiting(connection) == list(range(301))


def test_a_batch_mixes_queues_exchanges_and_broadcasts(
    connection: Connection, producer: Producer
) -> None:
    channel = connection.channel()
    news = Exchange('news', 'fanout')
    listener = Consumer(channel, [Queue('ear', news)], no_ack=True, accept=['json', 'text/plain'])
    heard: list[Any] = []
    listener.register_callback(lambda body, message: heard.append(body))
    listener.consume()
    topics = Exchange('topics', 'topic')
    Queue('q', topics, 'a.*')(channel).declare()
    with producer.batch():
        producer.publish(1, routing_key='a.b', exchange=topics)
        producer.publish('hello', exchange=news)
        producer.publish(2, routing_key='q')
        producer.publish('again', exchange=news)
    assert waiting(connection) == [1, 2]
    while len(heard) < 2:
        connection.drain_events(timeout=10)
    assert heard == ['hello', 'again']


def test_a_full_server_stores_a_batch_once_it_has_room(
    connection: Connection, producer: Producer, server: Server
) -> None:
    producer.publish('warm up', routing_key='other')
    with server.client() as admin, producer.batch() as batch:
        for number in range(300):
            producer.publish(number, routing_key='q')
        admin.config_set('maxmemory', 1)
        try:
            with pytest.raises(ServerFull):
                batch.flush()
        finally:
            admin.config_set('maxmemory', 0)
    assert waiting(connection) == list(range(300))


def test_a_failed_publish_is_not_forgotten_because_of_a_later_one(server: Server) -> None:
    """The same thread sends something else before it repeats what was lost on the way."""
    with (
        empty_database(server) as number,
        Proxy(('127.0.0.1', server.port)) as proxy,
        Connection(f'reliable+{proxy.url(number)}') as connection,
    ):
        channel = connection.channel()
        channel.basic_publish(channel.prepare_message('0'), '', 'q')
        lost = channel.prepare_message('1')
        proxy.drop_request(1, publishes)
        with pytest.raises((*connection.connection_errors, ConnectionLost)):
            channel.basic_publish(lost, '', 'q')
        channel.basic_publish(channel.prepare_message('2'), '', 'q')
        channel.basic_publish(lost, '', 'q')
        assert waiting(connection) == ['0', '2', '1']


def test_an_abandoned_lane_is_not_used_again() -> None:
    first = lanes.next_nonce()
    lanes.abandon_lane(first)
    second = lanes.next_nonce()
    assert second.lane != first.lane
    lanes.abandon_lane(first)
    assert lanes.next_nonce().lane == second.lane


# -- next runs ------------------------------------------------------------------------------


def publish_task(connection: Connection, exchange: Any = '', **headers: Any) -> None:
    headers = {'task': 't', 'id': 'the-id', **headers}
    connection.Producer().publish('body', exchange=exchange, routing_key='q', headers=headers)


def test_a_publish_with_the_token_of_a_delivery_is_its_next_run(connection: Connection) -> None:
    publish_task(connection, mine=1)
    held = connection.channel().basic_get('q')
    publish_task(connection, **held.headers)
    again = connection.channel().basic_get('q')
    assert again.headers['mine'] == 1
    assert again.headers['x-delivery-count'] == 1
    assert again.headers['x-lease-token'] != held.headers['x-lease-token']
    with pytest.raises(Fenced):
        publish_task(connection, **held.headers)


def test_a_batch_with_a_refused_next_run_stores_the_others_once(
    connection: Connection, producer: Producer
) -> None:
    publish_task(connection)
    held = connection.channel().basic_get('q')
    publish_task(connection, **held.headers)
    assert waiting(connection) == ['body']
    publish_task(connection)
    late = connection.channel().basic_get('q')
    publish_task(connection, **late.headers)
    with producer.batch() as batch:
        producer.publish(1, routing_key='q')
        producer.publish(2, routing_key='q', headers=late.headers)
        with pytest.raises(Fenced):
            batch.flush()
        producer.publish(3, routing_key='q')
    assert waiting(connection) == ['body', 1, 3]


def test_a_job_with_a_key_of_its_own_has_next_runs_too(connection: Connection) -> None:
    """One publish to two queues is one job in each, of which only one can own the id."""
    channel = connection.channel()
    exchange = Exchange('both', 'topic')
    for name in ('q', 'r'):
        Queue(name, exchange, '#')(channel).declare()
    publish_task(connection, exchange)
    for name in ('q', 'r'):
        held = channel.basic_get(name)
        connection.Producer().publish('next', routing_key=name, headers=held.headers)
        assert waiting(connection, name) == ['next']
        held.ack()
    assert not waiting(connection, 'q') and not waiting(connection, 'r')


def test_the_headers_of_a_run_handed_on_to_another_task_end_nothing(
    connection: Connection,
) -> None:
    publish_task(connection)
    held = connection.channel().basic_get('q')
    publish_task(connection, **{**held.headers, 'id': 'another'})
    other = connection.channel().basic_get('q')
    assert other.headers['id'] == 'another'
    # The first run goes on: its next one is still accepted.
    publish_task(connection, **held.headers)
