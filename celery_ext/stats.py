"""What tasks have cost: how long they waited and ran, and how often they failed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any

from kombu_reliable import InvalidArgument, Stats

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('Statistics',)

#: By what statistics can be told apart.
PARTS = ('day', 'queue', 'task')

#: More days are not kept.
LONGEST = 31


class Statistics:
    """The statistics of an app, by queue, task and day.  Days are those of the server's clock, in
    UTC.  They are kept for 30 days.

    Example:
        >>> ext.stats(queue='mail').run.percentile(0.95)
        0.481
        >>> ext.stats(task='shop.mail.send', days=7).failed
        3
        >>> for one in ext.stats.by('task', days=7): print(one.task, one.wait.mean)
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def __call__(
        self,
        queue: str | None = None,
        task: str | None = None,
        day: date | str | None = None,
        days: int = 1,
    ) -> Stats:
        """All that was counted, in one.

        Args:
            queue: only this queue.
            task: only this task, by its name.
            day: the last day, as a date or as ``'2026-11-23'``; today unless given.
            days: how many days, up to that one.
        """
        total = sum(self._read(queue, task, day, days), Stats())
        wanted = {'queue': queue, 'task': task, 'day': self._days(day, 1)[0] if days == 1 else None}
        return _with(total, wanted)

    def by(
        self,
        *parts: str,
        queue: str | None = None,
        task: str | None = None,
        day: date | str | None = None,
        days: int = 1,
    ) -> list[Stats]:
        """The same, told apart by any of ``'day'``, ``'queue'`` and ``'task'``, in order."""
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise InvalidArgument(f'tell statistics apart by {", ".join(PARTS)}, not {unknown}')
        found: dict[tuple[Any, ...], Stats] = {}
        for one in self._read(queue, task, day, days):
            key = tuple(getattr(one, part) for part in parts)
            found[key] = found[key] + one if key in found else one
        # Those of one pair are not told to be of that pair unless it was asked.
        return [
            _with(found[key], dict.fromkeys(PARTS) | dict(zip(parts, key, strict=True)))
            for key in sorted(found)
        ]

    def _read(
        self, queue: str | None, task: str | None, day: date | str | None, days: int
    ) -> Iterable[Stats]:
        chosen = self._days(day, days)
        found: list[Stats] = self._extension.store.stats.read(chosen, queue, task)
        return found

    def _days(self, day: date | str | None, days: int) -> list[date]:
        if isinstance(days, bool) or not isinstance(days, int) or not 1 <= days <= LONGEST:
            raise InvalidArgument(f'days={days!r} is not a number from 1 to {LONGEST}')
        last = self._extension.store.stats.today() if day is None else _date(day)
        return [last - timedelta(days=back) for back in reversed(range(days))]

    def __repr__(self) -> str:
        return f'<Statistics of {self._extension.app.main or "app"}>'


def _date(day: Any) -> date:
    if isinstance(day, str):
        try:
            return date.fromisoformat(day)
        except ValueError:
            raise InvalidArgument(f'{day!r:.100} is not a day like 2026-11-23') from None
    if type(day) is not date:
        raise InvalidArgument(f'{day!r:.100} is not a date')
    return day


def _with(stats: Stats, names: dict[str, Any]) -> Stats:
    return replace(stats, **names)
