"""The schedules of an app as things that one can look at and change, wherever they came from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from celery.result import AsyncResult

from celery_ext.away import AWAY
from celery_ext.broker import require
from celery_ext.definition import CHANGEABLE, Definition, define, read_definition
from celery_ext.errors import InvalidSchedule, UnknownSchedule
from celery_ext.firing import ask_for_run
from celery_ext.moments import moment
from celery_ext.ticks import TICKS
from celery_ext.timetable import timetable
from kombu_reliable import AFTER_RUN, ScheduleInfo, ScheduleStore, Timing, WrongState

if TYPE_CHECKING:
    from celery_ext.beat import Scheduler as Scheduler
    from celery_ext.installation import Extension

__all__ = ('Run', 'Schedule', 'ScheduleState', 'Schedules')

ScheduleState = Literal['active', 'paused', 'ended', 'orphaned']

#: How often a change is tried that others get ahead of.
TRIES = 5


@dataclass(frozen=True)
class Run:
    """Something that happened to a schedule.

    Args:
        at: when.
        event: ``fired``, ``asked`` (somebody had it run), ``skipped``, ``missed``, ``error``,
            ``paused``, ``resumed``, ``changed``, ``orphaned``.
        scheduled_for: the occurrence; of ``missed`` the first one.
        until: of ``missed`` the last one.
        id: of the task, if one was published.
        detail: why.
    """

    at: datetime
    event: str
    scheduled_for: datetime | None = None
    until: datetime | None = None
    id: str | None = None
    detail: str = ''


class Schedule:
    """One schedule, as it was when it was looked up; :meth:`refresh` looks again.

    Example:
        >>> nightly = ext.schedules['nightly']
        >>> nightly.next_run
        datetime.datetime(2026, 3, 1, 3, 0, tzinfo=datetime.timezone.utc)
        >>> nightly.pause()
    """

    def __init__(self, extension: Extension, info: ScheduleInfo) -> None:
        self._extension = extension
        self._info = info

    @property
    def _store(self) -> ScheduleStore:
        return self._extension.schedules.store

    # -- looking -----------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._info.name

    @property
    def definition(self) -> Definition:
        """What it is, in full.

        Raises:
            InvalidSchedule: this version cannot read it.
        """
        return read_definition(self._info)

    @property
    def task(self) -> str:
        """The name of the task."""
        return self.definition.task

    @property
    def when(self) -> str:
        """Its calendar in words: ``every 5 min``, ``0 4 * * * Europe/Berlin``."""
        try:
            return str(timetable(self._info.when))
        except InvalidSchedule:
            return self._info.when

    @property
    def state(self) -> ScheduleState:
        """``active``; ``paused``; ``ended``: nothing more will come; ``orphaned``: no program that
        lives declares it any more, and it does not fire."""
        if self._info.paused:
            return 'paused'
        if self._info.orphaned:
            return 'orphaned'
        return 'ended' if self._info.at is None else 'active'

    @property
    def paused(self) -> bool:
        return self._info.paused

    @property
    def declared(self) -> bool:
        """Whether code declares it."""
        return self._info.declared

    @property
    def next_run(self) -> datetime | None:
        """When it fires next; None if it does not, or if that is known only when the run that
        goes on has ended."""
        return moment(self._info.due) if self.state == 'active' else None

    @property
    def last_run(self) -> datetime | None:
        """When it fired last."""
        return moment(self._info.fired)

    @property
    def runs(self) -> int:
        """How often it fired by itself."""
        return self._info.count

    def history(self, limit: int = 20) -> list[Run]:
        """What it did, the newest first; the last 50 entries are kept."""
        return [_run(at, line) for at, line in self._store.history(self.name, limit)]

    def refresh(self) -> Schedule:
        """Looks again.

        Raises:
            UnknownSchedule: it was deleted.
        """
        self._info = self._extension.schedules[self.name]._info
        return self

    # -- acting ------------------------------------------------------------------

    def pause(self) -> bool:
        """Nothing fires until :meth:`resume`; what comes due meanwhile is not made up.

        Returns False if it was paused already.
        """
        if self.refresh().paused:
            return False
        self._change({'paused': '1'}, Timing(None), 'paused')
        return True

    def resume(self) -> bool:
        """Lets it go on.  Returns False if it was not paused."""
        if not self.refresh().paused:
            return False
        self._change({'paused': ''}, self.definition.first(self._info.read_at), 'resumed')
        return True

    def run_now(self) -> AsyncResult[Any]:
        """Has it run once more, now.  Its occurrences stay as they are.

        Raises:
            WrongState: the last run has not ended, and two must not overlap; or its queue pauses.
        """
        for _ in range(TRIES):
            extension = self._extension
            task_id, fired = ask_for_run(extension.app, extension.store, self.refresh()._info)
            if fired.outcome == 'fired':
                with contextlib.suppress(*AWAY):  # an error here would mean that it did not run
                    self.refresh()
                return extension.app.AsyncResult(task_id)
            if fired.outcome == 'overlap':
                raise WrongState(f'the last run of {self.name!r} has not ended', 'overlap')
            if fired.outcome == 'refused':
                raise WrongState(f'what {self.name!r} publishes was refused', 'refused')
            if fired.outcome == 'paused':
                raise WrongState(f'the queue to which {self.name!r} publishes is paused', 'paused')
        raise self._busy()

    def update(self, **settings: Any) -> Schedule:
        """Changes it.  If code declares it this holds until the code says something new.

        Args:
            settings: as :meth:`.Schedules.create` takes them.  What is not named stays, the time
                zone of a crontab included; offset and relative go with ``every``.

        Raises:
            InvalidSchedule: something makes no sense; nothing was changed.

        Example:
            >>> ext.schedules['nightly'].update(every='30 4 * * *', queue='slow')
        """
        for _ in range(TRIES):
            info = self.refresh()._info
            old = read_definition(info)
            new = _changed(self._extension.app, old, settings)
            timing = None
            same_time = (new.when, new.start) == (old.when, old.start)
            if not same_time or info.at is None:
                timing = new.first(info.read_at)
            fields = {'when': new.when, 'spec': new.spec, 'rules': new.rules}
            if info.paused:
                timing = Timing(None)
            if self._put(fields, timing, info.revision, 'changed'):
                return self.refresh()
        raise self._busy()

    def delete(self) -> bool:
        """Removes it.  If code declares it, it comes back when the code says something new.

        Returns False if it was gone already.
        """
        return self._store.delete(self.name)

    def _change(self, fields: dict[str, str], timing: Timing, event: str) -> None:
        if not self._put(fields, timing, '*', event):
            raise UnknownSchedule(f'there is no schedule {self.name!r} any more')
        self.refresh()

    def _put(
        self, fields: dict[str, str], timing: Timing | None, revision: str, event: str
    ) -> bool:
        return self._store.put(self.name, fields, timing, revision, {'event': event})

    def _busy(self) -> WrongState:
        return WrongState(f'others are changing {self.name!r}; try again')

    def __repr__(self) -> str:
        return f'<Schedule {self.name}: {self.when}, {self.state}>'


class Schedules:
    """All schedules, by name.

    Example:
        >>> ext.schedules.create('nightly', 'shop.report', every='0 3 * * *', zone='Europe/Berlin')
        >>> ext.schedules['nightly'].run_now()
        >>> for schedule in ext.schedules: print(schedule.name, schedule.next_run)
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    @property
    def store(self) -> ScheduleStore:
        require(self._extension.app, 'a schedule')
        return self._extension.store.schedules(TICKS)

    def __getitem__(self, name: str) -> Schedule:
        """A schedule.

        Raises:
            UnknownSchedule: there is none.
        """
        found = self.get(name)
        if found is None:
            raise UnknownSchedule(f'there is no schedule {name!r}')
        return found

    def get(self, name: str) -> Schedule | None:
        """A schedule, or None."""
        info = self.store.get(name)
        return None if info is None else Schedule(self._extension, info)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[Schedule]:
        return iter(self.page(limit=None))

    def __len__(self) -> int:
        return len(self.store)

    def __bool__(self) -> bool:
        return True

    def names(self) -> list[str]:
        """The names of all, in the order in which they fire next."""
        return self.store.names()

    def page(self, offset: int = 0, limit: int | None = 100) -> list[Schedule]:
        """A part of them, in the order in which they fire next; those that do not stand last."""
        store = self.store
        found = store.read(store.names(offset, limit))
        return [Schedule(self._extension, info) for info in found if info is not None]

    def create(self, name: str, task: Any, every: Any, **settings: Any) -> Schedule:
        """Makes a schedule.

        Args:
            name: of the schedule.
            task: a task, its name, or a signature.
            every: seconds, a timedelta, a ``crontab``, ``"0 3 * * *"``, or a ``solar`` event.
            settings: see :func:`celery_ext.recurring`.

        Raises:
            InvalidSchedule: something makes no sense, or the name is taken.
        """
        store = self.store
        definition = define(self._extension.app, name, task, every, **settings)
        if definition.lazy:
            raise InvalidSchedule('arguments that are computed each time stand in beat_schedule')
        fields = {'when': definition.when, 'spec': definition.spec, 'rules': definition.rules}
        if not store.put(name, fields, definition.first(store.now()), ''):
            raise InvalidSchedule(f'there is a schedule {name!r} already; update or delete it')
        return self[name]


def _run(at: int, line: dict[str, Any]) -> Run:
    def time_of(field: str) -> datetime | None:
        value = line.get(field)
        return moment(int(value)) if isinstance(value, int | float) else None

    known = moment(at)
    assert known is not None
    return Run(
        known, str(line.get('event', '')), time_of('at'), time_of('until'), line.get('id'),
        str(line.get('detail', '')),
    )  # fmt: skip


def _changed(app: Any, old: Definition, settings: dict[str, Any]) -> Definition:
    """A definition with other settings; options of the call are changed one by one."""
    if not settings:
        return old
    kept = _settings_of(old)
    for name, value in settings.items():
        if value is None and name not in CHANGEABLE:
            kept.pop(name, None)
        else:
            kept[name] = value
    calendar = {'every', 'zone', 'offset', 'relative'}
    same_calendar = calendar.isdisjoint(settings)
    if not same_calendar and 'every' not in settings:
        raise InvalidSchedule('zone, offset and relative are told together with every')
    if 'zone' not in settings:
        kept['zone'] = old.timetable.data.get('zone')
    made = define(app, old.name, **kept)
    return replace(made, when=old.when) if same_calendar else made


def _settings_of(old: Definition) -> dict[str, Any]:
    every = old.timetable.every
    return {
        **old.options,
        'task': old.task,
        'every': timedelta(milliseconds=every) if every else '* * * * *',
        'args': list(old.args),
        'kwargs': dict(old.kwargs),
        'overlap': old.overlap,
        'after': AFTER_RUN if old.after_end else None,
        'backlog': old.backlog,
        'jitter': old.jitter / 1000,
        'start': _datetime(old.start),
        'end': _datetime(old.end),
        'max_runs': old.max_runs,
    }


def _datetime(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def __getattr__(name: str) -> Any:
    # Celery's beat is loaded by those who run it.
    if name == 'Scheduler':
        from celery_ext.beat import Scheduler

        return Scheduler
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
