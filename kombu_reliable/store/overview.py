"""The whole namespace in figures, for those who watch it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu_reliable.scripts import Call
from kombu_reliable.types import QueueCounts

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Overview', 'QueueFigures', 'overview')

#: Queues that one call may look at.
STEP = 100

_FIELDS = 8


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """One queue.

    Args:
        counts: its jobs, by state.
        oldest: for how many seconds the job has waited that is ready or throttled and waits for
            longest; None if there is none.
    """

    counts: QueueCounts
    oldest: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """The namespace.

    Args:
        queues: by name.
        leases_lost: how many leases were taken back, ever.
        fenced: how many settlements came too late, ever.
        trimmed: how many dead letters were deleted by retention, ever.
        untold: how many ends were not told because too many waited, ever.
    """

    queues: dict[str, QueueFigures]
    leases_lost: int
    fenced: int
    trimmed: int
    untold: int


def overview(store: Store, names: Sequence[str]) -> Overview:
    """Looks at some queues, in one round trip.

    Args:
        store: where they are.
        names: of the queues.
    """
    steps = [names[at : at + STEP] for at in range(0, len(names), STEP)] or [()]
    calls = [_call(store, step) for step in steps]
    queues: dict[str, QueueFigures] = {}
    for step, reply in zip(steps, store.run_all(calls), strict=True):
        lost, fenced, trimmed, untold = reply[1:5]
        figures = reply[5:]
        for number, name in enumerate(step):
            queues[name] = _figures(figures[number * _FIELDS : (number + 1) * _FIELDS])
    return Overview(queues, lost, fenced, trimmed, untold)


def _call(store: Store, names: Sequence[str]) -> Call[list[int]]:
    return store.operations.call('overview', list, *names)


def _figures(fields: Sequence[Any]) -> QueueFigures:
    ready, delayed, waiting, leased, dead, throttled, paused, oldest = fields
    counts = QueueCounts(ready, delayed, leased, dead, waiting, bool(paused), throttled)
    return QueueFigures(counts, None if oldest < 0 else oldest / 1000)
