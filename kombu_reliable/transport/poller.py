"""Waits for messages and claims them, without blocking the event loop.

Two connections: the *wire* carries scripts, which are answered at once; on the :class:`.Bell` the
server holds a pop of the queues' wake markers, and no due time waits for that to end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import redis.exceptions

from kombu_reliable import hooks
from kombu_reliable.errors import ConnectionLost
from kombu_reliable.scripts import Call, translate
from kombu_reliable.store.operations import CLAIM_LIMIT, RENEW_LIMIT
from kombu_reliable.transport.bell import Bell
from kombu_reliable.transport.complaints import Complaints
from kombu_reliable.transport.endpoint import Endpoint
from kombu_reliable.transport.identity import new_identity
from kombu_reliable.transport.line import LOST, Line, Request, must_answer
from kombu_reliable.transport.outbox import Posted
from kombu_reliable.transport.reconnect import Reconnect
from kombu_reliable.types import Claimed, Delivery

if TYPE_CHECKING:
    from kombu_reliable.transport.channel import Channel

__all__ = ('Poller',)

T = TypeVar('T')

#: How often a full consumer is asked whether it has room again, in seconds.  Whoever makes room
#: mostly says so; this is for those who do not.
NO_ROOM_PAUSE = 0.02

#: How often a consumer is asked whether it can start what cannot wait in it, in seconds.
NO_SLOT_PAUSE = 0.05


class Poller:
    """Claims for the channels of one transport.

    Args:
        endpoint: the server.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._operations = endpoint.operations
        self.worker, self._tokens = new_identity()
        self._claims = 0
        self._channels: deque[Channel] = deque()
        #: Channels for which there may be work, as far as is known.
        self._hungry: set[Channel] = set()
        #: Channels for which there is only work that they cannot start: nothing wakes them for it.
        self._sated: set[Channel] = set()
        self._served: Channel | None = None  # the last one that was given something
        #: Queues whose marker was popped: somebody must claim there, with no credit if need be.
        self._owed: set[str] = set()
        self._inbox: deque[tuple[Channel, Delivery]] = deque()
        self._reconnect = Reconnect(endpoint, 'consumer')
        self._wire: Line | None = None
        self._bell = Bell(endpoint, self._woken)
        self._claiming = False
        self._due_at: float | None = None
        self._complaints = Complaints()

    # -- channels ----------------------------------------------------------------

    def add(self, channel: Channel) -> None:
        """A channel has a new consumer."""
        if channel not in self._channels:
            self._channels.append(channel)
        self._hungry.add(channel)
        self._hush()

    def remove(self, channel: Channel, queue: str) -> list[Delivery]:
        """A channel stops consuming a queue.

        Returns:
            What was claimed for it there and not handed out yet.
        """
        self._finish_claim()
        if not channel.queues and channel in self._channels:
            self._channels.remove(channel)
            self._hungry.discard(channel)
            self._sated.discard(channel)
            self._served = None
        self._hush(wait=True)
        self._repay()
        mine = [entry for entry in self._inbox if entry[0] is channel and entry[1].queue == queue]
        self._inbox = deque(entry for entry in self._inbox if entry not in mine)
        return [delivery for _, delivery in mine]

    def flush(self) -> None:
        """Sends the settlements that wait for a claim to travel with, without waiting for the
        answer."""
        try:
            if self._wire is not None:
                self._ask(self._settlements())
        except LOST as error:
            self._lose(error)

    # -- taking part in the reactor ----------------------------------------------

    def lines(self) -> list[Line]:
        return [line for line in (self._wire, self._bell.line) if line is not None]

    def due_in(self) -> float | None:
        now = time.monotonic()
        if not self._connected():
            return self._reconnect.retry_at - now if self._needed() else None
        pauses = [NO_SLOT_PAUSE] if self._sated else []
        if self._due_at is not None and not self._claiming:
            pauses.append(self._due_at - now)
        if self._inbox and not self.has_messages():
            pauses.append(NO_ROOM_PAUSE)
        return min(pauses, default=None)

    def turn(self) -> None:
        if not self._needed():
            return
        try:
            must_answer(self._wire, self._endpoint.options.socket_timeout)
            self._bell.check_silence()
            if self._connected() or self._connect():
                self._ask(self._next_claim())
                self._listen()
        except LOST as error:
            self._lose(error)

    def receive(self, line: Line) -> None:
        if line is self._bell.line:
            self._bell.receive()
            return
        try:
            line.receive()
        except LOST as error:
            self._lose(error)

    def has_messages(self) -> bool:
        return bool(self._inbox) and hooks.room(self._inbox[0][0].connection)

    def hand_out_one(self) -> None:
        channel, delivery = self._inbox.popleft()
        channel.deliver(delivery)

    def forget(self) -> None:
        """Drops everything without a word to the server, as after a fork."""
        for known in (self._channels, self._hungry, self._sated):
            known.clear()
        self._give_back_inbox()
        self._drop_lines()

    def close(self) -> None:
        """Ends in good order: settlements are sent, no wake marker is swallowed."""
        self._channels.clear()
        self._finish_claim()
        self._give_back_inbox()
        self._hush(wait=True)
        self._repay()
        try:
            if self._wire is not None:
                self._ask(self._settlements())
                self._wire.receive_all(self._endpoint.options.socket_timeout)
        except LOST:
            pass  # the keeper has them
        self._drop_lines()

    def _give_back_inbox(self) -> None:
        while self._inbox:
            channel, delivery = self._inbox.popleft()
            channel.qos.release(delivery.token)

    # -- connections -------------------------------------------------------------

    def _needed(self) -> bool:
        return bool(self._channels or self._wire is not None)

    def _connected(self) -> bool:
        return self._wire is not None

    def _connect(self) -> bool:
        wire = self._reconnect.open()
        if wire is None:
            return False
        self._wire = wire
        self._hungry.update(self._channels)
        # Before anything is claimed: a claim may take back what was not renewed in time.
        held = self._endpoint.keeper.leases()
        batches = [held[i : i + RENEW_LIMIT] for i in range(0, len(held), RENEW_LIMIT)]
        # A worker that stops sends this script, and reads no answer that it is unknown.
        self._ask([Request(('SCRIPT', 'LOAD', self._operations.settle([]).script.text))])
        self._ask(
            self._request(
                self._operations.renew(batch), partial(self._endpoint.keeper.renewed, batch)
            )
            for batch in batches
        )
        return True

    def _lose(self, error: Exception) -> None:
        self._drop_lines()
        self._reconnect.failed(error)

    def _drop_lines(self) -> None:
        self._bell.drop()
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()
        self._due_at = None

    # -- scripts -----------------------------------------------------------------

    def _ask(self, requests: Iterable[Request]) -> None:
        assert self._wire is not None
        batch = list(requests)
        if batch:
            self._wire.send(batch)

    def _request(
        self,
        call: Call[T],
        accept: Callable[[T], None],
        abandon: Callable[[], None] = lambda: None,
    ) -> Request:
        def answered(reply: Any) -> None:
            if isinstance(reply, redis.exceptions.NoScriptError):
                load = Request(('SCRIPT', 'LOAD', call.script.text))
                self._ask([load, self._request(call, accept, abandon)])
            elif isinstance(reply, redis.exceptions.ResponseError):
                abandon()
                # What reconnecting cannot mend is said once: the shutdown that follows has no
                # line on which it could meet it again.
                self._drop_lines()
                raise translate(reply)
            else:
                accept(call.decode(reply))

        return Request(call.command(), answered, abandon)

    def _settlements(self) -> Iterator[Request]:
        while posted := self._endpoint.keeper.collect():
            yield self._request(
                self._operations.settle([item.settlement for item in posted]),
                partial(self._endpoint.keeper.confirmed, posted),
                partial(self._endpoint.keeper.put_back, posted),
            )

    # -- claims ------------------------------------------------------------------

    def _idle(self) -> int | None:
        idle = hooks.idle_slots()
        return None if idle is None else max(0, idle - len(self._inbox))

    def _next_claim(self) -> list[Request]:
        if self._claiming or self.has_messages():
            return []
        if self._sated and self._idle() != 0:
            self._hungry |= self._sated
            self._sated.clear()
        timed = self._due_at is not None and time.monotonic() >= self._due_at
        if timed:
            self._due_at = None
            # One claim does what time demands for all; if it was for others, their marker is set.
            served = self._served if self._served in self._channels else None
            self._hungry.update([served] if served else self._channels)
        self._channels.rotate(-1)
        for channel in self._channels:
            if channel not in self._hungry:
                continue
            pressing = timed or not self._owed.isdisjoint(channel.queues)
            credit = channel.qos.credit()
            if credit and (pressing or channel.qos.worth_claiming()):
                return [self._claim(channel, channel.queue_order(), credit)]
        if timed:
            # The clock must be watched even by those who can take nothing.
            self._owed.update(queue for channel in self._channels for queue in channel.queues)
        return [self._claim(None, list(self._owed), 0)] if self._owed else []

    def _claim(self, channel: Channel | None, queues: list[str], credit: int) -> Request:
        self._claiming = True
        self._claims += 1
        owed = self._owed.intersection(queues)
        self._owed -= owed
        token = f'{self._tokens}.{self._claims:x}'
        worker = self.worker if self._channels else ''
        posted = self._endpoint.keeper.collect(CLAIM_LIMIT)
        settlements = [item.settlement for item in posted]
        asked_at = time.monotonic()
        return self._request(
            self._operations.claim(worker, token, credit, queues, settlements, self._idle()),
            lambda claimed: self._claimed(channel, claimed, posted, asked_at),
            lambda: self._claim_lost(owed, posted),
        )

    def _claimed(
        self, channel: Channel | None, claimed: Claimed, posted: list[Posted], asked_at: float
    ) -> None:
        self._claiming = False
        self._endpoint.learn_time(claimed.now, asked_at)
        self._endpoint.keeper.confirmed(posted, claimed.statuses)
        self._endpoint.keeper.hold(claimed.deliveries)
        if channel is not None:
            if claimed.deliveries:
                self._served = channel
            for delivery in claimed.deliveries:
                channel.qos.reserve(delivery.token)
                self._inbox.append((channel, delivery))
            if not claimed.left:
                self._hungry.discard(channel)
            if claimed.kept and channel in self._channels:
                self._sated.add(channel)
        if claimed.problem:
            self._complaints.utter(claimed.problem)
        # Counted from when the claim left: its answer may be late, and be read late.
        self._due_at = None if claimed.wake_in is None else asked_at + claimed.wake_in
        busy = claimed.deliveries or claimed.kept
        if channel and busy and not self._bell.rings_for.isdisjoint(channel.queues):
            # Whoever is busy with these must not be woken for more of them.
            self._hush()

    def _claim_lost(self, owed: set[str], posted: list[Posted]) -> None:
        self._claiming = False
        self._owed |= owed
        self._endpoint.keeper.put_back(posted)

    def _finish_claim(self) -> None:
        """Reads the reply that is under way, so that its messages can be given back."""
        if self._claiming and self._wire is not None:
            try:
                self._wire.receive_all(self._endpoint.options.socket_timeout)
            except LOST as error:
                self._lose(error)

    # -- the bell ----------------------------------------------------------------

    def _listen(self) -> None:
        """Has the server wake us as soon as one of our queues has claimable work."""
        if self._claiming or self.has_messages():
            return
        queues = frozenset(
            queue
            for channel in self._channels
            if channel not in self._hungry | self._sated and channel.qos.credit()
            for queue in channel.queues
        )
        if not queues:
            return
        if self._wire is not None and self._wire.fileno() is None:
            # A server inside this process cannot hold a pop: ask again soon.
            self._hungry.update(self._channels)
        elif not self._bell.rings_for:
            self._bell.ring_for(queues)
        elif not queues <= self._bell.rings_for:
            self._hush()

    def _woken(self, queue: str | None) -> None:
        if queue is None:
            # Somebody may have died with our marker in his hand: look, but once for all.
            if len(self._channels) == 1:
                self._hungry.update(self._channels)
            else:
                self._owed.update(queue for channel in self._channels for queue in channel.queues)
            return
        self._owed.add(queue)
        self._hungry.update(channel for channel in self._channels if queue in channel.queues)

    def _hush(self, wait: bool = False) -> None:
        """Ends the blocking pop, because it is for the wrong queues or the wrong time."""
        bell = self._bell
        if not bell.rings_for or self._wire is None:
            return
        try:
            self._ask([bell.silencer()])
            end = time.monotonic() + self._endpoint.options.socket_timeout
            while wait and bell.rings_for:
                bell.receive()
                if time.monotonic() >= end:
                    raise ConnectionLost('a blocking pop did not end')
                # The request may have overtaken the pop that it should end.
                self._ask([bell.silencer()])
                self._wire.receive_all(self._endpoint.options.socket_timeout)
        except LOST as error:
            self._lose(error)

    def _repay(self) -> None:
        """Whoever popped a marker must claim, also as the last thing that it does."""
        if self._channels or not self._owed or self._wire is None:
            return
        try:
            self._ask([self._claim(None, list(self._owed), 0)])
            self._wire.receive_all(self._endpoint.options.socket_timeout)
        except LOST as error:
            self._lose(error)
