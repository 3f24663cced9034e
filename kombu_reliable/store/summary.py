"""Durations in a few numbers: count, mean, spread, and a histogram that percentiles come from.

The buckets of the histogram grow by a tenth each, so a percentile is known to a tenth of itself,
whether it is a millisecond or a day, and histograms of any workers and days can be added up.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ('EMPTY', 'Bar', 'Summary', 'Tally', 'bounds', 'bucket_of')

#: Where the second bucket begins, in milliseconds; the first one holds what is less.
BASE = 0.01
GROWTH = 1.1
#: The last bucket begins at 290 days.
LAST = 300

_SCALE = 1 / math.log(GROWTH)


def bucket_of(milliseconds: float) -> int:
    """The bucket of a duration."""
    if milliseconds < BASE:
        return 0
    return min(LAST, 1 + int(math.log(milliseconds / BASE) * _SCALE))


def bounds(bucket: int) -> tuple[float, float]:
    """Where a bucket begins and ends, in milliseconds."""
    if bucket <= 0:
        return 0.0, BASE
    low = BASE * GROWTH ** (bucket - 1)
    return low, low * GROWTH


class Tally:
    """Durations as they are counted, in milliseconds."""

    __slots__ = ('buckets', 'count', 'high', 'low', 'mean', 'squares')

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, 0.0
        self.buckets: dict[int, int] = {}

    def add(self, milliseconds: float) -> None:
        self.count += 1
        distance = milliseconds - self.mean
        self.mean += distance / self.count
        self.squares += distance * (milliseconds - self.mean)
        if milliseconds < self.low:
            self.low = milliseconds
        if milliseconds > self.high:
            self.high = milliseconds
        bucket = bucket_of(milliseconds)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def fields(self) -> list[Any]:
        """As ``lua/ops/count.lua`` reads them."""
        if not self.count:
            return []
        pairs = [number for pair in self.buckets.items() for number in pair]
        return [self.count, self.mean, self.squares, self.low, self.high, pairs]


@dataclass(frozen=True, slots=True)
class Bar:
    """A part of a histogram: how many durations were from ``low`` to ``high`` seconds."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of many durations; all times are in seconds.

    Args:
        count: how many there were.
        mean: their mean.
        stdev: their standard deviation.
        min: the shortest.
        max: the longest.
        buckets: number of a bucket and how many fell into it, in order.

    Example:
        >>> stats.run.percentile(0.95)
        0.481
    """

    count: int = 0
    mean: float = 0.0
    stdev: float = 0.0
    min: float = 0.0
    max: float = 0.0
    buckets: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def read(kind: str, fields: Mapping[str, str]) -> Summary:
        """From the fields of a stored hash.

        Args:
            kind: ``'w'`` for waits, ``'r'`` for runs.
            fields: what the hash holds.
        """
        count = int(float(fields.get(f'{kind}_count', 0)))
        if not count:
            return EMPTY
        mean, squares, low, high = (
            float(fields[f'{kind}_{name}']) for name in ('mean', 'squares', 'min', 'max')
        )
        buckets = sorted(
            (int(name[1:]), int(often))
            for name, often in fields.items()
            if name[:1] == kind and name[1:].isdigit()
        )
        return Summary(
            count, mean / 1000, math.sqrt(max(0.0, squares) / count) / 1000, low / 1000,
            high / 1000, tuple(buckets),
        )  # fmt: skip

    @staticmethod
    def of(seconds: Iterable[float]) -> Summary:
        """Of durations that are all at hand.

        Example:
            >>> Summary.of([1.0, 3.0]).mean
            2.0
        """
        tally = Tally()
        for one in seconds:
            tally.add(one * 1000)
        if not tally.count:
            return EMPTY
        return Summary(
            tally.count, tally.mean / 1000, math.sqrt(tally.squares / tally.count) / 1000,
            tally.low / 1000, tally.high / 1000, tuple(sorted(tally.buckets.items())),
        )  # fmt: skip

    def __add__(self, other: Summary) -> Summary:
        if not (self.count and other.count):
            return self if self.count else other
        count = self.count + other.count
        distance = other.mean - self.mean
        squares = self.count * self.stdev**2 + other.count * other.stdev**2
        squares += distance * distance * self.count * other.count / count
        merged = dict(self.buckets)
        for bucket, often in other.buckets:
            merged[bucket] = merged.get(bucket, 0) + often
        return Summary(
            count, self.mean + distance * other.count / count, math.sqrt(squares / count),
            min(self.min, other.min), max(self.max, other.max), tuple(sorted(merged.items())),
        )  # fmt: skip

    @property
    def total(self) -> float:
        """Their sum."""
        return self.mean * self.count

    def percentile(self, share: float) -> float:
        """What this share of the durations did not exceed, to a tenth; 0 if there were none.

        Args:
            share: from 0 to 1; 0.5 for the median.
        """
        if not 0 <= share <= 1:
            raise ValueError(f'{share!r} is not a share from 0 to 1')
        wanted, passed = share * self.count, 0
        for bucket, often in self.buckets:
            if passed + often >= wanted:
                low, high = bounds(bucket)
                part = (wanted - passed) / often
                at = low * (high / low) ** part if low else high * part
                return max(self.min, min(self.max, at / 1000))
            passed += often
        return self.max

    def below(self, seconds: float) -> float:
        """How many were not longer, as far as the buckets tell."""
        found = 0.0
        for bucket, often in self.buckets:
            low, high = bounds(bucket)
            if high <= seconds * 1000:
                found += often
            elif low < seconds * 1000:
                found += often * (seconds * 1000 - low) / (high - low)
        return found

    def bars(self) -> list[Bar]:
        """The histogram, from the first bucket that is not empty to the last."""
        counts = dict(self.buckets)
        if not counts:
            return []
        span = range(min(counts), max(counts) + 1)
        return [
            Bar(bounds(number)[0] / 1000, bounds(number)[1] / 1000, counts.get(number, 0))
            for number in span
        ]


EMPTY = Summary()
