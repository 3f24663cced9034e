"""What tasks cost, by queue, task and day: how long they waited and ran, and how often they failed.

Workers count by themselves and hand over what they have once in a while; see
``lua/ops/count.lua``.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

from kombu_reliable.scripts import Call, translating
from kombu_reliable.store.summary import EMPTY, Summary, Tally

if TYPE_CHECKING:
    from kombu_reliable.store.operations import Operations
    from kombu_reliable.store.store import Store

__all__ = ('RETENTION', 'Counting', 'Stats', 'StatsReader')

#: Days for which statistics are kept.
RETENTION = 30

DAY = 86_400_000
EPOCH = date(1970, 1, 1)

#: Buckets and counters that one call may carry.
FIELDS = 500

#: Hashes that are read at once.
STEP = 200

COUNTERS = ('failed', 'retried', 'stalled')


@dataclass(frozen=True, slots=True)
class Stats:
    """What became of tasks.

    Args:
        queue: the queue from which they were taken; None for several.
        task: their name; None for several.
        day: the day (UTC, by the server's clock) on which they were counted; None for several.
        wait: how long they waited from when they were due, or ready, to their start.
        run: how long they ran, whatever came of it.
        failed: how many failed for good.
        retried: how many runs ended with a retry.
        stalled: how many runs were lost, with their worker or with their lease.
    """

    queue: str | None = None
    task: str | None = None
    day: date | None = None
    wait: Summary = EMPTY
    run: Summary = EMPTY
    failed: int = 0
    retried: int = 0
    stalled: int = 0

    def __add__(self, other: Stats) -> Stats:
        same: dict[str, Any] = {
            name: getattr(self, name) if getattr(self, name) == getattr(other, name) else None
            for name in ('queue', 'task', 'day')
        }
        counters: dict[str, Any] = {
            name: getattr(self, name) + getattr(other, name) for name in COUNTERS
        }
        return Stats(**same, wait=self.wait + other.wait, run=self.run + other.run, **counters)


class Counting:
    """What is being counted in one process, until it is handed over.

    Each call to the server has a number of its own and is repeated with it, so it counts once.
    """

    def __init__(self) -> None:
        self._lane = secrets.token_urlsafe(9)
        self._last = 0
        self._found: dict[tuple[str, str], tuple[dict[str, int], Tally, Tally]] = {}
        self._sent: list[tuple[int, list[str]]] = []

    def _of(self, queue: str, task: str) -> tuple[dict[str, int], Tally, Tally]:
        found = self._found.get((queue, task))
        if found is None:
            found = self._found[queue, task] = {}, Tally(), Tally()
        return found

    def waited(self, queue: str, task: str, seconds: float) -> None:
        self._of(queue, task)[1].add(seconds * 1000)

    def ran(self, queue: str, task: str, seconds: float) -> None:
        self._of(queue, task)[2].add(seconds * 1000)

    def happened(self, queue: str, task: str, what: str) -> None:
        """One of the counters of :class:`Stats` goes up by one."""
        counters = self._of(queue, task)[0]
        counters[what] = counters.get(what, 0) + 1

    def __bool__(self) -> bool:
        return bool(self._found or self._sent)

    def hand_over(self, store: Store) -> None:
        """Sends everything.  What fails is kept, and sent again, as it was, by the next call."""
        found, self._found = self._found, {}
        for entries in _calls(found):
            self._last = max(self._last + 1, time.time_ns() // 1000)
            self._sent.append((self._last, entries))
        while self._sent:
            number, entries = self._sent[0]
            store.repeat(count(store.operations, self._lane, number, entries))
            del self._sent[0]


def count(operations: Operations, lane: str, number: int, entries: Sequence[str]) -> Call[bool]:
    """Adds to the statistics of today; False if that call was made before."""
    return operations.call('count', bool, lane, number, RETENTION * DAY, *entries)


def _calls(found: dict[Any, Any]) -> Iterator[list[str]]:
    """The entries, in calls that are not too long."""
    entries: list[str] = []
    fields = 0
    for (queue, task), (counters, waits, runs) in found.items():
        size = len(counters) + len(waits.buckets) + len(runs.buckets)
        if entries and fields + size > FIELDS:
            yield entries
            entries, fields = [], 0
        entries.append(json.dumps([queue, task, counters, waits.fields(), runs.fields()]))
        fields += size
    if entries:
        yield entries


class StatsReader:
    """Reads what was counted.

    Args:
        store: where it is.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def today(self) -> date:
        """The day by the server's clock."""
        return datetime.fromtimestamp(self._store.now() / 1000, UTC).date()

    def read(
        self, days: Iterable[date], queue: str | None = None, task: str | None = None
    ) -> list[Stats]:
        """One entry per day, queue and task, in this order.

        Args:
            days: those that are wanted.
            queue: only this one.
            task: only this one.
        """
        found = []
        for day in days:
            number = (day - EPOCH).days
            pairs = [
                (pair, *_split(pair))
                for pair in sorted(self._pairs(number))
                if queue in (None, _split(pair)[0]) and task in (None, _split(pair)[1])
            ]
            hashes = self._hashes([self._store.keys.stats(number, pair) for pair, *_ in pairs])
            found += [
                _read(fields, day, *names)
                for (_, *names), fields in zip(pairs, hashes, strict=True)
                if fields
            ]
        return found

    def last(self, days: int) -> list[date]:
        """So many days, today the last."""
        today = self.today()
        return [today - timedelta(days=back) for back in reversed(range(days))]

    def _pairs(self, day: int) -> list[str]:
        with translating():
            members: Any = self._store.client.smembers(self._store.keys.counted(day))
        return [member.decode(errors='replace') for member in members]

    def _hashes(self, keys: Sequence[str]) -> Iterator[dict[str, str]]:
        for at in range(0, len(keys), STEP):
            with self._store.client.pipeline(transaction=False) as pipe:
                for key in keys[at : at + STEP]:
                    pipe.hgetall(key)
                for reply in pipe.execute(raise_on_error=False):
                    texts = reply if isinstance(reply, dict) else {}  # foreign data
                    yield {name.decode(): value.decode() for name, value in texts.items()}


def _split(pair: str) -> tuple[str, str]:
    """Queue and task of ``<bytes of the queue's name>:<queue><task>``."""
    length, _, rest = pair.partition(':')
    name = rest.encode()
    size = int(length) if length.isdigit() else 0
    return name[:size].decode(errors='replace'), name[size:].decode(errors='replace')


def _read(fields: dict[str, str], day: date, queue: str, task: str) -> Stats:
    counters: dict[str, Any] = {name: int(fields.get(name, 0)) for name in COUNTERS}
    waits, runs = Summary.read('w', fields), Summary.read('r', fields)
    return replace(Stats(queue, task, day, waits, runs), **counters)
