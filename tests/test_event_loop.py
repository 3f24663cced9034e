"""The transport inside kombu's event loop, and what happens at the edges of a process."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Queue
from kombu.asynchronous.hub import Hub

from kombu_reliable.store import Operations
from kombu_reliable.transport.poller import Poller
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for

ROOT = Path(__file__).parents[1]


class Loop:
    """A hub with a consumer, as Celery's worker has it."""

    def __init__(self, url: str, **options: Any) -> None:
        self.hub = Hub()
        self.connection = Connection(url, transport_options={'lease': 3, **options})
        transport = self.connection.transport
        transport.register_with_event_loop(self.connection.connection, self.hub)
        self.channel = self.connection.channel()
        self.arrived: list[tuple[float, Any]] = []
        self.consumer = Consumer(
            self.channel, [Queue('q')], on_message=self._on_message, accept=['json', 'text/plain']
        )
        self.consumer.qos(prefetch_count=4)
        self.consumer.consume()

    def _on_message(self, message: Any) -> None:
        self.arrived.append((time.time(), message.payload))
        message.ack()

    def run_until(self, condition: Callable[[], bool], timeout: float = 10.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, 'the loop did not get there'
            self.hub.run_once()

    def close(self) -> None:
        self.connection.release()
        self.hub.close()


@pytest.fixture
def loop(url: str) -> Iterator[Loop]:
    made = Loop(url)
    yield made
    made.close()


def publish(url: str, *bodies: Any, **options: Any) -> None:
    with Connection(url) as connection, connection.Producer() as producer:
        for body in bodies:
            producer.publish(body, routing_key='q', **options)


def idle(loop: Loop) -> bool:
    """Whether the loop waits for a wake marker."""
    return bool(loop.connection.transport.poller._bell.rings_for)


def turns_of(loop: Loop, seconds: float) -> int:
    """Counts the turns of a loop; one that spins makes thousands."""
    turns = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        loop.hub.run_once()
        turns += 1
    return turns


def test_messages_arrive_and_wake_a_sleeping_loop(loop: Loop, url: str) -> None:
    loop.run_until(lambda: idle(loop))
    publish(url, 'a', 'b', 'c')
    loop.run_until(lambda: len(loop.arrived) == 3)
    assert [body for _, body in loop.arrived] == ['a', 'b', 'c']


def test_a_due_time_beyond_other_timers_of_the_loop_is_kept(loop: Loop, url: str) -> None:
    """Celery's heartbeat is a timer as well; the loop would sleep that long."""
    loop.hub.call_repeatedly(8.0, lambda: None)
    loop.run_until(lambda: idle(loop))
    for delay in (1.3, 0.4):
        due = time.time() + delay
        publish(url, delay, headers={'x-delay': delay * 1000})
        loop.run_until(lambda: bool(loop.arrived), 40)
        at, body = loop.arrived.pop()
        assert body == delay
        assert -0.01 <= at - due < 5


def test_an_idle_loop_rests(loop: Loop) -> None:
    loop.run_until(lambda: idle(loop))
    assert turns_of(loop, 1.5) < 50


def test_a_lost_connection_leaves_nothing_in_the_loop_even_after_a_fork(
    server: Server, database: int
) -> None:
    """A forked child holds copies of the sockets, as a pool process does: whoever closes first
    and unregisters later can never unregister, and the loop would spin."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        url = f'reliable+{proxy.url(database)}'
        loop = Loop(url)
        loop.run_until(lambda: idle(loop))
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
            os._exit(0)
        try:
            proxy.cut()
            loop.run_until(lambda: not idle(loop))
            loop.run_until(lambda: idle(loop))
            assert turns_of(loop, 1.0) < 50
            publish(f'reliable+{server.url(database)}', 'after')
            loop.run_until(lambda: bool(loop.arrived))
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            loop.close()


def test_a_closed_line_never_takes_away_somebody_elses_reader(
    server: Server, database: int
) -> None:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        loop = Loop(f'reliable+{proxy.url(database)}')
        loop.run_until(lambda: idle(loop))
        poller = loop.connection.transport.poller
        numbers = [line.fileno() for line in poller.lines()]
        poller._lose(ConnectionError('for the test'))
        # Descriptors of the same numbers, registered by others in the same turn.
        pairs = [socket.socketpair() for _ in range(4)]
        ends = [end for pair in pairs for end in pair]
        reused = [end for end in ends if end.fileno() in numbers]
        assert reused
        for end in reused:
            loop.hub.add_reader(end, lambda: None)
        loop.run_until(lambda: idle(loop))
        assert all(end.fileno() in loop.hub.readers for end in reused)
        for end in reused:
            loop.hub.remove(end)
        for end in ends:
            end.close()
        loop.close()


def fill_inbox(poller: Poller) -> None:
    """Claims, and hands nothing out."""
    poller.turn()

    def received() -> bool:
        for line in poller.lines():
            poller.receive(line)
        return poller.has_messages()

    wait_for(received, 10, 'messages in the inbox')


def test_collect_gives_back_what_was_not_handed_out(loop: Loop, url: str) -> None:
    """Celery collects a connection after an error; nobody would ever settle the inbox."""
    publish(url, *range(4))
    transport = loop.connection.transport
    fill_inbox(transport.poller)
    loop.connection.collect()
    other = Loop(url)
    other.run_until(lambda: len(other.arrived) == 4)
    assert sorted(body for _, body in other.arrived) == [0, 1, 2, 3]
    other.close()


def test_what_was_lost_in_the_inbox_is_not_run(
    loop: Loop, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was frozen over its lease finds in its inbox what others run by now."""
    publish(url, 'x')
    transport = loop.connection.transport
    store, keeper = transport.endpoint.store, transport.endpoint.keeper
    monkeypatch.setattr(keeper, '_renew_if_due', lambda: None)  # it is frozen
    fill_inbox(transport.poller)
    future = Operations(store.keys, store.operations.options, now=int(time.time() * 1000))
    # Time passes for somebody who is heard of all the while, so that no claim finds silence.
    for _ in range(3):
        store.run(future.renew([]))
        future.now += 1200
    taken = store.run(future.claim('', 'thief', 1, ['q']))
    assert [delivery.deliveries for delivery in taken.deliveries] == [2]
    keeper.renew()
    transport.poller.hand_out_one()
    assert loop.arrived == []
    loop.run_until(lambda: not keeper.unsettled)
    assert store.counts('q').leased == 1, 'the thief still has it'


def test_settlements_under_way_survive_the_end_of_the_process(url: str, server: Server) -> None:
    """The keeper has taken the ack and is still connecting when the main thread ends."""
    code = """
import sys, time, kombu_reliable, kombu
connection = kombu.Connection(sys.argv[1])
connection.Producer().publish(1, routing_key='q')
channel = connection.channel()
keeper = channel.keeper
open_store = keeper._open_store
def slowly():
    time.sleep(0.3)
    return open_store()
keeper._open_store = slowly
channel.basic_get('q').ack()
while keeper._outbox:
    time.sleep(0.001)
"""
    subprocess.run([sys.executable, '-c', code, url], check=True, timeout=30, cwd=ROOT)
    number = int(url.rpartition('/')[2])
    with server.client(db=number) as client:
        assert not client.exists(f'{{kr:{number}:0}}:own')


# -- without a loop --------------------------------------------------------------


def test_acks_of_other_threads_wake_a_full_consumer(url: str) -> None:
    publish(url, *range(60))
    done: list[Any] = []
    with Connection(url, transport_options={'lease': 30}) as connection:

        def work(message: Any) -> None:
            def run() -> None:
                time.sleep(0.01)
                done.append(message.payload)
                message.ack()

            threading.Thread(target=run).start()

        with Consumer(connection.channel(), [Queue('q')], on_message=work) as consumer:
            consumer.qos(prefetch_count=2)
            began = time.monotonic()
            while len(done) < 60:
                assert time.monotonic() - began < 60
                try:
                    connection.drain_events(timeout=1)
                except TimeoutError:
                    continue
            # A consumer that nobody wakes would need a second for every two.
            assert time.monotonic() - began < 15


def test_whoever_is_busy_is_not_the_one_to_be_woken(url: str) -> None:
    with (
        Connection(url, transport_options={'lease': 30}) as busy,
        Connection(url, transport_options={'lease': 30}) as free,
    ):
        got: list[Any] = []

        def block(message: Any) -> None:
            publish(url, 'second')
            with Consumer(free.channel(), [Queue('q')], on_message=got.append):
                free.drain_events(timeout=20)

        with Consumer(busy.channel(), [Queue('q')], on_message=block):
            publish(url, 'first', headers={'x-delay': 200})
            busy.drain_events(timeout=5)
        assert [message.payload for message in got] == ['second']


def test_a_timeout_of_zero_takes_what_is_there(url: str) -> None:
    publish(url, 'x')
    with Connection(url, transport_options={'lease': 30}) as connection:
        got: list[Any] = []
        with Consumer(connection.channel(), [Queue('q')], on_message=got.append):

            def poll() -> list[Any]:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0)
                return got

            wait_for(poll, 20, 'the message')


def test_a_dropped_message_frees_its_place(url: str) -> None:
    publish(url, *range(4))
    with Connection(url, transport_options={'lease': 0.6}) as connection:
        seen: list[Any] = []
        with Consumer(
            connection.channel(), [Queue('q')], on_message=lambda m: seen.append(m.payload)
        ) as consumer:
            consumer.qos(prefetch_count=2)
            deadline = time.monotonic() + 15
            while set(seen) != {0, 1, 2, 3} and time.monotonic() < deadline:
                try:
                    connection.drain_events(timeout=0.2)
                except TimeoutError:
                    continue
            # A place that a dropped message keeps would end this after two.
            assert set(seen) == {0, 1, 2, 3}


def test_the_keeper_outlives_a_settlement_that_fails(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(url, 'held')
    with (
        Connection(url, transport_options={'lease': 0.6}) as connection,
        connection.channel() as channel,
    ):
        message = channel.basic_get('q')
        keeper = channel.keeper
        renew, renewed = keeper.renew, Counter[str]()

        def fail() -> None:
            raise RuntimeError('for the test')

        def count() -> None:
            renew()
            renewed.update(['renewed'])

        monkeypatch.setattr(keeper, 'flush', fail)
        monkeypatch.setattr(keeper, 'renew', count)
        wait_for(lambda: renewed['renewed'] >= 3, 20, 'three renewals')
        assert not message.lost
        monkeypatch.undo()
        message.ack()
        wait_for(lambda: not keeper.unsettled, 10, 'the settlement')


def test_a_server_that_comes_back_is_used_again_without_an_error() -> None:
    with Server(appendfsync='always') as server:
        url = f'reliable+{server.url()}'
        loop = Loop(url)
        loop.run_until(lambda: idle(loop))
        server.kill()
        loop.run_until(lambda: not idle(loop))
        server.restart()
        publish(url, 'back')
        loop.run_until(lambda: bool(loop.arrived), timeout=20)
        loop.close()
