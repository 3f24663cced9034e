"""What a throttle allows: so many at once, and so many in a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from kombu_reliable.errors import InvalidArgument

__all__ = ('DEFAULT_BURST', 'QUEUE_LIMIT', 'Limit', 'check_name', 'interval')

#: How many may start at once after a pause; with 1, every start that is a little late is lost.
DEFAULT_BURST = 3

#: The throttle of a queue is called by this and the name of the queue.
QUEUE_LIMIT = 'queue:'

#: Larger numbers mean nothing.
MOST = 2**31

LONGEST_NAME = 1_000

_PERIODS = {
    's': 1, 'sec': 1, 'second': 1, 'm': 60, 'min': 60, 'minute': 60,
    'h': 3_600, 'hour': 3_600, 'd': 86_400, 'day': 86_400,
}  # fmt: skip
_RATE = re.compile(r'\s*(\d{1,9}(?:\.\d{1,6})?)\s*/\s*(\d{1,6})?\s*([a-z]+)\s*', re.ASCII)


def interval(rate: str) -> float:
    """The milliseconds between two starts; 0 for a rate of 0, at which nothing starts.

    Args:
        rate: a number, a slash, and ``s``, ``m``, ``h`` or ``d``, or a number of these.

    Raises:
        InvalidArgument: it cannot be understood.

    Example:
        >>> interval('100/m')
        600.0
        >>> interval('1/10s')
        10000.0
    """
    match = _RATE.fullmatch(rate) if isinstance(rate, str) else None
    period = _PERIODS.get(match[3]) if match else None
    if match is None or period is None or int(match[2] or 1) == 0:
        raise InvalidArgument(
            f'rate {rate!r:.100} is not a number, 0 or more, per s, m, h or d: '
            "'100/m' is a hundred a minute, '1/10s' one in ten seconds"
        )
    count = float(match[1])
    return 1000 * period * int(match[2] or 1) / count if count else 0.0


def check_name(name: Any) -> str:
    """The name of a throttle, which may consist of any characters.

    Raises:
        InvalidArgument: it is no text of 1 to 1,000 bytes.
    """
    try:
        length = len(name.encode()) if isinstance(name, str) else 0
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= LONGEST_NAME:
        raise InvalidArgument(
            f'a throttle has a name of 1 to {LONGEST_NAME} bytes, not {name!r:.100}'
        )
    return str(name)


@dataclass(frozen=True, slots=True)
class Limit:
    """Limits of a throttle.

    Args:
        concurrency: how many jobs run at once; 0 stops the throttle, None is no limit.
        rate: how many start in a time, ``'100/m'``; ``'0/m'`` stops it, None is no limit.
        burst: how many may start at once after a pause; None means :data:`DEFAULT_BURST`.

    Raises:
        InvalidArgument: these make no sense.
    """

    concurrency: int | None = None
    rate: str | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (('concurrency', self.concurrency, 0), ('burst', self.burst, 1)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < MOST:
                raise InvalidArgument(
                    f'{name} {value!r:.100} is not a whole number from {least} on'
                )
        if self.rate is not None:
            interval(self.rate)
        elif self.burst is not None:
            raise InvalidArgument('burst means nothing without a rate')

    @property
    def stopped(self) -> bool:
        """Whether nothing may start."""
        return self.concurrency == 0 or (self.rate is not None and interval(self.rate) == 0)

    @property
    def fields(self) -> tuple[str, str, str, str]:
        """As the scripts read it: concurrency, ms between two starts, burst, the rate as given;
        ``''`` for no limit."""
        between = interval(self.rate) if self.rate is not None else 0.0
        return (
            '0' if self.stopped else '' if self.concurrency is None else str(self.concurrency),
            repr(between) if between else '',
            str(self.burst or DEFAULT_BURST) if between else '',
            self.rate or '',
        )
