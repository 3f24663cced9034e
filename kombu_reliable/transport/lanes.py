"""Numbers for publishes, so that a repeated one is known as such.

Every thread that publishes owns a lane and numbers what it sends in it upwards, from the time of
its clock: the server forgets the lanes with the lowest numbers when there are too many.  A thread
repeats a publish before it makes the next one, so the server needs to remember only the last
number of each lane.  A thread that ends leaves its lane to the next one: the number of lanes
is that of threads that publish at the same time.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ('Nonce', 'abandon_lane', 'next_nonce')


class Nonce(NamedTuple):
    """The numbers ``first`` to ``first + size - 1`` of a lane."""

    lane: str
    first: int
    size: int


@dataclass(slots=True)
class _Lane:
    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    last: int = 0


class _Tenancy:
    """A thread's hold on a lane; it dies with the thread's locals."""

    def __init__(self, vacant: deque[_Lane]) -> None:
        self._vacant = vacant
        self.move()

    def move(self) -> None:
        try:
            self.lane = self._vacant.pop()
        except IndexError:
            self.lane = _Lane()

    def __del__(self) -> None:
        self._vacant.append(self.lane)


class _Lanes:
    def __init__(self) -> None:
        self.vacant: deque[_Lane] = deque()
        self.local = threading.local()

    def tenancy(self) -> _Tenancy:
        try:
            tenancy: _Tenancy = self.local.tenancy
        except AttributeError:
            tenancy = self.local.tenancy = _Tenancy(self.vacant)
        return tenancy


_lanes = _Lanes()


def _start_anew() -> None:
    """A forked child must not continue its parent's lanes."""
    global _lanes
    _lanes = _Lanes()


os.register_at_fork(after_in_child=_start_anew)


def next_nonce(count: int = 1) -> Nonce:
    """Takes the next ``count`` numbers of this thread's lane."""
    lane = _lanes.tenancy().lane
    first = max(lane.last + 1, time.time_ns() // 1000)
    lane.last = first + count - 1
    return Nonce(lane.id, first, count)


def abandon_lane(nonce: Nonce) -> None:
    """Leaves a lane to a publish that may be repeated: what this thread sends meanwhile must not
    move the lane's last number past it."""
    tenancy = _lanes.tenancy()
    if tenancy.lane.id == nonce.lane:
        tenancy.move()
