"""Fanout exchanges: a capped stream each, read by everybody who listens.

Remote control and events go this way.  A listener remembers its position, so a lost connection
loses nothing that the stream still holds; nothing is written while nobody listens.  What is
older than ``fanout_replay`` is not delivered any more: see :mod:`.age`.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import redis.exceptions

from kombu_reliable.scripts import translate
from kombu_reliable.transport.age import ServerClock, now
from kombu_reliable.transport.endpoint import Endpoint
from kombu_reliable.transport.line import LOST, Line, Request, must_answer
from kombu_reliable.transport.reconnect import Reconnect
from kombu_reliable.transport.routing import topic_matches

if TYPE_CHECKING:
    from kombu_reliable.transport.channel import Channel

__all__ = ('FanoutBinding', 'FanoutReceiver', 'Subscription')

logger = logging.getLogger('kombu_reliable')

#: Longest blocking read, in seconds.
LONGEST_READ = 25.0
SLACK = 1.0
BATCH = 100

#: What is skipped within such a time is one line in the log.
GATHER = 0.2

BEGINNING = '0-0'


@dataclass(slots=True)
class FanoutBinding:
    """A queue that is bound to a fanout exchange.

    Args:
        exchange: name of the exchange.
        routing_key: a pattern as in a topic; ``''`` takes all.
        position: where to go on reading; None: with what comes from now on.
    """

    exchange: str
    routing_key: str
    position: str | None

    def takes(self, routing_key: str) -> bool:
        return not self.routing_key or topic_matches(self.routing_key, routing_key)


@dataclass(slots=True, eq=False)
class Subscription:
    """A bound queue that is consumed, and how far it has got."""

    channel: Channel
    queue: str
    binding: FanoutBinding
    position: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Entry:
    subscription: Subscription
    routing_key: str
    envelope: bytes
    #: When it becomes too old, on our own clock.
    best_before: float


@dataclass(frozen=True, slots=True)
class _Read:
    """A message of a stream, as it was read."""

    exchange: str
    at: str
    routing_key: str
    envelope: bytes

    @property
    def written_at(self) -> float:
        """By the server's clock, in seconds."""
        return _position(self.at)[0] / 1000


def _position(text: str) -> tuple[int, int]:
    milliseconds, _, number = text.partition('-')
    return int(milliseconds), int(number)


class FanoutReceiver:
    """Reads the streams to which a transport's channels listen.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._name = secrets.token_urlsafe(6)
        self._subscriptions: dict[tuple[Channel, str], Subscription] = {}
        self._positions: dict[str, str] = {}
        self._inbox: deque[_Entry] = deque()
        self._reconnect = Reconnect(endpoint, 'fanout')
        self._line: Line | None = None
        self._clock = ServerClock()
        self._reading = False
        self._refresh_at = 0.0
        #: Exchanges of which more was there than one read takes.
        self._behind: set[str] = set()
        self._skipped: Counter[str] = Counter()
        self._report_at = 0.0

    # -- subscriptions -----------------------------------------------------------

    def listen(self, exchange: str, queue: str) -> str:
        """Enters a queue as a listener; returns the position behind which to read."""
        store = self._endpoint.store
        return store.repeat(store.operations.listen(exchange, self._listener(queue), queue))

    def stop_listening(self, exchange: str, queue: str) -> None:
        self._endpoint.store.stop_listening(exchange, self._listener(queue))

    def _listener(self, queue: str) -> str:
        """Two processes may give their queues the same name."""
        return f'{self._name}:{queue}'

    def subscribe(self, channel: Channel, queue: str, binding: FanoutBinding) -> None:
        """Delivers what comes to the binding's exchange."""
        last = self.listen(binding.exchange, queue)
        since = last if binding.position is None else binding.position
        self._subscriptions[channel, queue] = Subscription(
            channel, queue, binding, _position(since)
        )
        # Going back for a late comer is harmless: each subscription knows its own position.
        known = self._positions.get(binding.exchange, since)
        self._positions[binding.exchange] = min(known, since, key=_position)
        self._refresh_at = time.monotonic() + self._endpoint.options.fanout_life / 3
        self._stop_reading()

    def unsubscribe(self, channel: Channel, queue: str) -> Subscription | None:
        """Stops delivering."""
        gone = self._subscriptions.pop((channel, queue), None)
        if gone is not None:
            exchanges = {one.binding.exchange for one in self._subscriptions.values()}
            self._positions = {
                name: at for name, at in self._positions.items() if name in exchanges
            }
            self._inbox = deque(entry for entry in self._inbox if entry.subscription is not gone)
            self._behind &= exchanges
            self._stop_reading()
        return gone

    def subscribed(self, queue: str) -> bool:
        return any(one.queue == queue for one in self._subscriptions.values())

    # -- taking part in the reactor ----------------------------------------------

    def lines(self) -> list[Line]:
        return [] if self._line is None else [self._line]

    def due_in(self) -> float | None:
        if not self._subscriptions:
            return None
        at = self._refresh_at if self._line is not None else self._reconnect.retry_at
        if self._skipped:
            at = min(at, self._report_at)
        return at - time.monotonic()

    def turn(self) -> None:
        if not self._subscriptions:
            return
        try:
            must_answer(self._line, LONGEST_READ + SLACK)
            if self._line is None:
                self._line = self._reconnect.open()
            if self._line is not None:
                self._stay_listed()
            if self._line is not None and not self._reading:
                self._read(self._line)
        except LOST as error:
            self._lose(error)
        self._report_skipped()

    def flush(self) -> None:
        """What comes this way has nothing to settle."""

    def receive(self, line: Line) -> None:
        try:
            line.receive()
        except LOST as error:
            self._lose(error)

    def has_messages(self) -> bool:
        return any(entry.subscription.channel.flowing for entry in self._inbox)

    def hand_out_one(self) -> None:
        at = next(n for n, entry in enumerate(self._inbox) if entry.subscription.channel.flowing)
        entry = self._inbox[at]
        del self._inbox[at]
        one = entry.subscription
        if self._subscriptions.get((one.channel, one.queue)) is not one:
            return
        if now() > entry.best_before:
            self._skip(one.binding.exchange)
            return
        exchange = one.binding.exchange
        one.channel.deliver_fanout(one.queue, exchange, entry.routing_key, entry.envelope)

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
        time_first = [] if self._clock.known else [self._clock.question()]
        line.send([*time_first, Request(command, partial(self._arrived, line, names))])

    def _arrived(self, line: Line, names: dict[bytes, str], reply: Any) -> None:
        if isinstance(reply, redis.exceptions.ResponseError):
            self._reading = False
            raise translate(reply)
        read, behind = [], set()
        for key, entries in reply or ():
            exchange = names[key]
            if len(entries) == BATCH:
                behind.add(exchange)
            for at, fields in entries:
                read.append(_Read(exchange, at.decode(), fields[1].decode(), fields[3]))
        for exchange in behind - self._behind:
            self._look_for_a_gap(line, exchange)
        self._behind = behind
        self._judge(line, read)

    def _judge(self, line: Line, read: list[_Read], questions: int = 0) -> None:
        """Before anything is called too old the server is asked for its time once more."""
        limit = self._endpoint.options.fanout_replay
        ages = [self._clock.age(one.written_at) for one in read]
        doubtful = any(age is None or age > limit for age in ages)
        if doubtful and questions < self._clock.TRIES and not (questions and self._clock.known):
            again = partial(self._judge, line, read, questions + 1)
            line.send([self._clock.question(again)])
            return
        self._reading = False
        for one, age in zip(read, ages, strict=True):
            self._sort_in(one, limit - (age or 0.0))

    def _sort_in(self, read: _Read, lasts: float) -> None:
        self._positions[read.exchange] = read.at
        position = _position(read.at)
        wanted = False
        for one in self._subscriptions.values():
            if one.binding.exchange == read.exchange and position > one.position:
                one.position = position
                if not one.binding.takes(read.routing_key):
                    continue
                wanted = True
                if lasts >= 0:
                    best_before = now() + lasts
                    self._inbox.append(_Entry(one, read.routing_key, read.envelope, best_before))
        if wanted and lasts < 0:
            self._skip(read.exchange)

    def _skip(self, exchange: str) -> None:
        self._skipped[exchange] += 1
        self._report_at = time.monotonic() + GATHER

    def _report_skipped(self) -> None:
        if not self._skipped or time.monotonic() < self._report_at:
            return
        for exchange, count in self._skipped.items():
            logger.warning(
                'fanout exchange %r: messages skipped because they were older than %g s '
                '(fanout_replay): %d', exchange, self._endpoint.options.fanout_replay, count,
            )  # fmt: skip
        self._skipped.clear()

    # -- what the stream has lost ------------------------------------------------

    def _look_for_a_gap(self, line: Line, exchange: str) -> None:
        """Somebody who falls behind may have lost what the stream could not hold."""
        key = self._endpoint.operations.keys.fanout(exchange)
        position = self._positions[exchange]
        replies: list[Any] = []

        def answered(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == 2:
                self._warn_of_a_gap(exchange, position, *replies)

        oldest = ('XRANGE', key, '-', '+', 'COUNT', 1)
        line.send([Request(('XLEN', key), answered), Request(oldest, answered)])

    def _warn_of_a_gap(self, exchange: str, position: str, length: Any, oldest: Any) -> None:
        full = isinstance(length, int) and length >= self._endpoint.options.fanout_maxlen
        if not full or not isinstance(oldest, list) or not oldest:
            return
        first = oldest[0][0].decode()
        if _position(first) > _position(position):
            logger.warning(
                'fell behind fanout exchange %r: its stream holds %d messages, those between '
                '%s and %s are lost (fanout_maxlen)', exchange, length, position, first,
            )  # fmt: skip

    # -- staying a listener ------------------------------------------------------

    def _stay_listed(self) -> None:
        if time.monotonic() < self._refresh_at:
            return
        listed = {(one.binding.exchange, one.queue) for one in self._subscriptions.values()}
        for exchange, queue in listed:
            self._notice_a_new_stream(exchange, self.listen(exchange, queue))
        self._refresh_at = time.monotonic() + self._endpoint.options.fanout_life / 3

    def _notice_a_new_stream(self, exchange: str, last: str) -> None:
        """Another server, whose clock is behind, began the stream anew: it ends before the
        place from which we would go on."""
        if last == BEGINNING or _position(last) >= _position(self._positions[exchange]):
            return
        self._positions[exchange] = BEGINNING
        for one in self._subscriptions.values():
            if one.binding.exchange == exchange:
                one.position = _position(BEGINNING)
        self._stop_reading()

    def _lose(self, error: Exception) -> None:
        self._stop_reading()
        self._refresh_at = 0.0  # the server may have forgotten us
        self._reconnect.failed(error)

    def _stop_reading(self) -> None:
        """A blocked read ends with its connection; its position is kept here."""
        if self._line is not None:
            self._line.close()
        self._line = None
        self._clock.forget()
        self._reading = False
