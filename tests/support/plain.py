"""Short verbs for tests that use the transport as plain kombu does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import redis
from kombu import Connection, Consumer, Queue

from kombu_reliable.keys import Keys
from kombu_reliable.store import Store
from kombu_reliable.types import QueueCounts
from tests.support.wait import wait_for

#: Of the connections that the fixture ``connect`` makes, in seconds.
LEASE = 1.5

Connect = Callable[..., Connection]


def store_of(connection: Connection) -> Store:
    store: Store = connection.transport.endpoint.store
    return store


def raw(connection: Connection) -> redis.Redis:
    return store_of(connection).client


def keys_of(connection: Connection) -> Keys:
    return store_of(connection).keys


def send(connection: Connection, *bodies: Any, queue: str = 'q', **options: Any) -> None:
    with connection.Producer() as producer:
        for body in bodies:
            producer.publish(body, routing_key=queue, **options)


def drain(connection: Connection, timeout: float = 0.15) -> None:
    """Delivers until nothing has come for a while.

    A busy server may need longer than that, but who has an answer to a PING has all that the
    server was asked before; what follows from it (a script to load, a claim) may take three turns.
    """
    quiet = 0
    while quiet < 3:
        try:
            connection.drain_events(timeout=0.01 if quiet else timeout)
            quiet = 0
        except TimeoutError:
            quiet += 1
            with contextlib.suppress(*connection.connection_errors):
                raw(connection).ping()


def turn(connection: Connection) -> None:
    """Lets the poller talk to the server without handing anything out."""
    poller = connection.transport.poller
    poller.turn()
    for line in poller.lines():
        poller.receive(line)


def settled(connection: Connection) -> QueueCounts:
    """The counts of the queue once every settlement is confirmed."""
    keeper = connection.transport.endpoint.keeper

    def confirmed() -> bool:
        turn(connection)
        return not keeper.unsettled

    wait_for(confirmed, 10, 'confirmed settlements')
    return store_of(connection).counts('q')


class Receiver:
    """Consumes a queue and keeps what it gets."""

    def __init__(
        self, connection: Connection, *queues: str | Queue, prefetch: int = 10, no_ack: bool = False
    ) -> None:
        self.channel = connection.channel()
        self.messages: list[Any] = []
        self.consumer = Consumer(
            self.channel, [self._queue(queue) for queue in queues or ('q',)], no_ack=no_ack,
            on_message=self.messages.append, accept=['json', 'text/plain'],
        )  # fmt: skip
        self.consumer.qos(prefetch_count=prefetch)
        self.consumer.consume()

    @staticmethod
    def _queue(queue: str | Queue) -> Queue:
        return Queue(queue) if isinstance(queue, str) else queue

    @property
    def bodies(self) -> list[Any]:
        return [message.payload for message in self.messages]
