"""Queues, exchanges and bindings of a channel: declaring, binding, purging, deleting."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ChannelError, InconsistencyError
from kombu.transport import virtual
from kombu.transport.base import to_rabbitmq_queue_arguments
from kombu.transport.virtual.base import queue_declare_ok_t
from kombu.transport.virtual.exchange import ExchangeType
from kombu.utils.uuid import uuid

from kombu_reliable.errors import InvalidMessage
from kombu_reliable.scripts import Call
from kombu_reliable.store import Store
from kombu_reliable.store.operations import Operations
from kombu_reliable.transport.endpoint import Endpoint
from kombu_reliable.transport.fanout import FanoutBinding
from kombu_reliable.transport.line import LOST
from kombu_reliable.transport.routing import Binding, Router

if TYPE_CHECKING:
    from kombu_reliable.transport.transport import Transport

__all__ = ('Lifetime', 'QueueChannel')

#: Exchanges that AMQP knows without a declaration.
PREDECLARED = {'amq.direct': 'direct', 'amq.topic': 'topic', 'amq.fanout': 'fanout'}


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a queue lives.

    Args:
        unused_for: milliseconds for which it may stay unused; 0: no limit.
        auto_delete: it goes with its last consumer.
    """

    unused_for: int = 0
    auto_delete: bool = False

    @property
    def limited(self) -> bool:
        return bool(self.unused_for or self.auto_delete)

    def declare(self, operations: Operations, queue: str) -> Call[int]:
        return operations.declare(queue, self.unused_for, self.auto_delete)


def _unused_for(queue: str, arguments: Mapping[str, Any] | None) -> int:
    value = (arguments or {}).get('x-expires')
    if value is None:
        return 0
    try:
        milliseconds = int(value)
    except (TypeError, ValueError, OverflowError):
        milliseconds = 0
    if milliseconds <= 0:
        raise ChannelError(
            f'PRECONDITION_FAILED - x-expires {value!r} of queue {queue!r} '
            'is not a number of milliseconds, 1 or more',
            (50, 10), 'Channel.queue_declare', '406',
        )  # fmt: skip
    return milliseconds


class QueueChannel(virtual.Channel):
    """The part of a channel that knows where messages may go."""

    connection: Transport
    endpoint: Endpoint

    @property
    def store(self) -> Store:
        return self.endpoint.store

    # -- exchanges ---------------------------------------------------------------

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = 'direct',
        *args: Any,
        passive: bool = False,
        **kwargs: Any,
    ) -> None:
        """Declares an exchange.

        Raises:
            ChannelError: its type is not supported, or ``passive`` was given and nobody knows it.
        """
        type = type or 'direct'
        exchange = exchange or f'amq.{type}'
        if passive:
            if self._kind_of(exchange) is None:
                raise self._not_found('exchange', exchange, 'exchange_declare')
            return
        if type not in self.exchange_types:
            raise ChannelError(
                f'COMMAND_INVALID - unknown type {type!r} of exchange {exchange!r}; '
                f'this transport has {", ".join(sorted(self.exchange_types))}',
                (40, 10), 'Channel.exchange_declare', '503',
            )  # fmt: skip
        super().exchange_declare(exchange, type, *args, **kwargs)

    def typeof(self, exchange: str, default: str = 'direct') -> ExchangeType:
        """The type of an exchange, also of one that only others have declared."""
        found: ExchangeType = self.exchange_types[self._kind_of(exchange) or default]
        return found

    def _kind_of(self, exchange: str) -> str | None:
        """As declared here, or as bindings by others show it."""
        if exchange in self.state.exchanges:
            return str(self.state.exchanges[exchange]['type'])
        kinds = self.connection.exchange_kinds
        if exchange not in kinds and (kind := self._ask_kind(exchange)):
            kinds[exchange] = kind
        return kinds.get(exchange)

    def _ask_kind(self, exchange: str) -> str | None:
        if exchange in PREDECLARED:
            return PREDECLARED[exchange]
        for text in self.store.bindings(exchange):
            return Binding.read(text).kind
        return 'fanout' if self.store.knows_exchange(exchange) else None

    def _not_found(self, what: str, name: str, method: str) -> ChannelError:
        vhost = self.connection.client.virtual_host or '/'
        return ChannelError(
            f'NOT_FOUND - no {what} {name!r} in vhost {vhost!r}',
            (50, 10), f'Channel.{method}', '404',
        )  # fmt: skip

    def exchange_delete(self, exchange: str, if_unused: bool = False, **kwargs: Any) -> None:
        """Forgets an exchange and all its bindings; its queues stay, as in AMQP.

        Args:
            exchange: its name.
            if_unused: leave it alone if queues are bound to it.
        """
        bindings = self.store.bindings(exchange)
        listening = [
            queue for queue, one in self.connection.fanout_bindings.items()
            if one.exchange == exchange
        ]  # fmt: skip
        if if_unused and (bindings or listening):
            return
        for text in bindings:
            binding = Binding.read(text)
            self.store.repeat(self.store.operations.unbind(exchange, text, binding.queue))
        for queue in listening:
            self._stop_listening(queue)
        for queue, source, routing_key in list(self.state.bindings):
            if source == exchange:
                self.state.binding_delete(queue, exchange, routing_key)
        self.state.exchanges.pop(exchange, None)
        self.connection.exchange_kinds.pop(exchange, None)

    # -- queues ------------------------------------------------------------------

    def queue_declare(
        self,
        queue: str | None = None,
        passive: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> queue_declare_ok_t:
        """Declares a queue.

        Args:
            queue: its name; made up if there is none.
            passive: only make sure that it is known.
            exclusive: as ``auto_delete``, and it goes with this connection at the latest.
            auto_delete: delete it when its last consumer has gone.
            arguments: ``x-expires``, in milliseconds: delete it when unused for so long.

        Raises:
            ChannelError: it is not known, or ``x-expires`` makes no sense.
        """
        queue = queue or f'amq.gen-{uuid()}'
        if passive:
            if not self._has_queue(queue):
                raise self._not_found('queue', queue, 'queue_declare')
            return queue_declare_ok_t(queue, self._size(queue), 0)
        if queue in self.connection.fanout_bindings:
            return queue_declare_ok_t(queue, 0, 0)
        lifetime = Lifetime(_unused_for(queue, arguments), auto_delete or exclusive)
        waiting = self.store.repeat(lifetime.declare(self.store.operations, queue))
        self.connection.lifetimes[queue] = lifetime
        if exclusive:
            # Until it is consumed, its connection stands for the consumer.
            self._attend(queue, self.connection)
        elif not lifetime.limited:
            self.endpoint.attendance.forget(queue)
        for channel in self.connection.channels:
            if lifetime.limited and queue in channel.consumed:
                self._attend(queue, channel)
        return queue_declare_ok_t(queue, waiting, 0)

    def prepare_queue_arguments(self, arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """``Queue(expires=...)`` and its like as the arguments that AMQP calls ``x-...``."""
        prepared: dict[str, Any] = to_rabbitmq_queue_arguments(arguments, **kwargs)
        return prepared

    def _attend(self, queue: str, holder: Any) -> None:
        self.endpoint.attendance.enter(queue, holder, self._declaration(queue))

    def _declaration(self, queue: str) -> list[Call[Any]]:
        """What declares the queue and its bindings as this connection has declared them."""
        lifetime = self.connection.lifetimes.get(queue)
        if lifetime is None:
            return []
        operations = self.store.operations
        return [
            lifetime.declare(operations, queue),
            *(
                operations.bind(exchange, binding, queue)
                for exchange, binding in self._bindings_of(queue)
            ),
        ]

    def _bindings_of(self, queue: str) -> list[tuple[str, str]]:
        """Exchange and binding, as far as this connection knows them."""
        return [
            (exchange, self._binding(exchange, routing_key, queue))
            for exchange, routing_key, _ in self.state.queue_bindings(queue)
        ]

    def _binding(self, exchange: str, routing_key: str, queue: str) -> str:
        return Binding(routing_key, queue, self._kind_of(exchange) or 'direct').text()

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        """Declared and not deleted since, or holding messages, or bound from here."""
        return (
            queue in self.connection.fanout_bindings
            or bool(self.state.queue_index.get(queue))
            or self.store.knows(queue)
        )

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
        """Deletes a queue, its bindings and what waits in it.

        Args:
            queue: its name.
            if_unused: leave it alone if it has consumers: those of this connection, and for a
                queue with a limited life those of all others.
            if_empty: leave it alone if messages wait in it.
        """
        if if_unused and self._consumed_here(queue):
            return
        if queue in self.connection.fanout_bindings:
            self._stop_listening(queue)
            del self.connection.fanout_bindings[queue]
        elif not self.store.delete(
            queue, self._bindings_of(queue), if_unused=if_unused, if_empty=if_empty
        ):
            return
        self.endpoint.attendance.forget(queue)
        self.connection.lifetimes.pop(queue, None)
        self.state.queue_bindings_delete(queue)

    def _consumed_here(self, queue: str) -> bool:
        return any(queue in channel.consumed for channel in self.connection.channels)

    # -- bindings ----------------------------------------------------------------

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = '',
        arguments: Any = None,
        **kwargs: Any,
    ) -> None:
        """Binds a queue to an exchange.

        Raises:
            ChannelError: nobody knows the exchange.
        """
        exchange = exchange or 'amq.direct'
        if exchange not in self.state.exchanges:
            kind = self._kind_of(exchange)
            if kind is None:
                raise self._not_found('exchange', exchange, 'queue_bind')
            self.exchange_declare(exchange, kind)
        routing_key = routing_key or ''
        if self._kind_of(exchange) == 'fanout':
            if not self.state.has_binding(queue, exchange, routing_key):
                self._bind_to_fanout(queue, exchange, routing_key)
        else:
            # Always said again: the queue may have been deleted meanwhile.
            binding = self._binding(exchange, routing_key, queue)
            self.store.repeat(self.store.operations.bind(exchange, binding, queue))
        self.state.binding_declare(queue, exchange, routing_key, arguments)

    def _bind_to_fanout(self, queue: str, exchange: str, routing_key: str) -> None:
        self.endpoint.attendance.forget(queue)
        since = self.connection.fanout.listen(exchange, queue)
        self.connection.fanout_bindings[queue] = FanoutBinding(exchange, routing_key, since)

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
        routing_key = routing_key or ''
        fanout = self.connection.fanout_bindings.get(queue)
        if fanout is not None and fanout.exchange == exchange:
            self._stop_listening(queue)
            del self.connection.fanout_bindings[queue]
        else:
            binding = self._binding(exchange, routing_key, queue)
            self.store.repeat(self.store.operations.unbind(exchange, binding, queue))
        self.state.binding_delete(queue, exchange, routing_key)

    def _unsubscribe(self, queue: str) -> None:
        """A consumer of a fanout queue ends.  The queue goes on listening unless it is one that
        goes with its last consumer."""
        gone = self.connection.fanout.unsubscribe(self, queue)
        if gone is None or self.connection.fanout.subscribed(queue):
            return
        lifetime = self.connection.lifetimes.get(queue)
        if lifetime is None or lifetime.auto_delete:
            self._stop_listening(queue)
            gone.binding.position = None
            self.state.queue_bindings_delete(queue)
        else:
            gone.binding.position = '{}-{}'.format(*gone.position)

    def _stop_listening(self, queue: str) -> None:
        fanout = self.connection.fanout
        for channel in self.connection.channels:
            fanout.unsubscribe(channel, queue)
        with contextlib.suppress(*LOST):  # the entry ends by itself
            fanout.stop_listening(self.connection.fanout_bindings[queue].exchange, queue)

    def get_table(self, exchange: str) -> list[tuple[str, str | None, str]]:
        """The bindings of an exchange, as all processes have made them."""
        found = [Binding.read(text) for text in self.store.bindings(exchange)]
        kind = self.typeof(exchange)
        return [kind.prepare_bind(one.queue, exchange, one.routing_key, None) for one in found]

    # -- routing -----------------------------------------------------------------

    def _lookup(
        self,
        exchange: str,
        routing_key: str,
        default: Any = None,
        routers: dict[str, Router] | None = None,
    ) -> list[str]:
        """The queues to which a message goes.

        The anonymous exchange, to which Celery sends its tasks, costs no round trip.  For others
        the server is asked each time whether bindings have changed; who sends several messages
        at once asks it once, and keeps the answers in ``routers``.

        Raises:
            InconsistencyError: there cannot be any; the message would be lost.
            InvalidMessage: it has no address at all.
        """
        if exchange:
            routers = {} if routers is None else routers
            if exchange not in routers:
                routers[exchange] = self.connection.routes.router(exchange)
            if routers[exchange]:
                return routers[exchange].route(routing_key)
            raise InconsistencyError(
                f'cannot route to exchange {exchange!r}: no queue is bound to it'
            )
        if routing_key:
            return [routing_key]
        raise InvalidMessage('the message names neither an exchange nor a queue')
