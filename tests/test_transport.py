"""The transport as plain kombu uses it, on a server and on fakeredis."""

from __future__ import annotations

import gc
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import InconsistencyError

from kombu_reliable import InvalidMessage
from kombu_reliable.types import QueueCounts
from tests.support.plain import (
    LEASE,
    Connect,
    Receiver,
    drain,
    keys_of,
    raw,
    send,
    settled,
    store_of,
    turn,
)
from tests.support.servers import Server
from tests.support.wait import wait_for

# -- delivery --------------------------------------------------------------------


def test_a_message_arrives_as_it_was_sent(connection: Connection) -> None:
    body = {'text': 'ünï', 'list': [1, None, 2.5]}
    send(connection, body, headers={'h': 'v'}, correlation_id='c', reply_to='r', priority=3)
    receiver = Receiver(connection)
    drain(connection)
    [message] = receiver.messages
    assert message.payload == body
    assert message.content_type == 'application/json'
    assert message.headers == {
        'h': 'v', 'x-delivery-count': 1, 'x-lease-token': message.delivery_tag
    }  # fmt: skip
    assert message.properties['correlation_id'] == 'c'
    assert message.properties['reply_to'] == 'r'
    assert message.properties['priority'] == 3
    assert message.delivery_info == {'exchange': '', 'routing_key': 'q', 'redelivered': False}


@pytest.mark.parametrize(
    ('serializer', 'body'),
    [('pickle', {1, 2}), ('yaml', ['y']), ('msgpack', {'m': b'\x00\xff'}), ('raw', b'\x00\xff\n')],
)
def test_any_serializer(connection: Connection, serializer: str, body: Any) -> None:
    pytest.importorskip({'yaml': 'yaml', 'msgpack': 'msgpack'}.get(serializer, 'json'))
    send(connection, body, serializer=serializer)
    with connection.channel() as channel:
        message = channel.basic_get('q')
        message.accept = {message.content_type}
        assert message.decode() == body
        message.ack()


def test_a_compressed_and_a_big_message(connection: Connection) -> None:
    big = 'x\u00e9' * 1_000_000
    send(connection, big)
    send(connection, big, compression='zlib')
    receiver = Receiver(connection)
    drain(connection)
    assert receiver.bodies == [big, big]


@pytest.mark.parametrize('name', ['with spaces', 'ünï-✓', '{braces}', 'n' * 1000, 'a:b;c'])
def test_any_queue_name(connection: Connection, name: str) -> None:
    send(connection, 1, queue=name)
    receiver = Receiver(connection, name)
    drain(connection)
    receiver.messages[0].ack()
    assert receiver.bodies == [1]


def test_ack_forgets_the_message(connection: Connection) -> None:
    send(connection, 1, 2)
    receiver = Receiver(connection)
    drain(connection)
    for message in receiver.messages:
        message.ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 0)
    keys = keys_of(connection)
    left = {key.decode() for key in raw(connection).keys('*')}
    assert left <= {keys.meta, keys.alarms, keys.producers, keys.queues, keys.noticed}


def test_reject_makes_a_dead_letter(connection: Connection) -> None:
    send(connection, 1)
    receiver = Receiver(connection)
    drain(connection)
    receiver.messages[0].reject()
    assert settled(connection) == QueueCounts(0, 0, 0, 1)


def test_requeue_brings_it_back_first_and_counts(connection: Connection) -> None:
    send(connection, 'a', 'b', 'c')
    receiver = Receiver(connection, prefetch=1)
    drain(connection)
    receiver.messages[0].requeue()
    drain(connection)
    again = receiver.messages[1]
    assert again.payload == 'a'
    assert again.delivery_info['redelivered'] is True
    assert again.headers['x-delivery-count'] == 2


def test_recover_gives_back_what_was_not_settled(connection: Connection) -> None:
    send(connection, 'a', 'b')
    receiver = Receiver(connection)
    drain(connection)
    receiver.channel.basic_recover(requeue=True)
    drain(connection)
    assert receiver.bodies == ['a', 'b', 'a', 'b']


def test_no_ack_settles_at_delivery(connection: Connection) -> None:
    send(connection, 1, 2, 3)
    receiver = Receiver(connection, no_ack=True, prefetch=1)
    drain(connection)
    assert receiver.bodies == [1, 2, 3]
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_basic_get(connection: Connection) -> None:
    send(connection, 'a', 'b')
    with connection.channel() as channel:
        first = channel.basic_get('q')
        second = channel.basic_get('q', no_ack=True)
        assert (first.payload, second.payload) == ('a', 'b')
        assert channel.basic_get('q') is None
        first.ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_simple_queue(connection: Connection) -> None:
    with connection.SimpleQueue('simple') as queue:
        queue.put({'n': 1})
        assert queue.qsize() == 1
        message = queue.get(timeout=5)
        assert message.payload == {'n': 1}
        message.ack()
        with pytest.raises(queue.Empty):
            queue.get(timeout=0.1)


def test_an_idle_drain_times_out_in_time(connection: Connection) -> None:
    Receiver(connection)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 15


def test_a_sleeping_consumer_is_woken_by_a_publish(connect: Connect) -> None:
    consuming, producing = connect(lease=30), connect(lease=30)
    receiver = Receiver(consuming)
    drain(consuming)
    send(producing, 'wake')
    consuming.drain_events(timeout=5)
    assert receiver.bodies == ['wake']


# -- prefetch --------------------------------------------------------------------


@pytest.mark.parametrize('prefetch', [1, 3, 7])
def test_the_prefetch_is_never_exceeded(connection: Connection, prefetch: int) -> None:
    send(connection, *range(20))
    receiver = Receiver(connection, prefetch=prefetch)
    for done in range(20):
        drain(connection, timeout=0.02)
        assert done < len(receiver.messages) <= done + prefetch
        assert store_of(connection).counts('q').leased <= prefetch
        receiver.messages[done].ack()
    assert receiver.bodies == list(range(20))


def test_no_prefetch_limit_takes_all(connection: Connection) -> None:
    send(connection, *range(250))
    receiver = Receiver(connection, prefetch=0)
    drain(connection)
    assert receiver.bodies == list(range(250))


def test_whoever_replaces_can_consume_decides(connection: Connection) -> None:
    """Celery's worker_disable_prefetch does so."""
    send(connection, *range(5))
    receiver = Receiver(connection, prefetch=10)
    receiver.channel.qos.can_consume = lambda: len(receiver.messages) < 2
    drain(connection)
    assert receiver.bodies == [0, 1]


# -- several consumers -----------------------------------------------------------


def test_two_consumers_of_one_queue_take_turns(connection: Connection) -> None:
    with connection.channel() as channel:
        got: list[list[Any]] = [[], []]
        for mine in got:
            consumer = Consumer(channel, [Queue('q')], on_message=mine.append)
            consumer.consume()
        send(connection, *range(6))
        drain(connection)
        assert [[m.payload for m in mine] for mine in got] == [[0, 2, 4], [1, 3, 5]]


def test_two_channels_share_a_queue(connection: Connection) -> None:
    first, second = Receiver(connection, prefetch=2), Receiver(connection, prefetch=2)
    send(connection, *range(10))
    drain(connection)
    assert (len(first.messages), len(second.messages)) == (2, 2)
    assert sorted(first.bodies + second.bodies) == [0, 1, 2, 3]


def test_two_channels_are_served_in_time_by_one_clock(connection: Connection) -> None:
    """One claim does what time demands for both, whichever of them was served last."""
    first, second = Receiver(connection, 'q'), Receiver(connection, 'other')
    drain(connection)
    sent_at = time.monotonic()
    for number, queue in enumerate(('q', 'other', 'other', 'q'), 1):
        send(connection, number, queue=queue, headers={'x-delay': 200 * number})
    while len(first.messages) + len(second.messages) < 4:
        connection.drain_events(timeout=30)
        number = len(first.messages) + len(second.messages)
        assert 0 <= time.monotonic() - sent_at - 0.2 * number < 15
    assert (first.bodies, second.bodies) == ([1, 4], [2, 3])


def test_an_idle_channel_costs_a_busy_one_nothing(server: Server, url: str) -> None:
    """The server may go on waiting for the one while the other is given messages."""

    def silenced() -> int:
        with server.client() as client:
            stats: Any = client.info('commandstats')
        return int(stats.get('cmdstat_client|unblock', {}).get('calls', 0))

    with Connection(url) as connection:
        busy, idle = Receiver(connection, 'q', prefetch=2), Receiver(connection, 'other')
        drain(connection)
        send(connection, *range(40))
        before = silenced()
        for _ in range(20):
            drain(connection, 0.01)  # with nothing more to give it, it is full
            for message in busy.messages[-2:]:
                message.ack()
        assert len(busy.messages) == 40
        assert silenced() - before < 5
        send(connection, 'other', queue='other')
        connection.drain_events(timeout=5)
        assert idle.bodies == ['other']
        idle.messages[0].ack()


def test_a_consumer_that_is_cancelled_gives_back_what_it_did_not_see(
    connection: Connection,
) -> None:
    send(connection, *range(5))
    receiver = Receiver(connection)
    turn(connection)
    receiver.consumer.cancel()
    assert settled(connection).ready == 5 - len(receiver.messages)
    again = Receiver(connection)
    drain(connection)
    assert receiver.bodies + again.bodies == list(range(5))
    assert all(not message.delivery_info['redelivered'] for message in again.messages)


def test_a_callback_that_raises_loses_nothing(connection: Connection) -> None:
    send(connection, *range(3))
    seen: list[Any] = []

    def explode(message: Any) -> None:
        seen.append(message)
        if len(seen) == 1:
            raise RuntimeError('in the callback')

    with connection.channel() as channel, Consumer(channel, [Queue('q')], on_message=explode):
        with pytest.raises(RuntimeError):
            drain(connection)
        drain(connection)
        assert [message.payload for message in seen] == [0, 1, 2]


# -- leases ----------------------------------------------------------------------


def test_what_is_held_is_renewed_and_what_is_dropped_is_not(connection: Connection) -> None:
    send(connection, 'held', 'dropped')
    receiver = Receiver(connection)
    drain(connection)
    del receiver.messages[1]
    gc.collect()
    wait_for(lambda: drain(connection) or len(receiver.messages) == 2, 10, 'a redelivery')
    assert receiver.bodies == ['held', 'dropped']
    assert [m.headers['x-delivery-count'] for m in receiver.messages] == [1, 2]
    drain(connection, timeout=2 * LEASE)
    assert receiver.bodies == ['held', 'dropped']
    for message in receiver.messages:
        message.ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_closing_the_channel_keeps_what_was_delivered_and_settles_later(
    connection: Connection,
) -> None:
    send(connection, 'a')
    receiver = Receiver(connection)
    drain(connection)
    [message] = receiver.messages
    receiver.channel.close()
    assert store_of(connection).counts('q').leased == 1
    message.ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_settling_never_raises(connection: Connection) -> None:
    send(connection, 'a')
    receiver = Receiver(connection)
    drain(connection)
    channel = receiver.channel
    connection.release()
    receiver.messages[0].ack()
    channel.basic_ack('unknown')
    channel.basic_reject('unknown', requeue=True)


# -- routing ---------------------------------------------------------------------


def test_a_named_direct_exchange(connect: Connect) -> None:
    declaring, producing = connect(), connect()
    exchange = Exchange('ex', 'direct')
    for name in ('one', 'two'):
        Queue(name, exchange, routing_key=name)(declaring.channel()).declare()
    with producing.Producer(exchange=exchange) as producer:
        producer.publish('for two', routing_key='two')
    receiver = Receiver(declaring, 'two')
    drain(declaring)
    assert receiver.bodies == ['for two']
    assert receiver.messages[0].delivery_info['exchange'] == 'ex'
    assert store_of(declaring).counts('one').ready == 0


def test_one_publish_to_several_queues_is_one_job_in_each(connection: Connection) -> None:
    exchange = Exchange('many', 'topic')
    for name, key in (('all', '#'), ('a', 'a.*'), ('b', 'b.*')):
        Queue(name, exchange, routing_key=key)(connection.channel()).declare()
    with connection.Producer(exchange=exchange) as producer:
        producer.publish(1, routing_key='a.x', headers={'task': 't', 'id': 'same-id'})
    counts = {name: store_of(connection).counts(name).ready for name in ('all', 'a', 'b')}
    assert counts == {'all': 1, 'a': 1, 'b': 0}
    receivers = [Receiver(connection, name) for name in ('all', 'a')]
    drain(connection)
    for receiver in receivers:
        [message] = receiver.messages
        message.ack()
        assert message.headers['id'] == 'same-id'


def test_an_exchange_without_queues_is_an_error(connection: Connection) -> None:
    exchange = Exchange('nowhere', 'direct')
    with (
        connection.Producer(exchange=exchange) as producer,
        pytest.raises(InconsistencyError, match='nowhere'),
    ):
        producer.publish('lost?', routing_key='x')


def test_an_exchange_without_queues_is_an_error_at_once_with_retries_as_well(
    connection: Connection,
) -> None:
    """As for the reply to a remote control command whose sender has gone: kombu sets no limit."""
    with pytest.raises(InconsistencyError):
        connection.Producer().publish(
            'x', exchange=Exchange('nobody', 'direct'), routing_key='x', retry=True
        )


def test_fanout_reaches_all_who_listen_and_costs_nothing_else(connect: Connect) -> None:
    exchange = Exchange('news', 'fanout')
    producing = connect()
    with producing.Producer(exchange=exchange) as producer:
        producer.publish('nobody listens')
        listening = [connect(), connect()]
        got: list[list[Any]] = [[], []]
        for number, (connection, mine) in enumerate(zip(listening, got, strict=True)):
            queue = Queue(f'listener{number}', exchange, auto_delete=True)
            Consumer(connection.channel(), [queue], no_ack=True, on_message=mine.append).consume()
        producer.publish('first')
        producer.publish('second')
    for connection in listening:
        drain(connection)
    assert [[m.payload for m in mine] for mine in got] == [['first', 'second']] * 2


# -- queues ----------------------------------------------------------------------


def test_size_purge_and_delete(connection: Connection) -> None:
    channel = connection.channel()
    queue = Queue('q', Exchange('ex'), routing_key='q')(channel)
    queue.declare()
    send(connection, *range(450))
    send(connection, 'later', headers={'x-delay': 60_000})
    assert queue.queue_declare(passive=True).message_count == 451
    assert queue.purge() == 451
    assert queue.purge() == 0
    send(connection, 1)
    queue.delete(if_empty=True)
    assert store_of(connection).counts('q').ready == 1
    queue.delete()
    assert store_of(connection).counts('q').ready == 0
    assert not raw(connection).exists(keys_of(connection).bindings('ex'))


def test_global_keyprefix_stands_in_front_of_every_key(connect: Connect) -> None:
    connection = connect(global_keyprefix='app1:')
    Queue('q', Exchange('ex'), routing_key='q')(connection.channel()).declare()
    send(connection, 1)
    receiver = Receiver(connection)
    drain(connection)
    receiver.messages[0].requeue()
    settled(connection)
    assert all(key.startswith(b'app1:{kr:') for key in raw(connection).keys('*'))


# -- what makes no sense ---------------------------------------------------------


@pytest.mark.parametrize(
    'options',
    [
        {'priority': 'high'},
        {'headers': {'x-delay': -1}},
        {'headers': {'x-delay': 'soon'}},
        {'headers': {'eta': 'tomorrow'}},
        {'headers': {'eta': 12}},
    ],
)
def test_a_message_that_makes_no_sense_is_refused(
    connection: Connection, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidMessage):
        send(connection, 1, **options)
    assert not raw(connection).keys('*')


def test_a_queue_name_that_no_record_can_hold_is_refused(connection: Connection) -> None:
    with pytest.raises(InvalidMessage, match='9999 bytes'):
        send(connection, 1, queue='q' * 10_000)


def test_a_delay_replaces_an_eta(connection: Connection) -> None:
    send(connection, 1, headers={'x-delay': 50, 'eta': '2099-01-01T00:00:00+00:00'})
    receiver = Receiver(connection)
    connection.drain_events(timeout=5)
    assert receiver.messages[0].headers['eta'] is None


@pytest.mark.parametrize(('priority', 'rank'), [(999, 255), (-5, 0), (None, 0)])
def test_a_priority_out_of_range_is_clamped(
    connection: Connection, priority: Any, rank: int
) -> None:
    send(connection, 1, priority=priority)
    [key] = raw(connection).keys('*:j:*')
    assert int(raw(connection).getrange(key, 1, 3)) == rank


def test_a_time_without_a_zone_is_left_to_celery(connection: Connection) -> None:
    naive = (datetime.now() + timedelta(hours=1)).isoformat()
    send(connection, 1, headers={'eta': naive})
    aware = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    send(connection, 2, headers={'eta': aware})
    receiver = Receiver(connection)
    drain(connection)
    assert [(m.payload, m.headers['eta']) for m in receiver.messages] == [(1, naive)]
    assert store_of(connection).counts('q').delayed == 1


def test_a_damaged_record_becomes_a_dead_letter_and_the_consumer_lives_on(
    connection: Connection,
) -> None:
    send(connection, 'damaged')
    [key] = raw(connection).keys('*:j:*')
    head = raw(connection).getrange(key, 0, 21)
    raw(connection).set(key, head + b'\xff garbage')
    send(connection, 'sound')
    receiver = Receiver(connection)
    drain(connection)
    assert receiver.bodies == ['sound']
    receiver.messages[0].ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 1)


def test_the_same_prepared_message_may_be_sent_twice_on_purpose(connection: Connection) -> None:
    channel = connection.channel()
    message = channel.prepare_message(
        json.dumps('twice'), content_type='application/json', content_encoding='utf-8',
        properties={'delivery_mode': 2},
    )  # fmt: skip
    for _ in range(2):
        channel.basic_publish(message, exchange='', routing_key='q')
    assert store_of(connection).counts('q').ready == 2
