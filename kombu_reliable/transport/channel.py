"""The kombu channel: routes, publishes, consumes and settles."""

from __future__ import annotations

import logging
import secrets
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ChannelError, OperationalError
from kombu.transport import virtual
from kombu.utils.scheduling import cycle_by_name

from kombu_reliable import hooks
from kombu_reliable.errors import ConnectionLost
from kombu_reliable.scripts import Call
from kombu_reliable.transport.line import LOST
from kombu_reliable.transport.messages import envelope, open_envelope, outgoing, payload
from kombu_reliable.transport.publisher import Item, PublishBatch, publish
from kombu_reliable.transport.qos import LeaseQoS
from kombu_reliable.transport.queues import QueueChannel
from kombu_reliable.transport.received import Message
from kombu_reliable.transport.routing import Router
from kombu_reliable.transport.unique import only_one
from kombu_reliable.types import Broadcast, Claimed, Delivery

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


class Channel(QueueChannel):
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
    qos: LeaseQoS

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        self.endpoint = connection.endpoint
        self.keeper = self.endpoint.keeper
        self._by_tag: dict[str, Consumer] = {}
        self._by_queue: dict[str, deque[Consumer]] = {}
        self._turns = cycle_by_name(self.endpoint.options.queue_order_strategy)()
        #: False while the consumer has stopped the flow of messages.
        self.flowing = True
        super().__init__(connection, **kwargs)

    def nudge(self) -> None:
        """A place was freed, perhaps by another thread: whoever waits should look."""
        connection = self.connection  # another thread may be closing the channel
        if connection is not None:
            connection.reactor.flush_soon()

    # -- publishing --------------------------------------------------------------

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> str | None:
        """Publishes a message.

        Returns:
            None; or, if it was skipped because another one has its unique key, the id of that.

        Raises:
            DuplicateJob: another one has its unique key, and ``x-on-conflict`` is ``raise``.
            InvalidMessage: its address, priority, eta or delay makes no sense.
            ServerFull: the server has no memory left; nothing was stored.
            Fenced: it is the next run of a job that was taken from its owner.
            InconsistencyError: no queue is bound to the exchange.
            ConnectionLost: the channel is closed, or its connection was dropped; kombu's retry
                goes on with another one.
        """
        if self.connection is None:
            raise ConnectionLost('this channel has no connection any more')
        items = self.prepare(message, exchange, routing_key)
        skipped = None
        if self.endpoint.must_not_wait and any(isinstance(item, Broadcast) for item in items):
            self._broadcast_once(message['properties'], items)
        else:
            skipped = publish(self.store, message['properties'], items)
        if not exchange:
            self.notice(routing_key)
        return skipped

    def notice(self, queue: str) -> None:
        """Something was sent straight to a queue, which nobody need have declared."""
        if queue not in self.connection.lifetimes:
            self.endpoint.notices.add(queue)

    def _broadcast_once(self, properties: dict[str, Any], items: list[Item]) -> None:
        """Celery's heartbeat has kombu try again for ever, in the event loop: no task would run
        until then."""
        if self.endpoint.bereft:
            raise OperationalError(f'{self.endpoint.url} is away')
        try:
            publish(self.store, properties, items)
        except LOST as error:
            raise OperationalError(str(error)) from error

    def prepare(
        self,
        message: Mapping[str, Any],
        exchange: str,
        routing_key: str,
        routers: dict[str, Router] | None = None,
    ) -> list[Item]:
        """What a message becomes: one job per queue, or an entry of an exchange's stream.

        Args:
            message: as kombu prepared it.
            exchange: where it is sent.
            routing_key: by which it is routed.
            routers: by exchange, asked for once for several messages; filled in here.
        """
        if exchange and self.typeof(exchange).type == 'fanout':
            sealed = envelope(message, message['headers'], '', exchange, routing_key)
            return [Broadcast(exchange, routing_key, sealed)]
        options = self.endpoint.options
        items: list[Item] = [
            outgoing(message, queue, exchange, routing_key, options)
            for queue in self._lookup(exchange, routing_key, routers=routers)
        ]
        if len(items) > 1:
            only_one(items)
        return items

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """What ``Producer.batch()`` of kombu 5.7 collects its messages in."""
        return PublishBatch(self, max_size)

    # -- consuming ---------------------------------------------------------------

    @property
    def consumed(self) -> frozenset[str]:
        """The queues that this channel consumes."""
        return frozenset(self._by_queue)

    @property
    def queues(self) -> list[str]:
        """Those of them that hold messages themselves."""
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
    ) -> str:
        """Starts a consumer of ``queue``.

        Returns:
            Its tag; made up if none was given.

        Raises:
            ChannelError: another consumer of this channel has that tag.
        """
        consumer_tag = consumer_tag or f'amq.ctag-{uuid.uuid4()}'
        if consumer_tag in self._by_tag:
            raise ChannelError(
                f'NOT_ALLOWED - the consumer tag {consumer_tag!r} is in use',
                (60, 20), 'Channel.basic_consume', '530',
            )  # fmt: skip
        fanout = self.connection.fanout_bindings.get(queue)
        if queue not in self._by_queue:
            # First what can fail: a consumer that was refused must not be left half there.
            if fanout is None:
                self._attend(queue, self)
                self.endpoint.attendance.leave(queue, self.connection)
            else:
                self.connection.fanout.subscribe(self, queue, fanout)
        consumer = Consumer(consumer_tag, queue, callback, no_ack)
        self._by_tag[consumer_tag] = consumer
        self._by_queue.setdefault(queue, deque()).append(consumer)
        self._consumers.add(consumer_tag)
        self._turns.update(self.queues)
        if fanout is None:
            self.connection.poller.add(self)
        return consumer_tag

    def basic_cancel(self, consumer_tag: str) -> None:
        """Ends a consumer; what it was given and has not started goes back to its place.

        If it was the last one anywhere, its queue may be deleted: see ``auto_delete``.
        """
        consumer = self._by_tag.pop(consumer_tag, None)
        self._consumers.discard(consumer_tag)
        if consumer is None:
            return
        queue = consumer.queue
        others = self._by_queue[queue]
        others.remove(consumer)
        if others:
            return
        del self._by_queue[queue]
        self._turns.update(self.queues)
        if queue in self.connection.fanout_bindings:
            self._unsubscribe(queue)
            return
        for delivery in self.connection.poller.remove(self, queue):
            self.qos.release(delivery.token)
        self._release_unstarted(queue)
        self.connection.poller.flush()
        self.endpoint.attendance.leave(queue, self)

    def flow(self, active: bool = True) -> None:
        """Stops or resumes the flow of messages to the consumers of this channel.

        What was claimed before may still come.
        """
        self.flowing = active
        self.nudge()

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        """Sets how many unsettled messages this channel may hold; 0 for no limit.

        Only the count means anything here, and it is always that of the channel.
        """
        self.qos.prefetch_count = prefetch_count or 0
        self.nudge()

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Settles a message, with ``multiple`` all that were delivered before it as well."""
        if multiple:
            for tag in self.qos.delivered_before(delivery_tag):
                self.qos.ack(tag)
        self.qos.ack(delivery_tag)

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
        token, operations = secrets.token_urlsafe(9), self.store.operations
        calls: list[Call[Any]] = [
            operations.claim('', token, 1, [queue]), operations.attend(queue)
        ]  # fmt: skip
        claimed: Claimed = self.store.run_all(calls)[0]
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
            self.endpoint.attendance.leave_all(self)
            self.connection.close_channel(self)

    def forget(self) -> None:
        """Its connection was dropped: nothing more is said to anybody.

        kombu repeats what it did here on another channel once this one has no connection.
        """
        self.closed = True
        self._by_tag.clear()
        self._by_queue.clear()
        self._consumers.clear()
        self.connection = None  # type: ignore[assignment]
