"""A connection on which the server holds one blocking pop of wake markers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import redis.exceptions

from kombu_reliable.scripts import translate
from kombu_reliable.transport.endpoint import Endpoint
from kombu_reliable.transport.line import LOST, Line, Request, must_answer
from kombu_reliable.transport.reconnect import Reconnect

__all__ = ('Bell',)

#: Longest sleep for a wake marker: what an unlucky death between pop and claim can cost.
LONGEST_SLEEP = 10.0

#: A reply that is later than its timeout by this much will not come any more, in seconds.
SLACK = 1.0


class Bell:
    """Wakes a poller as soon as one of its queues has claimable work.

    Args:
        endpoint: the server.
        woken: called with the queue whose marker was popped: its poller must claim there now.
            Called with None when nothing came for long, or when the connection was lost, which
            may have swallowed a marker.
    """

    def __init__(self, endpoint: Endpoint, woken: Callable[[str | None], None]) -> None:
        self._endpoint = endpoint
        self._woken = woken
        self._reconnect = Reconnect(endpoint, 'wake-up')
        self._sleep = min(LONGEST_SLEEP, endpoint.options.lease / 3)
        self._connection_id = 0
        self._silenced_at = -SLACK
        self.line: Line | None = None
        #: The queues for which it waits; empty while it is silent.
        self.rings_for: frozenset[str] = frozenset()

    def ring_for(self, queues: frozenset[str]) -> None:
        """Starts to wait, unless the server cannot be reached yet."""
        try:
            line = self.line or self._open()
            if line is None:
                return
            spell = self._endpoint.operations.keys.wake
            names = {spell(queue).encode(): queue for queue in sorted(queues)}
            # Rounded up, or the server would give up before its time is over.
            timeout = math.ceil(self._sleep * 1000) / 1000
            self.rings_for = queues
            line.send(
                [Request(('BZPOPMIN', *names, timeout), lambda reply: self._rung(names, reply))]
            )
        except LOST as error:
            self.lose(error)

    def _open(self) -> Line | None:
        line = self._reconnect.open()
        if line is None:
            return None
        self.line = line

        def know_id(reply: Any) -> None:
            if isinstance(reply, redis.exceptions.ResponseError):
                raise translate(reply)
            self._connection_id = reply

        line.send([Request(('CLIENT', 'ID'), know_id)])
        line.receive_all(self._endpoint.options.socket_timeout)
        return line

    def _rung(self, names: dict[bytes, str], reply: Any) -> None:
        self.rings_for = frozenset()
        if isinstance(reply, redis.exceptions.ResponseError):
            if 'WRONGTYPE' not in str(reply):
                raise translate(reply)
            reply = None  # foreign data instead of a marker; the next claim clears it away
        elif reply is None and time.monotonic() - self._silenced_at < SLACK:
            return  # ended by ourselves, which is no reason to look
        self._woken(None if reply is None else names[reply[0]])

    def silencer(self) -> Request:
        """What ends the wait, sent on another connection."""
        self._silenced_at = time.monotonic()
        return Request(('CLIENT', 'UNBLOCK', self._connection_id))

    def receive(self) -> None:
        """Handles the answer, if it has arrived."""
        if self.line is None:
            return
        try:
            self.line.receive()
        except LOST as error:
            self.lose(error)

    def check_silence(self) -> None:
        try:
            must_answer(self.line, self._sleep + SLACK)
        except LOST as error:
            self.lose(error)

    def lose(self, error: Exception) -> None:
        self.drop()
        self._woken(None)
        self._reconnect.failed(error)

    def drop(self) -> None:
        line, self.line = self.line, None
        self.rings_for = frozenset()
        if line is not None:
            line.close()
