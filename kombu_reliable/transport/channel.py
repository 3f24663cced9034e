"""The kombu channel: routes, publishes, consumes and settles."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.exceptions import InconsistencyError, OperationalError
from kombu.transport import virtual
from kombu.utils.scheduling import cycle_by_name

from kombu_reliable import hooks
from kombu_reliable.errors import InvalidMessage
from kombu_reliable.store import Store
from kombu_reliable.transport.line import LOST
from kombu_reliable.transport.messages import envelope, open_envelope, outgoing, payload
from kombu_reliable.transport.publisher import Item, PublishBatch, publish
from kombu_reliable.transport.qos import LeaseQoS
from kombu_reliable.transport.received import Message
from kombu_reliable.types import Broadcast, Delivery

if TYPE_CHECKING:
    from kombu_reliable.transport.transport import Transport

__all__ = ('Channel',)

logger = logging.getLogger('kombu_reliable')


@dataclass(frozen=True, slots=True)
class Consumer:
    """Somebody who consumes a queue."""

    tag: str
    queue: str
    callback: Callable[[Any], Any]
    no_ack: bool


class Channel(virtual.Channel):
    """A channel over leased delivery."""

    Message = Message
    QoS = LeaseQoS
    supports_fanout = True
    #: Bodies travel as the bytes that they are.
    body_encoding = None
    from_transport_options = ()
    max_priority = 255
    #: kombu would restore by itself what our close gives back.
    do_restore = False

    closed: bool
    connection: Transport
    qos: LeaseQoS

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        self.endpoint = connection.endpoint
        self.keeper = self.endpoint.keeper
        self._by_tag: dict[str, Consumer] = {}
        self._by_queue: dict[str, deque[Consumer]] = {}
        self._turns = cycle_by_name(self.endpoint.options.queue_order_strategy)()
        super().__init__(connection, **kwargs)

    @property
    def store(self) -> Store:
        return self.endpoint.store

    def nudge(self) -> None:
        """A place was freed, perhaps by another thread: whoever waits should look."""
        connection = self.connection  # another thread may be closing the channel
        if connection is not None:
            connection.reactor.flush_soon()

    # -- publishing --------------------------------------------------------------

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        """Publishes a message.

        Raises:
            InvalidMessage: its address, priority, eta or delay makes no sense.
            ServerFull: the server has no memory left; nothing was stored.
            Fenced: it is the next run of a job that was taken from its owner.
            InconsistencyError: no queue is bound to the exchange.
        """
        items = self.prepare(message, exchange, routing_key)
        if self.endpoint.must_not_wait and any(isinstance(item, Broadcast) for item in items):
            self._broadcast_once(message['properties'], items)
        else:
            publish(self.store, message['properties'], items)

    def _broadcast_once(self, properties: dict[str, Any], items: list[Item]) -> None:
        """Celery's heartbeat has kombu try again for ever, in the event loop: no task would run
        until then."""
        if self.endpoint.bereft:
            raise OperationalError(f'{self.endpoint.url} is away')
        try:
            publish(self.store, properties, items)
        except LOST as error:
            raise OperationalError(str(error)) from error

    def prepare(self, message: Mapping[str, Any], exchange: str, routing_key: str) -> list[Item]:
        """What a message becomes: one job per queue, or an entry of an exchange's stream."""
        if exchange and self.typeof(exchange).type == 'fanout':
            sealed = envelope(message, message['headers'], '', exchange, routing_key)
            return [Broadcast(exchange, routing_key, sealed)]
        options = self.endpoint.options
        return [
            outgoing(message, queue, exchange, routing_key, options)
            for queue in self._route(exchange, routing_key)
        ]

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """What ``Producer.batch()`` of kombu 5.7 collects its messages in."""
        return PublishBatch(self, max_size)

    def _route(self, exchange: str, routing_key: str) -> list[str]:
        if not exchange and not routing_key:
            raise InvalidMessage('the message names neither an exchange nor a queue')
        return sorted(queue for queue in self._lookup(exchange, routing_key) if queue)

    # -- consuming ---------------------------------------------------------------

    @property
    def queues(self) -> list[str]:
        """The queues that this channel consumes and that hold messages themselves."""
        fanout = self.connection.fanout_bindings
        return [queue for queue in self._by_queue if queue not in fanout]

    def queue_order(self) -> list[str]:
        """The queues in the order in which this claim asks them."""
        order: list[str] = list(self._turns.consume(len(self._turns.items)))
        if order:
            self._turns.rotate(order[0])
        return order

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[Any], Any],
        consumer_tag: str,
        **kwargs: Any,
    ) -> None:
        """Starts a consumer of ``queue``."""
        consumer = Consumer(consumer_tag, queue, callback, no_ack)
        self._by_tag[consumer_tag] = consumer
        self._by_queue.setdefault(queue, deque()).append(consumer)
        self._consumers.add(consumer_tag)
        self._turns.update(self.queues)
        fanout = self.connection.fanout_bindings.get(queue)
        if fanout is None:
            self.connection.poller.add(self)
        else:
            self.connection.fanout.subscribe(self, queue, *fanout)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Ends a consumer; what it was given and has not started goes back to its place."""
        consumer = self._by_tag.pop(consumer_tag, None)
        self._consumers.discard(consumer_tag)
        if consumer is None:
            return
        others = self._by_queue[consumer.queue]
        others.remove(consumer)
        if others:
            return
        del self._by_queue[consumer.queue]
        self._turns.update(self.queues)
        if consumer.queue in self.connection.fanout_bindings:
            self._stop_listening(consumer.queue)
            return
        for delivery in self.connection.poller.remove(self, consumer.queue):
            self.qos.release(delivery.token)
        self._release_unstarted(consumer.queue)
        self.connection.poller.flush()

    def _release_unstarted(self, queue: str | None = None) -> None:
        tags = self.qos.unbegun
        if queue is not None:
            tags = frozenset(tag for tag in tags if self.keeper.queue_of(tag) == queue)
        for tag in tags - hooks.started(tags):
            self.qos.release(tag)

    def _next_consumer(self, queue: str) -> Consumer | None:
        """The consumers of a queue take turns."""
        consumers = self._by_queue.get(queue)
        if not consumers or self.closed:
            return None
        consumers.rotate(-1)
        return consumers[-1]

    def deliver(self, delivery: Delivery) -> None:
        """Hands a claimed message to a consumer of its queue."""
        consumer = self._next_consumer(delivery.queue)
        if consumer is None or self.keeper.lost(delivery.token):
            # Released, or fenced if somebody else has it by now: then he runs it, not we.
            self.qos.release(delivery.token)
            return
        message = self._open(delivery)
        if message is None:
            return
        if consumer.no_ack:
            self.qos.ack(delivery.token)
        try:
            consumer.callback(message)
        finally:
            self.qos.handed_out(delivery.token)

    def _open(self, delivery: Delivery) -> virtual.Message | None:
        """Makes the message; what cannot be read goes to the dead letters."""
        try:
            message = self.Message(payload(delivery), channel=self)
        except Exception as error:
            # Foreign data can upset any step.
            logger.error(
                'message %s in queue %r cannot be read and becomes a dead letter: %s',
                delivery.id, delivery.queue, error,
            )  # fmt: skip
            self.qos.fail(delivery.token, 'corrupt')
            return None
        self.keeper.attach(delivery.token, message)
        return message

    def deliver_fanout(self, queue: str, exchange: str, routing_key: str, sealed: bytes) -> None:
        """Hands a fanout message to a consumer.  It has no lease: settling it does nothing."""
        consumer = self._next_consumer(queue)
        if consumer is None:
            return
        try:
            raw = open_envelope(sealed, queue, str(uuid.uuid4()), 1)
            raw['properties']['delivery_info'] |= {'exchange': exchange, 'routing_key': routing_key}
            message = self.Message(raw, channel=self)
        except Exception as error:
            logger.error('message in exchange %r cannot be read: %s', exchange, error)
            return
        consumer.callback(message)

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Takes one message, or None."""
        token = secrets.token_urlsafe(9)
        claimed = self.store.run(self.store.operations.claim('', token, 1, [queue]))
        self.keeper.hold(claimed.deliveries)
        for delivery in claimed.deliveries:
            self.qos.reserve(delivery.token)
            message = self._open(delivery)
            self.qos.handed_out(delivery.token)
            if message is not None and no_ack:
                self.qos.ack(delivery.token)
            return message
        return None

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        self.connection.reactor.drain(timeout)

    # -- queues, exchanges, bindings ---------------------------------------------

    def _size(self, queue: str) -> int:
        if queue in self.connection.fanout_bindings:
            return 0
        counts = self.store.counts(queue)
        return counts.ready + counts.delayed

    def _purge(self, queue: str) -> int:
        return self.store.purge(queue)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Deletes what waits in a queue and its bindings."""
        if if_empty and self._size(queue):
            return
        fanout = self.connection.fanout_bindings.get(queue)
        if fanout is None:
            for exchange, routing_key, _ in self.state.queue_bindings(queue):
                self.store.unbind(exchange, _binding(routing_key, queue))
            self.store.purge(queue)
        else:
            self._stop_listening(queue)
            self.connection.fanout_bindings.pop(queue, None)
        self.state.queue_bindings_delete(queue)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        if self.typeof(exchange).type == 'fanout':
            since = self.store.run(self.store.operations.listen(exchange, queue))
            self.connection.fanout_bindings[queue] = (exchange, routing_key, since)
        else:
            self.store.bind(exchange, _binding(routing_key, queue))

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = '',
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        """Removes a binding."""
        exchange = exchange or 'amq.direct'
        self.state.binding_delete(queue, exchange, routing_key)
        if queue in self.connection.fanout_bindings:
            self._stop_listening(queue)
        else:
            self.store.unbind(exchange, _binding(routing_key, queue))

    def _stop_listening(self, queue: str) -> None:
        self.connection.fanout.unsubscribe(self, queue)
        exchange = self.connection.fanout_bindings[queue][0]
        with contextlib.suppress(*LOST):  # the entry ends by itself
            self.store.stop_listening(exchange, queue)

    def get_table(self, exchange: str) -> list[tuple[str, str | None, str]]:
        """The bindings of an exchange, as all processes have made them.

        Raises:
            InconsistencyError: there are none; a message would be lost.
        """
        bindings = self.store.bindings(exchange)
        if not bindings:
            raise InconsistencyError(
                f'cannot route to exchange {exchange!r}: no queue is bound to it'
            )
        kind = self.typeof(exchange)
        return [
            kind.prepare_bind(queue, exchange, routing_key, None)
            for routing_key, queue in map(json.loads, bindings)
        ]

    # -- end ---------------------------------------------------------------------

    def close(self) -> None:
        """Cancels the consumers and gives back what has not been started.

        What has started stays leased: its settlement outlives the channel.
        """
        if self.closed:
            return
        try:
            for tag in list(self._by_tag):
                self.basic_cancel(tag)
            self._release_unstarted()
            self.connection.poller.flush()
        finally:
            self.closed = True
            self.connection.close_channel(self)


def _binding(routing_key: str, queue: str) -> str:
    return json.dumps([routing_key, queue])
