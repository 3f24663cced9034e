"""What was settled and is not confirmed yet.

It is independent of connections: whoever sends settlements takes them from here, and brings them
back if no answer came.  All of it may be called from any thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kombu_reliable.types import Settlement, Status

__all__ = ('Outbox', 'Posted')


@dataclass(slots=True, eq=False)
class Posted:
    """A settlement on its way.

    Args:
        settlement: what is to be said.
        since: when it was noted, on the monotonic clock.
        sent: the server may have seen it already.
        confirmed: it has answered.
        dropped: it need not be said any more, if it was not said yet.
    """

    settlement: Settlement
    since: float
    sent: bool = False
    confirmed: bool = False
    dropped: bool = False


class Outbox:
    """Settlements in the order in which they were made."""

    def __init__(self) -> None:
        self._waiting: deque[Posted] = deque()
        self._under_way: dict[int, tuple[float, list[Posted]]] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def post(self, settlement: Settlement) -> Posted:
        """Notes a settlement: one append, also in a signal handler."""
        posted = Posted(settlement, time.monotonic())
        self._waiting.append(posted)
        return posted

    def collect(self, limit: int, waited: float = 0.0) -> list[Posted]:
        """Takes settlements to send; each must come back through one of the next two calls.

        Args:
            limit: how many at most.
            waited: only those that have waited for so many seconds.
        """
        latest = time.monotonic() - waited
        posted: list[Posted] = []
        while len(posted) < limit:
            try:
                if self._waiting[0].since > latest:
                    break
                item = self._waiting.popleft()
                if not item.dropped:
                    posted.append(item)
            except IndexError:
                break
        if posted:
            self._under_way[id(posted)] = (time.monotonic(), posted)
        return posted

    def confirmed(
        self, posted: list[Posted], statuses: Sequence[Status]
    ) -> Iterator[tuple[Posted, Status]]:
        """The server has answered; yields what it had not answered before."""
        self._under_way.pop(id(posted), None)
        for item, status in zip(posted, statuses, strict=True):
            if not item.confirmed:
                item.confirmed = True
                yield item, status

    def put_back(self, posted: list[Posted]) -> None:
        """No answer came; the server may or may not have seen them."""
        if self._under_way.pop(id(posted), None) is None:
            return
        for item in reversed(posted):
            if not item.confirmed:
                item.sent = True
                self._waiting.appendleft(item)

    def recall_overdue(self, patience: float) -> None:
        """Takes back what somebody sent ``patience`` seconds ago and has not read the answer to:
        he may be busy for long, or have lost his connection without noticing it."""
        for since, posted in list(self._under_way.values()):
            if time.monotonic() - since >= patience:
                self.put_back(posted)
