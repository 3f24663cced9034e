"""Sends messages, singly or in batches, so that each is stored once however often it is sent."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from kombu_reliable.envelope import unpack_id
from kombu_reliable.errors import DuplicateJob, Fenced
from kombu_reliable.scripts import Call
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.dependencies import calls_for_parts, cycle, in_parts
from kombu_reliable.store.operations import (
    CYCLE,
    DUPLICATE,
    EDGE_LIMIT,
    PUBLISH_LIMIT,
    REFUSED,
    SKIPPED,
)
from kombu_reliable.transport.doubts import keep_in_doubt, take_number_in_doubt
from kombu_reliable.transport.lanes import Nonce, abandon_lane, next_nonce
from kombu_reliable.transport.line import LOST
from kombu_reliable.transport.messages import NONCE
from kombu_reliable.transport.routing import Router
from kombu_reliable.types import Broadcast, Outgoing

if TYPE_CHECKING:
    from kombu_reliable.transport.channel import Channel

__all__ = ('Item', 'PublishBatch', 'publish')

Item = Outgoing | Broadcast

#: What a message that depends on others costs at least, in edges.
DEPENDENT_COST = 5
#: ... and one with a unique key, which may displace another.
UNIQUE_COST = 3

#: What one that is tagged, tracked or retained costs besides its tags, in edges.
MARKS_COST = 2

#: Messages of a batch that go out in one round trip.
ROUND = 10 * PUBLISH_LIMIT

#: Pauses, in seconds, before a batch whose reply was lost is sent again.
RETRY_PAUSES = (0.0, 0.1, 0.5)


def publish(store: Store, memory: MutableMapping[str, Any], items: Sequence[Item]) -> str | None:
    """Sends ``items`` in one round trip; a message with more than 300 dependencies takes several.

    Args:
        store: the server.
        memory: keeps the number of this publish until it has succeeded.  Whoever repeats it
            hands in the same memory, and what was stored before is not stored again.
        items: what to send.

    Returns:
        The id of the task that has the unique key of the first message that was skipped for
        that; None if none was.

    Raises:
        DependencyCycle: a job would wait for itself.
        DuplicateJob: another job has the unique key of a message that asks for this error.
        Fenced: a next run was refused, because its job was taken from its owner.
        ServerFull: the server has no memory left.
        NotConfirmed: it is stored, but not as safe as the options ask for.
    """
    doubtful = take_number_in_doubt(items)
    nonce = memory.get(NONCE)
    if nonce is None or nonce.size != len(items):
        nonce = memory[NONCE] = doubtful or next_nonce(len(items))
    replies: list[Any] = []
    try:
        for calls in _rounds(store.operations, nonce, items):
            replies += store.run_all(calls)
        store.confirm()
    except BaseException:
        # It may be repeated, but other publishes of this thread may come first.
        abandon_lane(nonce)
        keep_in_doubt(items, nonce)
        raise
    # Whoever sends the same message once more on purpose gets a number of its own.
    del memory[NONCE]
    skipped: str | None = None
    for reply in replies:
        if reply == -1:
            raise cycle()
        if isinstance(reply, tuple):
            skipped = _skipped(reply, items) or skipped
    return skipped


def _skipped(reply: tuple[str, ...], items: Sequence[Item]) -> str | None:
    """Raises what a reply says; returns for whom a message was skipped, if one was."""
    holder: str | None = None
    for answer in reply:
        if not answer.startswith(REFUSED):
            continue
        if answer == REFUSED:
            raise Fenced(
                'the next run of a job was refused: its lease was lost, another worker has it'
            )
        if answer == CYCLE:
            raise cycle()
        if answer.startswith(DUPLICATE):
            raise _duplicate(unpack_id(answer[len(DUPLICATE) :]), items)
        if answer.startswith(SKIPPED):
            holder = holder or unpack_id(answer[len(SKIPPED) :])
    return holder


def _duplicate(holder: str, items: Sequence[Item]) -> DuplicateJob:
    keys = {one.unique.key for one in items if isinstance(one, Outgoing) and one.unique}
    which = f'the unique key {keys.pop()!r}' if len(keys) == 1 else 'a unique key of this batch'
    return DuplicateJob(f'task {holder} has {which}; nothing was published for it', holder)


def _rounds(
    operations: Operations, nonce: Nonce, items: Sequence[Item]
) -> Iterable[list[Call[Any]]]:
    """What goes out in one round trip each; nearly always that is a single message."""
    if len(items) == 1 and isinstance(items[0], Outgoing) and items[0].depends is None:
        return ([operations.publish(nonce.lane, nonce.first, items)],)  # type: ignore[arg-type]
    return _many_rounds(operations, nonce, items)


def _many_rounds(
    operations: Operations, nonce: Nonce, items: Sequence[Item]
) -> Iterator[list[Call[Any]]]:
    """One of several calls can fail alone, so each numbers its messages in a lane of its own."""
    calls: list[Call[Any]] = []
    at = lanes = 0
    while at < len(items):
        lane = f'{nonce.lane}.{lanes}' if lanes else nonce.lane
        number, item = nonce.first + at, items[at]
        lanes += 1
        if isinstance(item, Broadcast):
            calls.append(operations.fanout(lane, number, item))
            at += 1
        elif messages := _leading_messages(items[at : at + PUBLISH_LIMIT]):
            calls.append(operations.publish(lane, number, messages))
            at += len(messages)
        else:
            mark = f'!{lane}.{number}'
            message, parts = in_parts(item, mark)
            yield [*calls, operations.publish(lane, number, [message])]
            calls = []
            # Each waits for the one before it: a server that has just started may know one of two
            # scripts, and then the first of two calls is made after the second.
            for call in calls_for_parts(operations, mark, parts):
                yield [call]
            at += 1
    if calls:
        yield calls


def _leading_messages(items: Sequence[Item]) -> list[Outgoing]:
    """Those that one call may carry; none if not even the first fits into one."""
    messages: list[Outgoing] = []
    edges = 0
    for item in items:
        if isinstance(item, Broadcast):
            break
        own = len(item.depends.on) if item.depends is not None else 0
        edges += max(own, DEPENDENT_COST) if item.depends is not None else 0
        edges += UNIQUE_COST if item.unique is not None else 0
        edges += MARKS_COST + len(item.marks.tags) if item.marks is not None else 0
        if own > EDGE_LIMIT or (messages and edges > EDGE_LIMIT):
            break
        messages.append(item)
    return messages


class PublishBatch:
    """What kombu's ``Producer.batch()`` collects, sent in one round trip per 2,000 messages.

    Args:
        channel: prepares the messages.
        max_size: messages after which the batch is sent by itself.
    """

    def __init__(self, channel: Channel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._collected: list[Item] = []
        #: Sent at least once; goes out unchanged, or what was stored could not be told apart.
        self._in_doubt: list[Item] = []
        self._memory: dict[str, Any] = {}
        #: For the exchanges to which messages of this batch go.
        self._routers: dict[str, Router] = {}
        #: Queues to which some of them go without an exchange.
        self._direct: set[str] = set()

    def publish(
        self, message: dict[str, Any], exchange: str = '', routing_key: str = '', **kwargs: Any
    ) -> None:
        """Prepares a message; the errors of :meth:`.Channel.basic_publish` come at once."""
        self._collected += self.channel.prepare(message, exchange, routing_key, self._routers)
        if not exchange:
            self._direct.add(routing_key)
        if len(self._collected) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Sends what was collected.  After an error it can be called again: nothing is lost,
        nothing is stored twice."""
        self._routers = {}
        while self._in_doubt or self._collected:
            if not self._in_doubt:
                self._in_doubt = self._collected[:ROUND]
                del self._collected[:ROUND]
            try:
                self._send()
            finally:
                if NONCE not in self._memory:  # the server has answered, if only to refuse a part
                    self._in_doubt = []
        while self._direct:
            self.channel.notice(self._direct.pop())

    def _send(self) -> None:
        for pause in RETRY_PAUSES:
            try:
                publish(self.channel.store, self._memory, self._in_doubt)
                return
            except LOST:
                time.sleep(pause)
        publish(self.channel.store, self._memory, self._in_doubt)

    def discard(self) -> None:
        """Forgets what was not sent."""
        self._collected, self._in_doubt = [], []
        self._memory.clear()

    close = discard
