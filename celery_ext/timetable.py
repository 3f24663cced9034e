"""When a schedule fires: Celery's own calendars as data, and their occurrences as numbers.

Celery's schedules answer "is it due, now that it is so late?".  Here the question is "what comes
after this occurrence?", whoever asks and whatever his clock says.  The arithmetic is Celery's, so
crontabs meet daylight saving time as they do in ``celery beat``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from celery.exceptions import ImproperlyConfigured
from celery.schedules import BaseSchedule, crontab, schedule, solar

from celery_ext.errors import InvalidSchedule

__all__ = ('Timetable', 'encode_when', 'timetable')

#: The shortest interval, in milliseconds.
SHORTEST = 10

#: The longest, and how far ahead the next occurrence is looked for at most.
LONGEST = 100 * 366 * 86_400_000

_CRON_FIELDS = ('minute', 'hour', 'day_of_week', 'day_of_month', 'month_of_year')

#: Celery computes the end of a wait and subtracts what it takes for now.
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


# -- as data ---------------------------------------------------------------------


def encode_when(
    when: Any, app: Any, *, zone: str | None = None, offset: Any = None, relative: bool = False
) -> str:
    """A calendar as JSON.

    Args:
        when: seconds, a timedelta, or a :class:`~celery.schedules.crontab`,
            :class:`~celery.schedules.schedule` or :class:`~celery.schedules.solar`.
        app: knows the time zone in which crontabs are read unless ``zone`` is given.
        zone: name of a time zone, as ``Europe/Berlin``.
        offset: of an interval: it fires at whole multiples since 1970, UTC, plus this many
            seconds.  Without one it counts from when it was made.
        relative: of an interval: rounded as Celery does.

    Raises:
        InvalidSchedule: it makes no sense, or never fires.
    """
    data = _encode(when, app, zone, offset, relative)
    text = json.dumps(data, sort_keys=True)
    timetable(text).after(int(_EPOCH.timestamp() * 1000))
    return text


def _encode(when: Any, app: Any, zone: str | None, offset: Any, relative: bool) -> dict[str, Any]:
    if zone is not None:
        _zone(zone)
    if isinstance(when, str):
        when = _from_text(when)
    if isinstance(when, schedule):
        relative = relative or bool(when.relative)
        when = when.run_every
    if isinstance(when, timedelta):
        when = when.total_seconds()
    if isinstance(when, int | float) and not isinstance(when, bool):
        every = _interval(when)
        data: dict[str, Any] = {'kind': 'interval', 'every': every}
        if relative:
            data |= {'relative': True, 'zone': _zone_name(zone, app)}
        elif offset is not None:
            data['offset'] = _offset(offset) % every
        return data
    if offset is not None or relative:
        raise InvalidSchedule('offset and relative are for intervals')
    if isinstance(when, crontab):
        fields = {name: _cron_field(getattr(when, f'_orig_{name}')) for name in _CRON_FIELDS}
        return {'kind': 'crontab', **fields, 'zone': _zone_name(zone, app)}
    if isinstance(when, solar):
        return {'kind': 'solar', 'event': when.event, 'lat': when.lat, 'lon': when.lon}
    what = 'of its own class' if isinstance(when, BaseSchedule) else f'{when!r}'
    raise InvalidSchedule(
        f'a schedule is seconds, a timedelta, a crontab or a solar event of Celery, not {what}'
    )


def _from_text(text: str) -> crontab:
    """``"0 4 * * mon"``, in the order of cron."""
    try:
        return crontab.from_string(' '.join(text.split()))
    except Exception as error:
        raise InvalidSchedule(f'{text!r} is no crontab of five fields: {error}') from None


def _interval(seconds: float) -> int:
    milliseconds = seconds * 1000 if math.isfinite(seconds) else -1
    if not SHORTEST <= milliseconds <= LONGEST:
        raise InvalidSchedule(
            f'an interval of {seconds!r} s: it has to be at least {SHORTEST / 1000} s, '
            f'and at most a hundred years'
        )
    return round(milliseconds)


def _offset(offset: Any) -> int:
    if isinstance(offset, timedelta):
        offset = offset.total_seconds()
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not math.isfinite(offset):
        raise InvalidSchedule(f'offset {offset!r} is no number of seconds')
    return round(offset * 1000)


def _cron_field(value: Any) -> Any:
    return value if isinstance(value, int | str) else sorted(value)


def _zone_name(zone: str | None, app: Any) -> str | None:
    name = str(zone or getattr(app, 'timezone', None) or 'UTC')
    if zone is None and name.startswith('<'):
        return None  # a local time without a name
    _zone(name)
    return name


def _zone(name: str | None) -> tzinfo:
    if name is None:
        return datetime.now().astimezone().tzinfo or UTC
    try:
        return ZoneInfo(name)
    except Exception:
        raise InvalidSchedule(
            f'there is no time zone {name!r}; the names are those of the IANA, as Europe/Berlin'
        ) from None


# -- as occurrences --------------------------------------------------------------


@dataclass(frozen=True)
class Timetable:
    """The occurrences of a schedule, in milliseconds since the epoch.

    Args:
        data: what :func:`encode_when` has made, read back.
        step: computes what comes after a time.
    """

    data: dict[str, Any]
    step: Callable[[int], int]

    @property
    def every(self) -> int | None:
        """The interval, of a plain one."""
        plain = self.data['kind'] == 'interval' and not self.data.get('relative')
        return int(self.data['every']) if plain else None

    def after(self, at: int) -> int:
        """The occurrence that follows a time; intervals are counted from it.

        Raises:
            InvalidSchedule: there is none.
        """
        following = self.step(at)
        # In an hour that comes twice, what follows lies in its first passage.
        for _ in range(10_000):
            if following > at:
                return following
            following = self.step(following)
        raise InvalidSchedule('this schedule never fires')

    def first(self, now: int) -> int:
        """The first occurrence of a schedule that is made now."""
        return self.after(now)

    def between(self, first: int, until: int, most: int) -> list[int]:
        """The last occurrences from ``first``, which is one, up to a time; ``most`` at most."""
        if until < first or most <= 0:
            return []
        if self.every is not None:
            last = first + (until - first) // self.every * self.every
            count = min(most, (last - first) // self.every + 1)
            return [last - back * self.every for back in reversed(range(count))]
        return self._search(first, until, most)

    def _search(self, first: int, until: int, most: int) -> list[int]:
        """Looks back in growing steps, so that years cost as little as minutes."""
        window = 60_000 * most
        while until - window > first:
            found = list(self._from(self.after(until - window), until))
            if len(found) >= most:
                return found[-most:]
            window *= 4
        return list(self._from(first, until))[-most:]

    def _from(self, at: int, until: int) -> Iterator[int]:
        while at <= until:
            yield at
            at = self.after(at)

    def __str__(self) -> str:
        data = self.data
        if data['kind'] == 'interval':
            return _human(data)
        if data['kind'] == 'solar':
            return f'{data["event"]} at {data["lat"]}, {data["lon"]}'
        fields = ('minute', 'hour', 'day_of_month', 'month_of_year', 'day_of_week')
        texts = [_cron_text(data[name]) for name in fields]
        zone = '' if data['zone'] in (None, 'UTC') else f' {data["zone"]}'
        return ' '.join(texts) + zone


def _cron_text(value: Any) -> str:
    return ','.join(map(str, value)) if isinstance(value, list) else str(value)


def _human(data: dict[str, Any]) -> str:
    seconds = data['every'] / 1000
    text = f'every {seconds:g} s'
    for size, unit in ((86_400, 'd'), (3_600, 'h'), (60, 'min')):
        if seconds >= size and seconds % size == 0:
            text = f'every {seconds / size:g} {unit}'
            break
    offset = data.get('offset')
    return f'{text} +{offset / 1000:g} s' if offset else text


@lru_cache(4096)
def timetable(text: str) -> Timetable:
    """The timetable of what :func:`encode_when` has made.

    Raises:
        InvalidSchedule: it makes no sense here, as a time zone that this machine does not know.
    """
    try:
        data = json.loads(text)
        kind = data['kind']
        if kind == 'interval' and not data.get('relative'):
            return Timetable(data, _interval_step(data))
        return Timetable(data, _celery_step(_of_celery(data), _zone(data.get('zone', 'UTC'))))
    except InvalidSchedule:
        raise
    except ImproperlyConfigured as error:
        raise InvalidSchedule(' '.join(str(error).split())) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidSchedule(f'a schedule that makes no sense: {error}') from None


def _interval_step(data: dict[str, Any]) -> Callable[[int], int]:
    every, offset = int(data['every']), data.get('offset')
    if offset is None:
        return lambda at: at + every
    shift = int(offset)
    return lambda at: (at - shift) // every * every + every + shift


def _of_celery(data: dict[str, Any]) -> BaseSchedule:
    if data['kind'] == 'crontab':
        return crontab(**{name: data[name] for name in _CRON_FIELDS})
    if data['kind'] == 'solar':
        return solar(data['event'], data['lat'], data['lon'])
    if data['kind'] == 'interval':
        return schedule(timedelta(milliseconds=data['every']), relative=True)
    raise KeyError(data['kind'])


def _celery_step(calendar: BaseSchedule, zone: tzinfo) -> Callable[[int], int]:
    calendar.nowfun = lambda: _EPOCH
    calendar.__dict__['tz'] = zone  # and not that of whatever app is current

    def step(at: int) -> int:
        start = datetime.fromtimestamp(at / 1000, zone)
        try:
            ends = _EPOCH + calendar.remaining_estimate(start)
        except (RuntimeError, ValueError, OverflowError) as error:
            raise InvalidSchedule(f'this schedule never fires: {error}') from None
        following: int = math.ceil(ends.timestamp() * 1000)
        if following - at > LONGEST:
            raise InvalidSchedule('this schedule does not fire for a hundred years')
        return following

    return step
