"""Messages that are prepared like any, but not sent: somebody stores them in another step."""

from __future__ import annotations

from typing import Any

from kombu import Producer

from kombu_reliable.errors import InvalidMessage
from kombu_reliable.store import Store
from kombu_reliable.store.operations import EDGE_LIMIT
from kombu_reliable.store.schedules import Fired, Firing, ScheduleStore
from kombu_reliable.transport.lanes import next_nonce
from kombu_reliable.transport.publisher import Item, publish
from kombu_reliable.types import Broadcast, Outgoing

__all__ = ('Collector', 'fire_schedule')


class _Desk:
    """In front of a channel: does all that it does, but keeps what is published."""

    def __init__(self, channel: Any, items: list[Item]) -> None:
        self._channel = channel
        self._items = items

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    def basic_publish(
        self, message: dict[str, Any], exchange: str = '', routing_key: str = '', **_: Any
    ) -> None:
        self._items += self._channel.prepare(message, exchange, routing_key)


class Collector(Producer):
    """A producer that keeps what it is told to publish.

    Args:
        channel: knows the exchanges, and declares what has to be.

    Example:
        >>> collector = Collector(channel)
        >>> task.apply_async(producer=collector, retry=False)
        >>> len(collector.items)
        1
    """

    def __init__(self, channel: Any) -> None:
        self.items: list[Item] = []
        super().__init__(_Desk(channel, self.items), auto_declare=False)


def fire_schedule(
    store: Store, schedules: ScheduleStore, firing: Firing, items: list[Item] | None = None
) -> Fired:
    """Publishes what a schedule has due, in the step that plans its next occurrence.

    Args:
        store: the server.
        schedules: where the schedule is kept.
        firing: what is due, and what comes next.
        items: what a :class:`Collector` has kept.

    Raises:
        InvalidMessage: one of them depends on too many others.
        ServerFull: the server has no memory left.
    """
    messages = [item for item in items or () if isinstance(item, Outgoing)]
    events = [item for item in items or () if isinstance(item, Broadcast)]
    for message in messages:
        if message.depends is not None and len(message.depends.on) > EDGE_LIMIT:
            raise InvalidMessage(f'what a schedule publishes depends on at most {EDGE_LIMIT} jobs')
    nonce = next_nonce(len(messages) or 1)
    fired = schedules.fire(firing, nonce.lane, nonce.first, messages)
    if fired.outcome == 'fired':
        store.confirm()
        if events:
            publish(store, {}, events)
    return fired
