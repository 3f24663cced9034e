"""How old a message is, whatever happens to the clocks of this machine.

A stream's entry carries the server's time.  We know the server's clock by its distance from a
clock of our own that nobody sets, and which goes on while the process is stopped or the machine
sleeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kombu_reliable.transport.line import Request

__all__ = ('ServerClock', 'now')

_CLOCK = getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC)


def now() -> float:
    """Seconds on a clock that never jumps and never stops."""
    return time.clock_gettime(_CLOCK)


class ServerClock:
    """The clock of a server, as far as it is known."""

    #: How often it is asked before a slow answer is taken.
    TRIES = 3

    #: An answer that took longer, in seconds, says too little: this process may have been
    #: stopped while it waited.
    PROMPT = 0.5

    def __init__(self) -> None:
        self._ahead: float | None = None
        self._slow = 0

    @property
    def known(self) -> bool:
        return self._ahead is not None

    def forget(self) -> None:
        self._ahead, self._slow = None, 0

    def question(self, then: Callable[[], None] = lambda: None) -> Request:
        """Asks the server for its time.

        Args:
            then: called once the answer has been taken in.
        """
        asked = now()
        self._ahead = None

        def answered(reply: Any) -> None:
            self._learn(asked, reply)
            then()

        return Request(('TIME',), answered)

    def _learn(self, asked: float, reply: Any) -> None:
        if isinstance(reply, Exception):
            raise reply
        if now() - asked > self.PROMPT and self._slow < self.TRIES - 1:
            self._slow += 1
            return
        self._slow = 0
        seconds, micros = reply
        # Rather too far ahead, by the way of the answer, than too little: what seems fresh is.
        self._ahead = int(seconds) + int(micros) / 1e6 - asked

    def age(self, moment: float) -> float | None:
        """Seconds since a moment of the server's clock; None if its clock is not known."""
        if self._ahead is None:
            return None
        return now() + self._ahead - moment
