"""Programs on plain kombu: its mixins, pools and retries, with threads and with greenlets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.mixins import ConsumerMixin, ConsumerProducerMixin
from kombu.pools import connections, producers, reset

from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for

ROOT = Path(__file__).parents[2]

QUEUE = Queue('q', Exchange('e'), routing_key='r')


def test_a_consumer_mixin(url: str) -> None:
    class Program(ConsumerMixin):
        def __init__(self, connection: Connection) -> None:
            self.connection = connection
            self.seen: list[Any] = []

        def get_consumers(self, consumer_class: Any, channel: Any) -> list[Consumer]:
            return [consumer_class([QUEUE], callbacks=[self.on_task])]

        def on_task(self, body: Any, message: Any) -> None:
            self.seen.append(body)
            message.ack()
            self.should_stop = len(self.seen) == 3

    with Connection(url) as connection:
        producer = Producer(connection)
        for body in range(3):
            producer.publish(body, exchange=QUEUE.exchange, routing_key='r', declare=[QUEUE])
        program = Program(connection)
        program.run()
        assert program.seen == [0, 1, 2]
        assert QUEUE(connection.default_channel).queue_declare(passive=True).message_count == 0


def test_a_program_that_consumes_and_answers(url: str) -> None:
    class Program(ConsumerProducerMixin):
        def __init__(self, connection: Connection) -> None:
            self.connection = connection

        def get_consumers(self, consumer_class: Any, channel: Any) -> list[Consumer]:
            return [consumer_class([QUEUE], on_message=self.on_request, prefetch_count=1)]

        def on_request(self, message: Any) -> None:
            self.producer.publish(
                message.payload + 1,
                routing_key=message.properties['reply_to'],
                correlation_id=message.properties['correlation_id'],
                retry=True,
            )
            message.ack()
            self.should_stop = True

    with Connection(url) as connection:
        replies = Queue('replies')
        Producer(connection).publish(
            41, exchange=QUEUE.exchange, routing_key='r', declare=[QUEUE, replies],
            reply_to='replies', correlation_id='c',
        )  # fmt: skip
        program = Program(connection.clone())
        program.run()
        answers = []
        with Consumer(connection, [replies], on_message=answers.append, no_ack=True):
            connection.drain_events(timeout=5)
        [answer] = answers
        assert (answer.payload, answer.properties['correlation_id']) == (42, 'c')


def test_pools_of_connections_and_producers(url: str) -> None:
    try:
        with producers[Connection(url)].acquire(block=True) as producer:
            for body in 'ab':
                producer.publish(body, routing_key='simple')
        with (
            connections[Connection(url)].acquire(block=True) as connection,
            connection.SimpleQueue('simple') as queue,
        ):
            assert len(queue) == 2
            for body in 'ab':
                message = queue.get(timeout=5)
                assert message.payload == body
                message.ack()
            with pytest.raises(queue.Empty):
                queue.get(timeout=0.1)
    finally:
        reset()


def test_a_publish_is_repeated_when_its_reply_is_lost(server: Server, database: int) -> None:
    with (
        Proxy(('127.0.0.1', server.port)) as proxy,
        Connection(f'reliable+{proxy.url(database)}') as connection,
    ):
        producer = connection.Producer()
        producer.publish('first', routing_key='q')
        complaints: list[Any] = []
        proxy.drop_reply()
        producer.publish(
            'second', routing_key='q', retry=True,
            retry_policy={'errback': lambda error, pause: complaints.append(error)},
        )  # fmt: skip
        assert complaints
        with connection.channel() as channel:
            bodies = [channel.basic_get('q', no_ack=True).payload for _ in range(2)]
            assert bodies == ['first', 'second']
            assert channel.basic_get('q') is None
            wait_for(lambda: not channel.keeper.unsettled, 10, 'both are settled')


GREEN = """
import sys
if sys.argv[1] == 'gevent':
    from gevent import monkey
    monkey.patch_all()
else:
    import eventlet
    eventlet.monkey_patch()
import threading, time
from kombu import Connection, Consumer, Queue
import kombu_reliable

done, arrived = [], []

def work(message):
    arrived.append(time.monotonic())
    def run():
        time.sleep(0.01)
        done.append(message.payload)
        message.ack()
    threading.Thread(target=run).start()

def drain_until(condition, pause):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        try:
            connection.drain_events(timeout=pause)
        except TimeoutError:
            pass

with Connection(sys.argv[2], transport_options={'lease': 30}) as connection:
    producer = connection.clone().Producer()
    with Consumer(connection.channel(), [Queue('q')], on_message=work) as consumer:
        consumer.qos(prefetch_count=2)
        for body in range(20):
            producer.publish(body, routing_key='q')
        began = time.monotonic()
        drain_until(lambda: len(done) == 20, 1)
        # A consumer that nobody wakes would need a second for every two.
        assert time.monotonic() - began < 8, 'acks did not wake the consumer'

        published = []
        def publish():
            time.sleep(0.5)
            published.append(time.monotonic())
            producer.publish('awaited', routing_key='q')
        threading.Thread(target=publish).start()
        drain_until(lambda: len(arrived) == 21, 20)
        assert arrived[-1] - published[0] < 8, 'a publish did not wake the consumer'

        due = time.monotonic() + 0.5
        producer.publish('late', routing_key='q', headers={'x-delay': 500})
        drain_until(lambda: len(arrived) == 22, 20)
        assert -0.05 < arrived[-1] - due < 8, 'a delayed message was late'
"""


@pytest.mark.parametrize('library', ['gevent', 'eventlet'])
def test_greenlets(url: str, library: str) -> None:
    done = subprocess.run(
        [sys.executable, '-c', GREEN, library, url],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
