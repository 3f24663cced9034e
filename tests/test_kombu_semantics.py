"""What kombu documents of channels and consumers, on a server and on fakeredis."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue, binding
from kombu.exceptions import ChannelError, InconsistencyError

from kombu_reliable.errors import InvalidMessage
from kombu_reliable.transport.routing import topic_matches
from kombu_reliable.types import QueueCounts
from tests.support.plain import (
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
from tests.support.wait import wait_for
from tests.support.workers import ROOT


@pytest.fixture(params=['', 'app1:'], ids=['plain', 'prefixed'])
def keyprefix(request: pytest.FixtureRequest) -> str:
    prefix: str = request.param
    return prefix


def declare(connection: Connection, name: str, *args: Any, **kwargs: Any) -> Queue:
    """Declares a queue on a channel of its own."""
    queue = Queue(name, *args, **kwargs)(connection.channel())
    queue.declare()
    return queue


def consume(connection: Connection, name: str, **options: Any) -> Receiver:
    """Consumes a queue that others have declared."""
    return Receiver(connection, Queue(name, no_declare=True), **options)


def publish(connection: Connection, body: Any, **options: Any) -> None:
    with connection.Producer() as producer:
        producer.publish(body, **options)


def ready(connection: Connection, *names: str) -> list[int]:
    return [store_of(connection).counts(name).ready for name in names]


def claim_until(connection: Connection, condition: Any, what: str, timeout: float = 15) -> None:
    """Somebody claims now and then, as any idle worker does, until something is true."""
    channel = connection.channel()

    def done() -> bool:
        channel.basic_get('nothing-is-ever-sent-here')
        return bool(condition())

    wait_for(done, timeout, what)


# -- topic exchanges -------------------------------------------------------------


@pytest.mark.parametrize(
    ('pattern', 'yes', 'no'),
    [
        ('#', ['', 'a', 'a.b.c'], []),
        ('*', ['a'], ['', 'a.b']),
        ('a.b', ['a.b'], ['a', 'a.b.c', 'axb', 'a.']),
        ('a.*', ['a.b'], ['a', 'a.b.c', 'b.a']),
        ('a.#', ['a', 'a.b', 'a.b.c'], ['ab', 'b.a']),
        ('#.a', ['a', 'b.a', 'c.b.a'], ['ba', 'a.b']),
        ('*.stock.#', ['usd.stock', 'eur.stock.db'], ['stock.nasdaq']),
        ('a.#.z', ['a.z', 'a.b.z', 'a.b.c.z'], ['a.bz', 'a']),
        ('a.*.z', ['a.b.z'], ['a.z', 'a.b.c.z']),
        ('#.b.#', ['b', 'a.b', 'b.c', 'a.b.c'], ['bb', 'a.bc']),
        ('#.#.x', ['x', 'a.x'], ['ax']),
        ('*.*', ['a.b'], ['a', 'a.b.c']),
        ('a+.(b)', ['a+.(b)'], ['aa.b']),
        ('a*', ['a*'], ['ab']),
        ('', [''], ['a']),
    ],
)
def test_topic_bindings(pattern: str, yes: list[str], no: list[str]) -> None:
    assert all(topic_matches(pattern, key) for key in yes)
    assert not any(topic_matches(pattern, key) for key in no)


def test_a_topic_pattern_of_many_wildcards_is_quick() -> None:
    began = time.thread_time()
    assert not topic_matches('#.' * 30 + 'z', 'a.' * 60)
    assert time.thread_time() - began < 1


def test_a_topic_exchange_routes_each_message_once_per_queue(connection: Connection) -> None:
    exchange = Exchange('logs', 'topic')
    both = [binding(exchange, routing_key='*.error'), binding(exchange, routing_key='db.#')]
    declare(connection, 'both', both)
    declare(connection, 'all', exchange, routing_key='#')
    declare(connection, 'none', exchange, routing_key='web.*')
    publish(connection, 1, exchange=exchange, routing_key='db.error')
    assert ready(connection, 'both', 'all', 'none') == [1, 1, 0]
    publish(connection, 2, exchange=exchange, routing_key='db')
    assert ready(connection, 'both', 'all', 'none') == [2, 2, 0]


def test_a_publisher_need_not_declare_the_exchange(connect: Connect) -> None:
    declaring, publishing = connect(), connect()
    declare(declaring, 'errors', Exchange('logs', 'topic'), routing_key='*.error')
    publish(publishing, 1, exchange='logs', routing_key='db.error')
    publish(publishing, 2, exchange='logs', routing_key='db.info')
    assert ready(publishing, 'errors') == [1]
    got: list[Any] = []
    queue = Queue('news', Exchange('broadcast', 'fanout'), auto_delete=True)
    Consumer(declaring.channel(), [queue], on_message=got.append, no_ack=True).consume()
    publish(publishing, 3, exchange='broadcast')
    drain(declaring)
    assert [message.payload for message in got] == [3]


def test_a_direct_exchange_compares_the_whole_key(connection: Connection) -> None:
    exchange = Exchange('ex', 'direct')
    declare(connection, 'star', exchange, routing_key='a.*')
    declare(connection, 'first', exchange, routing_key='a.b')
    declare(connection, 'second', exchange, routing_key='a.b')
    publish(connection, 1, exchange=exchange, routing_key='a.b')
    assert ready(connection, 'star', 'first', 'second') == [0, 1, 1]


def test_a_message_that_matches_no_binding_is_dropped_as_in_amqp(connection: Connection) -> None:
    exchange = Exchange('ex', 'direct')
    declare(connection, 'q', exchange, routing_key='a')
    publish(connection, 1, exchange=exchange, routing_key='b')
    assert ready(connection, 'q') == [0]
    assert not raw(connection).exists(keys_of(connection).producers)


def test_a_message_without_any_destination_is_an_error(connection: Connection) -> None:
    with pytest.raises(InvalidMessage, match='neither an exchange nor a queue'):
        publish(connection, 1)


def test_a_publish_to_a_queue_asks_the_server_nothing_else(connection: Connection) -> None:
    """Celery sends its tasks to the anonymous exchange."""
    channel = connection.channel()
    store = store_of(connection)
    store.bindings_since = None  # type: ignore[method-assign, assignment]
    assert channel._lookup('', 'celery') == ['celery']


def test_a_publisher_that_knows_the_bindings_notices_each_change(connect: Connect) -> None:
    publishing, other = connect(), connect(lease=5)
    exchange = Exchange('ex', 'topic')

    def route(key: str) -> list[str]:
        queues: list[str] = publishing.default_channel._lookup('ex', key)
        return queues

    for number in range(3):
        declare(other, f'q{number}', exchange, routing_key='#')
        assert route('a') == [f'q{n}' for n in range(number + 1)]
    store = store_of(publishing)
    reads: list[str] = []
    read = store.bindings
    store.bindings = lambda name: reads.append(name) or read(name)  # type: ignore
    assert route('b') == ['q0', 'q1', 'q2']
    assert not reads
    Queue('q1', exchange, routing_key='#')(other.channel()).unbind_from(exchange, '#')
    assert route('b') == ['q0', 'q2']
    other.channel().queue_delete('q0')
    assert route('b') == ['q2']
    raw(other).flushdb()
    for number in range(7, 12):
        declare(other, f'q{number}', exchange, routing_key='b')
    assert route('b') == [f'q{n}' for n in (10, 11, 7, 8, 9)]


def test_a_batch_reads_the_bindings_of_an_exchange_once(connection: Connection) -> None:
    exchange = Exchange('ex', 'topic')
    declare(connection, 'q', exchange, routing_key='a.#')
    store, asked = store_of(connection), []
    ask = store.bindings_since
    store.bindings_since = lambda *args: asked.append(args) or ask(*args)  # type: ignore
    with connection.Producer(exchange=exchange) as producer:
        if not hasattr(producer, 'batch'):
            pytest.skip('this kombu has no batches')
        with producer.batch():
            for number in range(20):
                producer.publish(number, routing_key='a.b')
    assert ready(connection, 'q') == [20]
    assert len(asked) == 1


# -- exchanges -------------------------------------------------------------------


def test_an_exchange_type_that_is_not_supported_is_named(connection: Connection) -> None:
    with pytest.raises(ChannelError, match=r"unknown type 'headers'.*direct, fanout, topic"):
        declare(connection, 'q', Exchange('ex', 'headers'))
    assert connection.channel_errors  # kombu knows the error for what it is
    with pytest.raises(connection.channel_errors):
        Exchange('ex', 'x-delayed-message')(connection.channel()).declare()


def test_a_passive_exchange_must_be_known(connect: Connect) -> None:
    one, other = connect(), connect()
    passive = Exchange('ex', 'topic', passive=True)
    with pytest.raises(ChannelError, match='NOT_FOUND'):
        passive(other.channel()).declare()
    declare(one, 'q', Exchange('ex', 'topic'), routing_key='#')
    passive(other.channel()).declare()
    Exchange('here', 'direct')(other.channel()).declare()
    Exchange('here', 'direct', passive=True)(other.channel()).declare()


def test_binding_to_an_unknown_exchange_is_an_error(connection: Connection) -> None:
    channel = connection.channel()
    channel.queue_declare('q')
    with pytest.raises(ChannelError, match="no exchange 'nowhere'"):
        channel.queue_bind('q', 'nowhere', 'key')
    channel.queue_bind('q', routing_key='key')  # to amq.direct, which AMQP declares itself
    publish(connection, 1, exchange='amq.direct', routing_key='key')
    assert ready(connection, 'q') == [1]


def test_exchange_delete_removes_bindings_and_keeps_queues(connect: Connect) -> None:
    one, other = connect(), connect()
    exchange = Exchange('ex', 'direct')
    declare(one, 'a', exchange, routing_key='a')
    declare(other, 'b', exchange, routing_key='b')
    send(one, 1, queue='a')
    exchange(one.channel()).delete(if_unused=True)
    assert store_of(one).bindings('ex')
    exchange(one.channel()).delete()
    assert not raw(one).exists(keys_of(one).bindings('ex'))
    assert ready(one, 'a') == [1]
    with pytest.raises(InconsistencyError):
        publish(one, 1, exchange='ex', routing_key='a')


def test_management_lists_the_bindings(connection: Connection) -> None:
    declare(connection, 'q', Exchange('ex', 'direct'), routing_key='key')
    declare(connection, 'f', Exchange('fan', 'fanout'))
    manager = connection.get_manager()
    assert manager.get_bindings() == [{'destination': 'q', 'source': 'ex', 'routing_key': 'key'}]


# -- queues ----------------------------------------------------------------------


def test_a_passive_declaration_finds_only_what_is_known(connect: Connect) -> None:
    connection, other = connect(), connect()
    channel = connection.channel()

    def count() -> int:
        size: int = channel.queue_declare('q', passive=True).message_count
        return size

    with pytest.raises(ChannelError) as error:
        count()
    assert error.value.reply_code == '404'
    declare(other, 'q')
    assert count() == 0
    other.channel().queue_delete('q')
    with pytest.raises(ChannelError):
        count()
    send(other, 1, 2)
    assert count() == 2
    message = channel.basic_get('q')
    channel.basic_get('q').ack()
    settled(connection)
    assert count() == 0  # the other one is still held
    message.ack()
    settled(connection)
    with pytest.raises(ChannelError):
        count()


def test_a_passive_declaration_changes_nothing(connection: Connection) -> None:
    Queue('q', no_declare=True)(connection.channel()).declare()
    with pytest.raises(ChannelError):
        Queue('q')(connection.channel()).queue_declare(passive=True)
    assert not raw(connection).keys('*')


def test_a_queue_without_a_name_gets_one(connection: Connection) -> None:
    queue = Queue('')(connection.channel())
    queue.declare()
    assert queue.name.startswith('amq.gen-')
    send(connection, 1, queue=queue.name)
    assert queue.get().payload == 1


def test_purge_says_how_many(connection: Connection) -> None:
    queue = declare(connection, 'q')
    send(connection, *range(7))
    held = queue.get()
    assert queue.purge() == 6
    assert queue.purge() == 0
    held.ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_delete_may_spare_what_is_used_or_not_empty(connect: Connect) -> None:
    connection, other = connect(), connect()
    queue = declare(connection, 'q', Exchange('ex'), routing_key='q')
    send(connection, 1)
    queue.delete(if_empty=True)
    assert ready(connection, 'q') == [1]
    receiver = Receiver(connection)
    queue.delete(if_unused=True)
    assert store_of(connection).knows('q')
    receiver.consumer.cancel()
    queue.purge()
    queue.delete(if_unused=True, if_empty=True)
    assert not store_of(connection).knows('q')
    assert not store_of(connection).bindings('ex')
    # Of a queue with a limited life the consumers of others are known as well.
    temporary = declare(connection, 't', expires=60)
    receiver = consume(other, 't')
    temporary.delete(if_unused=True)
    assert store_of(connection).knows('t')
    receiver.consumer.cancel()
    temporary.delete(if_unused=True)
    assert not store_of(connection).knows('t')


def test_unbind(connection: Connection) -> None:
    exchange = Exchange('ex', 'topic')
    queue = declare(connection, 'q', exchange, routing_key='a.#')
    queue.bind_to(exchange, 'b.#')
    publish(connection, 1, exchange=exchange, routing_key='b.x')
    queue.unbind_from(exchange, 'b.#')
    publish(connection, 2, exchange=exchange, routing_key='b.x')
    publish(connection, 3, exchange=exchange, routing_key='a.x')
    assert [queue.get(no_ack=True).payload for _ in range(2)] == [1, 3]


def test_a_fanout_queue_that_was_unbound_gets_no_more(connection: Connection) -> None:
    exchange = Exchange('fan', 'fanout')
    got: list[Any] = []
    queue = declare(connection, 'f', exchange)
    consumer = Consumer(queue.channel, [queue], on_message=got.append, no_ack=True)
    consumer.consume()
    publish(connection, 1, exchange=exchange)
    drain(connection)
    queue.unbind_from(exchange)
    publish(connection, 2, exchange=exchange)
    drain(connection)
    assert [message.payload for message in got] == [1]
    assert not raw(connection).exists(keys_of(connection).listeners('fan'))


# -- settling --------------------------------------------------------------------


def test_recover_and_its_limits(connection: Connection) -> None:
    send(connection, 'a', 'b')
    receiver = Receiver(connection)
    drain(connection)
    receiver.messages[1].ack()
    receiver.consumer.recover(requeue=True)
    drain(connection)
    assert receiver.bodies == ['a', 'b', 'a']
    assert receiver.messages[2].delivery_info['redelivered'] is True
    with pytest.raises(NotImplementedError):
        receiver.consumer.recover(requeue=False)


def test_reject_and_requeue(connection: Connection) -> None:
    send(connection, 'a', 'b')
    receiver = Receiver(connection)
    drain(connection)
    receiver.messages[0].reject(requeue=True)
    receiver.messages[1].reject()
    drain(connection)
    assert receiver.bodies == ['a', 'b', 'a']
    receiver.messages[2].ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 1)


def test_multiple_settles_all_before_as_well(connection: Connection) -> None:
    send(connection, *range(5))
    receiver = Receiver(connection)
    drain(connection)
    receiver.messages[1].ack()
    receiver.messages[3].ack(multiple=True)
    assert settled(connection) == QueueCounts(0, 0, 1, 0)
    receiver.channel.basic_ack(receiver.messages[3].delivery_tag, multiple=True)
    assert settled(connection) == QueueCounts(0, 0, 1, 0), 'what is settled settles no others'
    receiver.messages[4].ack()
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_get_with_and_without_ack(connection: Connection) -> None:
    queue = declare(connection, 'q')
    assert queue.get() is None
    send(connection, 1, 2)
    assert queue.get(no_ack=True).payload == 1
    message = queue.get()
    assert settled(connection) == QueueCounts(0, 0, 1, 0)
    message.requeue()
    assert settled(connection) == QueueCounts(1, 0, 0, 0)
    assert queue.get().headers['x-delivery-count'] == 2


def test_closing_a_channel_leaves_what_is_unsettled_to_its_holder(connection: Connection) -> None:
    send(connection, *range(3))
    receiver = Receiver(connection, prefetch=2)
    drain(connection)
    receiver.channel.close()
    assert settled(connection) == QueueCounts(1, 0, 2, 0)
    receiver.messages[0].ack()
    receiver.messages.clear()
    gc.collect()
    again = Receiver(connection)  # what nobody holds any more comes back
    wait_for(lambda: drain(connection) or len(again.messages) == 2, 10, 'the other two')
    assert sorted(again.bodies) == [1, 2]


# -- consumers -------------------------------------------------------------------


def test_of_two_consumers_one_may_go(connection: Connection) -> None:
    channel = connection.channel()
    got: list[list[Any]] = [[], []]
    consumers = [Consumer(channel, [Queue('q')], on_message=mine.append) for mine in got]
    for consumer in consumers:
        consumer.consume()
    send(connection, *range(4))
    drain(connection)
    consumers[0].cancel()
    send(connection, 4, 5)
    drain(connection)
    assert [[m.payload for m in mine] for mine in got] == [[0, 2], [1, 3, 4, 5]]
    for message in (*got[0], *got[1]):
        message.ack()  # also those of the one that is gone
    assert settled(connection) == QueueCounts(0, 0, 0, 0)


def test_a_consumer_of_several_queues_and_cancel_by_queue(connection: Connection) -> None:
    receiver = Receiver(connection, 'a', 'b')
    for queue in ('a', 'b'):
        send(connection, queue, queue=queue)
    drain(connection)
    assert sorted(receiver.bodies) == ['a', 'b']
    receiver.consumer.cancel_by_queue('a')
    assert not receiver.consumer.consuming_from('a')
    for queue in ('a', 'b'):
        send(connection, f'{queue}2', queue=queue)
    drain(connection)
    assert sorted(receiver.bodies) == ['a', 'b', 'b2']
    receiver.consumer.add_queue(Queue('c'))
    receiver.consumer.consume()
    send(connection, 'c', queue='c')
    drain(connection)
    assert receiver.bodies[-1] == 'c'


def test_channels_of_one_connection_are_independent(connection: Connection) -> None:
    one, two = Receiver(connection, 'a', prefetch=1), Receiver(connection, 'b', prefetch=5)
    send(connection, *range(3), queue='a')
    send(connection, *range(3), queue='b')
    drain(connection)
    assert (one.bodies, two.bodies) == ([0], [0, 1, 2])
    two.channel.close()
    one.messages[0].ack()
    drain(connection)
    assert one.bodies == [0, 1]


def test_the_default_channel_serves_producers_and_consumers(connection: Connection) -> None:
    channel = connection.default_channel
    assert connection.default_channel is channel
    got: list[Any] = []
    with Consumer(channel, [Queue('q')], on_message=got.append, no_ack=True):
        connection.Producer(channel).publish(1, routing_key='q')
        connection.drain_events(timeout=5)
    assert [message.payload for message in got] == [1]


def test_consumer_tags(connection: Connection) -> None:
    channel = connection.channel()
    got: list[Any] = []
    tags = [channel.basic_consume('q', True, got.append, '') for _ in range(2)]
    assert len(set(tags)) == 2
    channel.basic_consume('q', True, got.append, 'mine')
    with pytest.raises(ChannelError, match="'mine' is in use"):
        channel.basic_consume('q', True, got.append, 'mine')
    for tag in (*tags, 'mine'):
        channel.basic_cancel(tag)
    channel.basic_cancel('unknown')
    send(connection, 1)
    drain(connection)
    assert not got
    assert ready(connection, 'q') == [1]


def test_a_consumer_that_does_not_declare_its_queue(connection: Connection) -> None:
    got: list[Any] = []
    queue = Queue('q', Exchange('ex'), routing_key='q', no_declare=True)
    with Consumer(connection.channel(), [queue], on_message=got.append, no_ack=True):
        assert not store_of(connection).bindings('ex')
        send(connection, 1)
        drain(connection)
    assert len(got) == 1


def test_one_drain_may_deliver_a_batch(connection: Connection) -> None:
    receiver = Receiver(connection)
    turn(connection)
    send(connection, *range(5))
    connection.drain_events(timeout=5)
    drain(connection)
    assert receiver.bodies == list(range(5))


# -- prefetch and flow -----------------------------------------------------------


def test_the_prefetch_may_change_at_any_time(connection: Connection) -> None:
    send(connection, *range(20))
    receiver = Receiver(connection, prefetch=2)
    drain(connection)
    assert receiver.bodies == [0, 1]
    receiver.consumer.qos(prefetch_count=5)
    drain(connection)
    assert len(receiver.bodies) == 5
    receiver.channel.basic_qos(0, 1, apply_global=True)
    for message in receiver.messages[:4]:
        message.ack()
    drain(connection)
    assert len(receiver.bodies) == 5  # one is still held
    receiver.messages[4].ack()
    drain(connection)
    assert len(receiver.bodies) == 6
    receiver.consumer.qos(prefetch_count=0)
    drain(connection)
    assert receiver.bodies == list(range(20))


def test_a_greater_prefetch_is_noticed_by_a_drain_that_sleeps(connect: Connect) -> None:
    connection = connect(lease=30)
    send(connection, 1, 2)
    receiver = Receiver(connection, prefetch=1)
    drain(connection)
    timer = threading.Timer(0.2, lambda: receiver.channel.basic_qos(0, 2, False))
    timer.start()
    connection.drain_events(timeout=20)
    timer.join()
    assert receiver.bodies == [1, 2]


def test_flow_stops_and_resumes(connection: Connection) -> None:
    exchange = Exchange('fan', 'fanout')
    receiver = Receiver(connection)
    drain(connection, 0.05)
    news: list[Any] = []
    fan = Queue('f', exchange, auto_delete=True)
    Consumer(receiver.channel, [fan], on_message=news.append, no_ack=True).consume()
    receiver.consumer.flow(False)
    send(connection, 1)
    publish(connection, 'news', exchange=exchange)
    drain(connection)
    assert not receiver.messages
    assert not news
    assert ready(connection, 'q') == [1]  # for others to take
    receiver.consumer.flow(True)
    drain(connection)
    assert receiver.bodies == [1]
    assert [message.payload for message in news] == ['news']


# -- messages --------------------------------------------------------------------


@pytest.mark.parametrize('body', [b'\x00\xff\n{}', 'text', b''])
def test_bodies_that_are_no_objects(connection: Connection, body: Any) -> None:
    binary = isinstance(body, bytes)
    publish(
        connection, body, routing_key='q',
        content_type='application/data' if binary else 'text/plain',
        content_encoding='binary' if binary else 'utf-8',
    )  # fmt: skip
    message = connection.channel().basic_get('q')
    assert message.content_encoding == ('binary' if binary else 'utf-8')
    message.accept = None
    assert message.payload == body
    message.ack()


@pytest.mark.parametrize('encoding', ['base64', None, 'utf-8'])
def test_a_body_that_was_encoded_by_its_sender_arrives(
    connection: Connection, encoding: str | None
) -> None:
    """``body_encoding`` is ignored: bodies travel as the bytes that they are."""
    channel = connection.channel()
    message = channel.prepare_message(
        '"body"', content_type='application/json', content_encoding='utf-8', properties={}
    )
    message['properties']['body_encoding'] = encoding
    channel.basic_publish(message, exchange='', routing_key='q')
    assert channel.basic_get('q').payload == 'body'


# -- connections -----------------------------------------------------------------


def test_a_connection_that_was_released_may_be_used_again(connection: Connection) -> None:
    send(connection, 1, 2)
    receiver = Receiver(connection, prefetch=1)
    drain(connection)
    receiver.messages[0].ack()
    connection.release()
    assert not connection.connected
    connection.connect()
    again = Receiver(connection)
    send(connection, 3)
    drain(connection)
    assert again.bodies == [2, 3]


def test_a_connection_may_be_closed_in_a_callback(connect: Connect) -> None:
    connection, other = connect(), connect()
    send(connection, *range(5))
    seen: list[Any] = []

    def close(message: Any) -> None:
        seen.append(message)
        message.ack()
        connection.close()

    consumer = Consumer(connection.channel(), [Queue('q')], on_message=close)
    consumer.consume()
    connection.drain_events(timeout=5)
    assert [message.payload for message in seen] == [0]
    assert settled(other) == QueueCounts(4, 0, 0, 0)
    assert Receiver(other).channel.basic_get('q').headers['x-delivery-count'] == 1


def test_there_are_no_heartbeats(connection: Connection) -> None:
    assert connection.supports_heartbeats is False
    assert connection.get_heartbeat_interval() in (0, None)
    connection.heartbeat_check()


def test_what_a_connection_says_of_itself(connection: Connection) -> None:
    info = connection.info()
    assert info['transport'] == 'reliable'
    assert connection.as_uri().startswith('reliable+')
    connection.connect()
    copy = connection.clone()
    assert copy.as_uri() == connection.as_uri()
    copy.release()


# -- queues that do not live for ever ----------------------------------------------


def test_an_expired_queue_goes_with_its_bindings_and_messages(connect: Connect) -> None:
    connection, worker = connect(), connect()
    exchange = Exchange('ex', 'direct')
    declare(connection, 'q', exchange, routing_key='q', expires=0.5)
    send(connection, 1)
    declare(connection, 'durable', exchange, routing_key='durable')
    send(connection, 1, queue='durable')
    store = store_of(connection)
    claim_until(worker, lambda: not store.knows('q'), 'end of the queue')
    assert ready(connection, 'q', 'durable') == [0, 1]
    assert store.bindings('ex') == ['["durable", "durable"]']


def test_a_queue_that_is_consumed_does_not_expire_while_its_consumer_is_busy(
    connect: Connect,
) -> None:
    """As under the solo pool: nothing turns while a task runs."""
    connection, worker = connect(), connect()
    queue = declare(connection, 'temporary', Exchange('ex'), routing_key='t', expires=2)
    receiver = consume(connection, 'temporary')
    end = time.monotonic() + 3.5
    claim_until(worker, lambda: time.monotonic() > end, 'end of the pause')
    publish(connection, 1, exchange='ex', routing_key='t')
    drain(connection)
    assert receiver.bodies == [1]
    receiver.messages[0].ack()
    receiver.consumer.cancel()
    claim_until(worker, lambda: not store_of(worker).knows(queue.name), 'end of the queue')


def test_a_consumer_that_was_dropped_counts_no_more(connect: Connect) -> None:
    connection, worker = connect(), connect()
    declare(connection, 't', Exchange('ex'), routing_key='t', expires=0.5)
    consume(connection, 't')
    connection.collect()
    claim_until(worker, lambda: not store_of(worker).knows('t'), 'end of the queue')
    assert not store_of(worker).bindings('ex')


@pytest.mark.parametrize('kind', [{'auto_delete': True}, {'exclusive': True}])
def test_an_auto_delete_queue_goes_with_its_last_consumer(
    connect: Connect, kind: dict[str, bool]
) -> None:
    one, other = connect(), connect(lease=5)  # as two processes are: nothing is shared
    queue = Queue('q', Exchange('ex'), routing_key='q', **kind)
    consumers = []
    for connection in (one, one, other):
        consumers.append(Consumer(connection.channel(), [queue], on_message=lambda _: None))
        consumers[-1].consume()
    for consumer in consumers:
        assert store_of(one).bindings('ex')
        consumer.cancel()
    assert not store_of(one).knows('q')
    assert not store_of(one).bindings('ex')


#: Consumes a queue until it is killed.
CONSUMER = """
import sys
from kombu import Connection, Consumer, Exchange, Queue
connection = Connection(sys.argv[1])
queue = Queue('q', Exchange('ex'), routing_key='q', auto_delete=True, expires=1.0)
consumer = Consumer(connection.channel(), [queue], on_message=lambda message: None)
consumer.consume()
print('consuming', flush=True)
while True:
    connection.drain_events()
"""


def test_a_queue_goes_with_a_consumer_that_is_killed(url: str) -> None:
    connection = Connection(url, transport_options={'lease': 0.5})
    store = store_of(connection)
    with subprocess.Popen(
        [sys.executable, '-c', CONSUMER, url], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b'consuming\n'
            end = time.monotonic() + 3
            claim_until(connection, lambda: time.monotonic() > end, 'end of the pause')
            wait_for(lambda: store.bindings('ex'), 10, 'the binding')
        finally:
            process.kill()
    send(connection, 1)
    claim_until(connection, lambda: not store.bindings('ex'), 'end of the queue')
    claim_until(connection, lambda: ready(connection, 'q') == [0], 'end of its messages')
    connection.release()


def test_an_auto_delete_queue_waits_for_its_first_consumer(connect: Connect) -> None:
    connection, other = connect(), connect()
    declare(connection, 'q', Exchange('ex'), routing_key='q', auto_delete=True)
    send(connection, 1)
    connection.release()
    assert ready(other, 'q') == [1]
    receiver = consume(other, 'q')
    drain(other)
    assert receiver.bodies == [1]


def test_an_exclusive_queue_goes_with_its_connection(connect: Connect) -> None:
    connection, other = connect(), connect()
    declare(connection, 'q', Exchange('ex'), routing_key='q', exclusive=True)
    assert store_of(other).knows('q')
    connection.release()
    assert not store_of(other).knows('q')
    assert not store_of(other).bindings('ex')


def test_a_queue_that_was_deleted_under_its_consumer_is_declared_anew(connect: Connect) -> None:
    connection, other = connect(), connect()
    declare(connection, 'q', Exchange('ex'), routing_key='q', expires=0.6)
    receiver = consume(connection, 'q')
    assert store_of(other).delete('q')
    wait_for(lambda: store_of(other).bindings('ex'), 10, 'the binding')
    publish(other, 1, exchange='ex', routing_key='q')
    drain(connection)
    assert receiver.bodies == [1]


def test_an_expiry_that_makes_no_sense_is_an_error(connection: Connection) -> None:
    channel = connection.channel()
    for value in ('soon', 0, -5):
        with pytest.raises(ChannelError, match='x-expires'):
            channel.queue_declare('q', arguments={'x-expires': value})
    assert not raw(connection).keys('*')


def test_nothing_stays_of_reply_queues(connect: Connect) -> None:
    """As control clients use them, whether they say goodbye or not."""
    connection, worker = connect(), connect()
    exchange = Exchange('reply', 'direct', durable=False)
    for number in range(3):
        queue = Queue(
            f'r{number}', exchange, routing_key=f'{number}', durable=False, exclusive=True,
            auto_delete=True, expires=0.5,
        )  # fmt: skip
        got: list[Any] = []
        consumer = Consumer(connection.channel(), [queue], on_message=got.append, no_ack=True)
        consumer.consume()
        publish(worker, 'reply', exchange='reply', routing_key=f'{number}')
        connection.drain_events(timeout=5)
        assert len(got) == 1
        if number == 2:
            connection.collect()  # died
        else:
            consumer.cancel()
    claim_until(worker, lambda: not store_of(worker).bindings('reply'), 'no bindings')
    with pytest.raises(InconsistencyError):
        publish(worker, 'late', exchange='reply', routing_key='0')
