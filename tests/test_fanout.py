"""Fanout exchanges: what a listener gets after it was away, and what it must not get."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue

from kombu_reliable.transport.age import ServerClock, now
from kombu_reliable.transport.fanout import FanoutReceiver
from tests.support.plain import Connect, drain, keys_of, raw
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for

NEWS = Exchange('news', 'fanout')


class Listener:
    """Listens to the news."""

    def __init__(
        self, connection: Connection, name: str = 'listener', key: str = '', **queue: Any
    ) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.messages: list[Any] = []
        self.queue = Queue(name, NEWS, routing_key=key, **{'auto_delete': True, **queue})
        self.consume()

    def consume(self) -> None:
        self.consumer = Consumer(
            self.channel, [self.queue], on_message=self.messages.append, no_ack=True
        )
        self.consumer.consume()

    def got(self) -> list[Any]:
        """What came since the last look."""
        drain(self.connection)
        bodies = [message.payload for message in self.messages]
        self.messages.clear()
        return bodies


def publish(connection: Connection, *bodies: Any, key: str = '') -> None:
    with connection.Producer(exchange=NEWS) as producer:
        for body in bodies:
            producer.publish(body, routing_key=key)


def receiver(listener: Listener) -> FanoutReceiver:
    found: FanoutReceiver = listener.connection.transport.fanout
    return found


def listeners(connection: Connection) -> int:
    count: int = raw(connection).zcard(keys_of(connection).listeners('news'))
    return count


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(('127.0.0.1', server.port)) as made:
        yield made


@pytest.fixture
def through_proxy(proxy: Proxy, database: int) -> Iterator[Connection]:
    connection = Connection(f'reliable+{proxy.url(database)}', transport_options={'lease': 5})
    yield connection
    connection.release()


@pytest.fixture
def direct(url: str) -> Iterator[Connection]:
    connection = Connection(url, transport_options={'lease': 5})
    yield connection
    connection.release()


# -- connections that are lost -------------------------------------------------------


def test_what_is_published_while_the_connection_is_away_arrives(
    through_proxy: Connection, direct: Connection, proxy: Proxy
) -> None:
    listener = Listener(through_proxy)
    publish(direct, 1)
    assert listener.got() == [1]
    proxy.refuse()
    proxy.cut()
    publish(direct, 2, 3)
    assert listener.got() == []
    proxy.refuse(False)
    got: list[Any] = []
    wait_for(lambda: got.extend(listener.got()) or len(got) >= 2, 15, 'both messages')
    assert got == [2, 3]
    publish(direct, 4)
    assert listener.got() == [4]


def test_a_listener_that_the_server_has_forgotten_is_back_with_its_connection(
    through_proxy: Connection, direct: Connection, proxy: Proxy
) -> None:
    """The server was restarted without its data."""
    listener = Listener(through_proxy)
    assert listener.got() == []
    raw(direct).flushdb()
    proxy.cut()
    wait_for(lambda: listener.got() or listeners(direct), 15, 'the listener')
    publish(direct, 1)
    assert listener.got() == [1]


def test_a_stream_that_began_anew_on_a_server_whose_clock_is_behind(
    through_proxy: Connection, direct: Connection, proxy: Proxy
) -> None:
    listener = Listener(through_proxy)
    publish(direct, 1)
    assert listener.got() == [1]
    stream = keys_of(direct).fanout('news')
    [(last, fields)] = raw(direct).xrange(stream)
    raw(direct).delete(stream)
    earlier = int(last.decode().partition('-')[0]) - 2000
    raw(direct).xadd(stream, fields, id=f'{earlier}-0')
    proxy.cut()
    got: list[Any] = []
    wait_for(lambda: got.extend(listener.got()) or got, 15, 'the message')
    assert got == [1]


# -- what is too old ---------------------------------------------------------------------


def test_who_was_busy_for_too_long_gets_only_what_is_fresh(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection, other = connect(fanout_replay=4), connect()
    listener = Listener(connection)
    assert listener.got() == []  # a read is under way, and its answer will wait in the socket
    publish(other, 'old', 'old too')
    time.sleep(4.1)
    publish(other, 'fresh')
    with caplog.at_level(logging.WARNING):
        assert listener.got() == ['fresh']
        publish(other, 'more')
        assert listener.got() == ['more']
    said = [one.message for one in caplog.records if 'skipped' in one.message]
    assert all("'news'" in message for message in said)
    # Mostly in one go; on a busy machine one may come later than the other.
    assert sum(int(message.partition('(fanout_replay): ')[2]) for message in said) == 2


def test_what_grows_too_old_between_reading_and_handing_out(connect: Connect) -> None:
    connection, other = connect(fanout_replay=4), connect()
    listener = Listener(connection)
    assert listener.got() == []
    listener.consumer.flow(False)
    publish(other, 'old')
    assert listener.got() == []
    time.sleep(4.1)
    publish(other, 'fresh')
    assert listener.got() == []
    listener.consumer.flow(True)
    assert listener.got() == ['fresh']


def test_age_is_told_by_the_clock_of_the_server(connect: Connect) -> None:
    connection = connect()
    listener = Listener(connection)
    publish(connection, 'now')
    stream = keys_of(connection).fanout('news')
    [(_, fields)] = raw(connection).xrange(stream)
    raw(connection).delete(stream)
    hour_ago = round((time.time() - 3600) * 1000)
    raw(connection).xadd(stream, fields, id=f'{hour_ago}-0')
    assert listener.got() == []
    publish(connection, 'fresh')
    assert listener.got() == ['fresh']


@pytest.mark.parametrize('error', [3600.0, -3600.0])
def test_a_clock_of_the_server_that_was_set_is_asked_again(connect: Connect, error: float) -> None:
    """It was set back or forth since we asked: what is fresh must not be taken for old."""
    connection = connect()
    listener = Listener(connection)
    assert listener.got() == []
    clock = receiver(listener)._clock
    assert clock._ahead is not None
    clock._ahead += error
    publish(connection, 'fresh')
    assert listener.got() == ['fresh']


def test_an_answer_that_came_late_is_not_believed() -> None:
    """The process may have been stopped while the answer waited: what is old would seem fresh."""
    clock = ServerClock()
    told = [1_000_000, 0]
    for _ in range(clock.TRIES - 1):
        request = clock.question()
        clock._learn(now() - 10, told)
        assert not clock.known
    request.accept(told)
    assert clock.known
    assert clock.age(999_000) == pytest.approx(1000, abs=5)
    clock.forget()
    assert clock.age(999_000) is None


def test_on_a_slow_line_the_last_answer_counts_and_ages_rather_too_much() -> None:
    clock = ServerClock()
    for _ in range(clock.TRIES):
        clock._learn(now() - 10, [1_000_000, 0])
    age = clock.age(999_000)
    assert age == pytest.approx(1010, abs=5)


# -- falling behind ------------------------------------------------------------------------


def test_who_falls_behind_a_full_stream_is_told(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection, other = connect(fanout_maxlen=200), connect(fanout_maxlen=200)
    listener = Listener(connection)
    publish(other, 'first')
    assert listener.got() == ['first']
    publish(other, *range(1000))
    with caplog.at_level(logging.WARNING):
        got = listener.got()
    assert got[-1] == 999
    assert 200 <= len(got) < 1000
    [record] = [one for one in caplog.records if 'fell behind' in one.message]
    assert "'news'" in record.message


def test_who_catches_up_in_time_is_told_nothing(
    connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    connection = connect()
    listener = Listener(connection)
    publish(connection, *range(350))
    with caplog.at_level(logging.WARNING):
        assert listener.got() == list(range(350))
    assert not caplog.records


# -- who listens ---------------------------------------------------------------------------


@pytest.mark.parametrize('declares', [True, False])
def test_a_consumer_that_comes_back_gets_nothing_twice(connect: Connect, declares: bool) -> None:
    connection, other = connect(), connect()
    listener = Listener(connection)
    publish(other, 1)
    assert listener.got() == [1]
    listener.consumer.cancel()
    assert not listeners(connection)
    publish(other, 'nobody listens')
    if declares:
        listener.consume()
    else:
        listener.consumer.consume()
    publish(other, 2)
    assert listener.got() == [2]


def test_a_queue_that_lives_on_gets_what_came_meanwhile(connect: Connect) -> None:
    connection, other = connect(), connect()
    listener = Listener(connection, auto_delete=False)
    publish(other, 1)
    assert listener.got() == [1]
    listener.consumer.cancel()
    publish(other, 2)
    listener.consume()
    publish(other, 3)
    assert listener.got() == [2, 3]
    connection.release()
    assert not listeners(other)


def test_what_comes_between_binding_and_consuming_arrives(connect: Connect) -> None:
    connection, other = connect(), connect()
    Queue('listener', NEWS, auto_delete=True)(connection.channel()).declare()
    publish(other, 1)
    listener = Listener(connection)
    assert listener.got() == [1]


def test_two_listeners_of_one_name_do_not_end_each_other(connect: Connect) -> None:
    one, other, third = connect(), connect(), connect()
    listener = Listener(one)
    twin = Listener(other)
    publish(third, 1)
    assert (listener.got(), twin.got()) == ([1], [1])
    twin.consumer.cancel()
    publish(third, 2)
    assert listener.got() == [2]


def test_a_binding_key_filters_as_in_a_topic(connect: Connect) -> None:
    connection = connect()
    everything = Listener(connection, 'all', key='#')
    some = Listener(connection, 'some', key='worker.#')
    publish(connection, 1, key='worker.online')
    publish(connection, 2, key='task.sent')
    assert everything.got() == [1, 2]
    assert [message.payload for message in some.messages] == [1]


def test_a_listener_leaves_nothing_behind(connect: Connect) -> None:
    connection, other = connect(), connect()
    listener = Listener(connection, expires=10, exclusive=True)
    assert listener.got() == []
    connection.release()
    names = {key for key in raw(other).keys('*') if key != keys_of(other).alarms.encode()}
    assert names <= {keys_of(other).meta.encode()}
