"""Each script as a typed function: Python values in, a :class:`Call` out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.scripts import Call, Sources, packaged, script
from kombu_reliable.types import (
    Broadcast,
    Claimed,
    Delivery,
    Dependencies,
    Outgoing,
    Settlement,
    Status,
)
from kombu_reliable.wire import Argument

__all__ = (
    'CLAIM_LIMIT',
    'CYCLE',
    'DUPLICATE',
    'EDGE_LIMIT',
    'PUBLISH_LIMIT',
    'REFUSED',
    'RENEW_LIMIT',
    'SETTLE_LIMIT',
    'SKIPPED',
    'Operations',
    'featured_fields',
    'message_of',
)

T = TypeVar('T')

# What one call may carry; together with the cost of a step this keeps it under 5 ms.
PUBLISH_LIMIT = 200
EDGE_LIMIT = 300
CLAIM_LIMIT = 100
SETTLE_LIMIT = 300
RENEW_LIMIT = 300

#: What publish answers for a next run that is not its owner's any more.
REFUSED = '!'
#: ... and for a job that would wait for itself.
CYCLE = '!cycle'
#: ... and in front of the job that has the unique key of one that was to be skipped then.
SKIPPED = '!skip '
#: ... or was to be told as an error.
DUPLICATE = '!raise '

# How a record begins, see lua/lib/record.lua.
_PUBLISHED = slice(4, 17)
_QUEUE_LENGTH = slice(17, 21)
_RECORD_HEAD = 21


def _texts(reply: bytes | Sequence[bytes]) -> tuple[str, ...]:
    if isinstance(reply, bytes):
        return (reply.decode(),)
    return tuple(item.decode() for item in reply)


def _statuses(reply: Sequence[int]) -> tuple[Status, ...]:
    return tuple(Status(item) for item in reply)


def _interval(milliseconds: int) -> float | None:
    return None if milliseconds < 0 else milliseconds / 1000


def _flat(settlements: Sequence[Settlement]) -> list[Argument]:
    args: list[Argument] = []
    for one in settlements:
        args += [one.verdict.value, one.queue, one.id, one.token, one.detail]
    return args


def _tail(message: Outgoing) -> bytes:
    """What a record has behind its times."""
    queue = message.queue.encode()
    return b'%04d%b%b' % (len(queue), queue, message.envelope)


def _fields(message: Outgoing) -> tuple[Argument, ...]:
    return (message.id, message.queue, b'%03d' % message.rank, message.due, _tail(message))


def featured_fields(message: Outgoing) -> tuple[Argument, ...]:
    """A message as publish_featured takes it."""
    return (*_fields(message), message.features)


def message_of(record: bytes) -> bytes:
    """The envelope in a record."""
    try:
        return record[_RECORD_HEAD + int(record[_QUEUE_LENGTH]) :]
    except ValueError:
        return record  # damaged: the other messages of the reply must not suffer


def _delivery(
    token: str, queue: str, id_: bytes, deliveries: int | bytes, record: bytes
) -> Delivery:
    since = ''
    if not isinstance(deliveries, int):
        count, _, text = deliveries.partition(b';')
        deliveries, since = int(count), text.decode(errors='replace')
    return Delivery(
        queue=queue, id=id_.decode(errors='replace'), token=token, deliveries=deliveries,
        envelope=message_of(record), published=record[_PUBLISHED], since=since,
    )  # fmt: skip


class Operations:
    """Encodes the operations of one shard.

    Args:
        keys: where the shard lives.
        options: lease, limits and retention go into the calls.
        now: injected time in milliseconds, for tests; None means the server's clock.
        sources: where the scripts are, for tests that change some.
    """

    def __init__(
        self,
        keys: Keys,
        options: Options,
        now: int | None = None,
        sources: Sources = packaged,
    ) -> None:
        self._sources = sources
        self.keys = keys
        self._meta = keys.meta
        self.options = options
        self.now = now
        self._lease = round(options.lease * 1000)
        self._retention = round(options.failed_retention * 1000)

    def _call(self, name: str, decode: Any, *args: Argument) -> Call[Any]:
        now = '' if self.now is None else str(self.now)
        return Call(script(name, self._sources), self._meta, args, decode, now)

    @property
    def retention(self) -> int:
        """How long dead letters are kept, in milliseconds."""
        return self._retention

    def call(self, name: str, decode: Callable[[Any], T], *args: Argument) -> Call[T]:
        """Encodes an operation that is defined elsewhere.

        Args:
            name: of its file.
            decode: reads the reply.
            args: what stands behind the time.
        """
        return self._call(name, decode, *args)

    def publish(self, lane: str, first: int, messages: Sequence[Outgoing]) -> Call[tuple[str, ...]]:
        """Stores messages; the value is the key of each, ``''`` if it was stored before,
        or one of :data:`REFUSED` and those below it."""
        name, fields = 'publish', _fields
        for one in messages:
            if not one.is_plain:
                name, fields = 'publish_featured', featured_fields
                break
        args: list[Argument] = [lane, first]
        for one in messages:
            args += fields(one)
        return self._call(name, _texts, *args)

    def claim(
        self,
        worker: str,
        token: str,
        credit: int,
        queues: Sequence[str],
        settlements: Sequence[Settlement] = (),
        idle: int | None = None,
    ) -> Call[Claimed]:
        """Ends deliveries, then leases up to ``credit`` messages from ``queues`` in this order.

        Args:
            worker: who claims; ``''`` for somebody who does not stay.
            token: of the deliveries.
            credit: how many messages may be leased.
            queues: where to look.
            settlements: what to end before.
            idle: how many of the messages could start at once; throttled ones are leased for
                those only.  None: all.
        """
        first = 3 + len(settlements)

        def decode(reply: Sequence[Any]) -> Claimed:
            left, wake_in, now = reply[:3]
            statuses, leased = reply[3:first], list(reply[first:])
            problem = leased.pop().decode(errors='replace') if len(leased) % 4 else ''
            deliveries = tuple(
                _delivery(f'{token}.{number}', queues[leased[at] - 1], *leased[at + 1 : at + 4])
                for number, at in enumerate(range(0, len(leased), 4), 1)
            )
            due = None if wake_in < 0 else wake_in / 1e6
            ended = _statuses(statuses)
            return Claimed(deliveries, left == 1, due, ended, problem, left == 2, now)

        options, credit = self.options, min(credit, CLAIM_LIMIT)
        return self._call(
            'claim', decode, worker, token, self._lease, credit,
            options.delivery_limit, self._retention, options.failed_limit,
            credit if idle is None else idle, len(settlements), *_flat(settlements), *queues,
        )  # fmt: skip

    def renew(self, held: Sequence[tuple[str, str, str]]) -> Call[tuple[Status, ...]]:
        """Extends the leases of ``(queue, id, token)`` triples."""
        flat = [field for triple in held for field in triple]
        return self._call('renew', _statuses, self._lease, *flat)

    def settle(self, settlements: Sequence[Settlement]) -> Call[tuple[Status, ...]]:
        """Ends deliveries."""
        return self._call(
            'settle', _statuses, self._retention, self.options.failed_limit, *_flat(settlements)
        )

    def tell_ends(self, queue: str) -> Call[bool]:
        """Has ends that no worker reports told to a queue; ``''`` for none."""
        return self._call('tell_ends', bool, queue)

    def purge(self, queue: str) -> Call[int]:
        """Deletes a bounded number of waiting jobs; 0 when none is left."""
        return self._call('purge', int, queue)

    # -- dependencies ------------------------------------------------------------

    def depend(self, job: str, on: Dependencies, *, last: bool = False) -> Call[int]:
        """Makes a job that waits already wait for more, at most :data:`EDGE_LIMIT` a call; the
        value is 1, 0 if the job does not wait, and -1 if it would wait for itself.

        Args:
            job: its key, or the mark under which its publish goes on.
            on: what else it waits for.
            last: that was the last part of such a publish.
        """
        return self._call('depend', int, job, json.dumps(on.features), int(last))

    def undepend(self, job: str, on: Sequence[str]) -> Call[int]:
        """Makes a job wait no more for the keys given, at most :data:`EDGE_LIMIT` a call; the value
        is the number of those that it waited for."""
        return self._call('undepend', int, job, *on)

    # -- fanout ------------------------------------------------------------------

    def fanout(self, lane: str, number: int, one: Broadcast) -> Call[bool]:
        """Appends to the exchange's stream; False if nobody listens."""
        life = round(self.options.fanout_life * 1000)
        return self._call(
            'fanout', bool, lane, number, one.exchange, one.routing_key, one.envelope,
            self.options.fanout_maxlen, life,
        )  # fmt: skip

    def listen(self, exchange: str, listener: str, queue: str = '') -> Call[str]:
        """Enters a listener; the value is the position to read from.

        Args:
            exchange: the fanout exchange.
            listener: a name of its own.
            queue: what it calls its queue; nothing is ever stored there.
        """
        life = round(self.options.fanout_life * 1000)
        return self._call('listen', bytes.decode, exchange, listener, queue, life)

    # -- queues ------------------------------------------------------------------

    def declare(self, queue: str, life: int = 0, auto_delete: bool = False) -> Call[int]:
        """Makes a queue known; the value is the number of messages that wait in it.

        Args:
            queue: its name.
            life: milliseconds after which it is deleted if nobody uses it; 0: never.
            auto_delete: it is deleted with its last consumer.
        """
        return self._call('declare', int, queue, life, int(auto_delete))

    def bind(self, exchange: str, binding: str, queue: str) -> Call[bool]:
        """Binds a queue; True if the binding is new."""
        return self._call('bind', bool, exchange, binding, queue)

    def unbind(self, exchange: str, binding: str, queue: str) -> Call[bool]:
        """Removes a binding."""
        return self._call('unbind', bool, exchange, binding, queue)

    def attend(self, queue: str, consumer: str = '') -> Call[float | None]:
        """Signs that somebody uses a queue; the value is the time until the next sign is due,
        in seconds, and None for a queue that needs none.

        Args:
            queue: its name.
            consumer: name of the consumer; ``''`` for somebody who does not stay.
        """
        return self._call('attend', _interval, queue, consumer)

    def leave(self, queue: str, consumer: str) -> Call[bool]:
        """Ends the attendance of a consumer; True if the queue went with it."""
        return self._call('leave', bool, queue, consumer)

    def delete(
        self,
        queue: str,
        bindings: Iterable[tuple[str, str]] = (),
        *,
        if_unused: bool = False,
        if_empty: bool = False,
    ) -> Call[int]:
        """Deletes a queue; the value is the number of messages that went, -1 if it was spared.

        More messages than one step takes need a purge behind it.

        Args:
            queue: its name.
            bindings: exchange and binding; those of a queue with a limited life are known.
            if_unused: spare it if it is known to have consumers.
            if_empty: spare it if messages wait in it.
        """
        known = [field for pair in bindings for field in pair]
        return self._call('delete', int, queue, int(if_unused), int(if_empty), *known)
