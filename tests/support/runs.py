"""When tasks ran, by what they wrote themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.workers import Ledger

__all__ = ('Run', 'most_at_once', 'refill_times', 'runs_of', 'starts_in_a_window')


@dataclass(frozen=True)
class Run:
    """One run of a task.

    Args:
        id: of the task.
        pid: of the process that ran it.
        value: what it was called with.
        start: seconds since the epoch.
        end: None if it was never written.
    """

    id: str
    pid: int
    value: Any
    start: float
    end: float | None


def runs_of(ledger: Ledger, deaths: Mapping[int, float] | None = None) -> list[Run]:
    """All runs in the order in which they started.

    Args:
        ledger: where tasks have written ``started`` and ``ended``.
        deaths: when processes were killed: what they ran has ended then.
    """
    open_runs: dict[tuple[str, int], dict[str, Any]] = {}
    found: list[Run] = []
    for entry in ledger.lines():
        key = (entry['id'], entry['pid'])
        if entry['event'] == 'started':
            open_runs[key] = entry
        elif entry['event'] == 'ended':
            begun = open_runs.pop(key)
            found.append(Run(*key, begun['value'], begun['at'], entry['at']))
    for key, begun in open_runs.items():
        died = (deaths or {}).get(key[1])
        found.append(Run(*key, begun['value'], begun['at'], died))
    return sorted(found, key=lambda run: run.start)


def most_at_once(runs: Iterable[Run]) -> int:
    """How many ran at the same time at most."""
    moments = []
    for run in runs:
        moments.append((run.start, 1))
        if run.end is not None:
            moments.append((max(run.start, run.end), -1))
    running = most = 0
    for _, change in sorted(moments):
        running += change
        most = max(most, running)
    return most


def refill_times(runs: Iterable[Run], slots: int) -> list[float]:
    """How long it took, each time, from an end to the start that took the slot."""
    runs = list(runs)
    starts = sorted(run.start for run in runs)
    ends = sorted(run.end for run in runs if run.end is not None)
    return [start - end for end, start in zip(ends, starts[slots:], strict=False)]


def starts_in_a_window(runs: Iterable[Run], seconds: float) -> int:
    """How many started within a time of this length at most."""
    starts = sorted(run.start for run in runs)
    most = first = 0
    for at, start in enumerate(starts):
        while start - starts[first] > seconds:
            first += 1
        most = max(most, at - first + 1)
    return most
