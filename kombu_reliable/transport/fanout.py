"""Fanout exchanges: a capped stream each, read by everybody who listens.

Remote control and events go this way.  A listener remembers its position, so a lost connection
loses nothing that the stream still holds; nothing is written while nobody listens.
"""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import redis.exceptions

from kombu_reliable.scripts import translate
from kombu_reliable.transport.endpoint import Endpoint
from kombu_reliable.transport.line import LOST, Line, Request, must_answer
from kombu_reliable.transport.reconnect import Reconnect

if TYPE_CHECKING:
    from kombu_reliable.transport.channel import Channel

__all__ = ('FanoutReceiver', 'Subscription')

#: Longest blocking read, in seconds.
LONGEST_READ = 25.0
SLACK = 1.0
BATCH = 100


@dataclass(slots=True, eq=False)
class Subscription:
    """A queue that is bound to a fanout exchange and consumed, and how far it has got."""

    channel: Channel
    queue: str
    exchange: str
    pattern: re.Pattern[str]
    position: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    subscription: Subscription
    routing_key: str
    envelope: bytes


def _position(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition('-')
    return int(milliseconds), int(number)


def _pattern(routing_key: str) -> re.Pattern[str]:
    """``*`` stands for one word and ``#`` for any, as in a topic; no key at all takes all."""
    if not routing_key:
        return re.compile('.*', re.DOTALL)
    parts = {'*': r'[^.]+', '#': r'.*'}
    words = [parts.get(word, re.escape(word)) for word in routing_key.split('.')]
    return re.compile(r'\.'.join(words).replace(r'\..*', r'(\..*)?'), re.DOTALL)


class FanoutReceiver:
    """Reads the streams to which a transport's channels listen.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._subscriptions: dict[tuple[Channel, str], Subscription] = {}
        self._positions: dict[str, str] = {}
        self._inbox: deque[_Entry] = deque()
        self._reconnect = Reconnect(endpoint, 'fanout')
        self._line: Line | None = None
        self._reading = False
        self._refresh_at = 0.0

    # -- subscriptions -----------------------------------------------------------

    def subscribe(
        self, channel: Channel, queue: str, exchange: str, routing_key: str, since: str
    ) -> None:
        """Delivers what comes to ``exchange`` after the position ``since``."""
        self._subscriptions[channel, queue] = Subscription(
            channel, queue, exchange, _pattern(routing_key), _position(since)
        )
        # Going back for a late comer is harmless: each subscription knows its own position.
        known = self._positions.get(exchange, since)
        self._positions[exchange] = min(known, since, key=_position)
        self._refresh_at = time.monotonic() + self._endpoint.options.fanout_life / 3
        self._stop_reading()

    def unsubscribe(self, channel: Channel, queue: str) -> Subscription | None:
        """Stops delivering; the stream forgets the listener by itself."""
        gone = self._subscriptions.pop((channel, queue), None)
        if gone is not None:
            exchanges = {one.exchange for one in self._subscriptions.values()}
            self._positions = {
                name: at for name, at in self._positions.items() if name in exchanges
            }
            self._inbox = deque(entry for entry in self._inbox if entry.subscription is not gone)
            self._stop_reading()
        return gone

    # -- taking part in the reactor ----------------------------------------------

    def lines(self) -> list[Line]:
        return [] if self._line is None else [self._line]

    def due_in(self) -> float | None:
        if not self._subscriptions:
            return None
        now = time.monotonic()
        return (self._refresh_at if self._line is not None else self._reconnect.retry_at) - now

    def turn(self) -> None:
        if not self._subscriptions:
            return
        try:
            must_answer(self._line, LONGEST_READ + SLACK)
            if self._line is None:
                self._line = self._reconnect.open()
            if self._line is not None:
                self._stay_listed()
                if not self._reading:
                    self._read(self._line)
        except LOST as error:
            self._lose(error)

    def flush(self) -> None:
        """What comes this way has nothing to settle."""

    def receive(self, line: Line) -> None:
        try:
            line.receive()
        except LOST as error:
            self._lose(error)

    def has_messages(self) -> bool:
        return bool(self._inbox)

    def hand_out_one(self) -> None:
        entry = self._inbox.popleft()
        one = entry.subscription
        if self._subscriptions.get((one.channel, one.queue)) is one:
            one.channel.deliver_fanout(one.queue, one.exchange, entry.routing_key, entry.envelope)

    def close(self) -> None:
        """Drops everything; positions are the only state, so nothing needs to be said."""
        self._subscriptions.clear()
        self._inbox.clear()
        self._stop_reading()

    # -- reading -----------------------------------------------------------------

    def _read(self, line: Line) -> None:
        exchanges = list(self._positions)
        keys = [self._endpoint.operations.keys.fanout(name) for name in exchanges]
        blocking = () if line.fileno() is None else ('BLOCK', round(LONGEST_READ * 1000))
        command = (
            'XREAD', 'COUNT', BATCH, *blocking, 'STREAMS', *keys,
            *(self._positions[name] for name in exchanges),
        )  # fmt: skip
        names = {key.encode(): name for key, name in zip(keys, exchanges, strict=True)}
        self._reading = True
        line.send([Request(command, lambda reply: self._arrived(names, reply))])

    def _arrived(self, names: dict[bytes, str], reply: Any) -> None:
        self._reading = False
        if isinstance(reply, redis.exceptions.ResponseError):
            raise translate(reply)
        for key, entries in reply or ():
            for at, fields in entries:
                self._sort_in(names[key], at.decode(), fields)

    def _sort_in(self, exchange: str, at: str, fields: list[bytes]) -> None:
        self._positions[exchange] = at
        position, routing_key, envelope = _position(at), fields[1].decode(), fields[3]
        for one in self._subscriptions.values():
            if one.exchange == exchange and position > one.position:
                one.position = position
                if one.pattern.fullmatch(routing_key):
                    self._inbox.append(_Entry(one, routing_key, envelope))

    def _stay_listed(self) -> None:
        now = time.monotonic()
        if now < self._refresh_at:
            return
        store = self._endpoint.store
        store.run_all(
            [
                store.operations.listen(one.exchange, one.queue)
                for one in self._subscriptions.values()
            ]
        )
        self._refresh_at = now + self._endpoint.options.fanout_life / 3

    def _lose(self, error: Exception) -> None:
        self._stop_reading()
        self._reconnect.failed(error)

    def _stop_reading(self) -> None:
        """A blocked read ends with its connection; its position is kept here."""
        if self._line is not None:
            self._line.close()
        self._line = None
        self._reading = False
