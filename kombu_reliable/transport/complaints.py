"""Says now and then what stands in the way of a queue."""

from __future__ import annotations

import logging
import time

from kombu_reliable.transport.reconnect import REPEAT_WARNING

__all__ = ('Complaints',)

logger = logging.getLogger('kombu_reliable')


class Complaints:
    """Logs what a claim has met, but not each time."""

    def __init__(self) -> None:
        self._next = 0.0

    def utter(self, problem: str) -> None:
        """Says that a queue cannot be read.

        Args:
            problem: what the server said.
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPEAT_WARNING
            logger.error(
                'a queue cannot be read, a key holds foreign data: %s',
                problem.partition(' script:')[0],
            )
