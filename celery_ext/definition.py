"""What a schedule is: which task, when, how often, under which conditions; as data.

A definition is made where it is declared and read back wherever it fires, so it holds nothing
but what JSON, as kombu extends it, can say.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from typing import Any

from celery.canvas import Signature
from kombu import Queue
from kombu.common import Broadcast
from kombu.utils.json import dumps, loads

from celery_ext import features
from celery_ext.dependencies import normalize
from celery_ext.errors import InvalidSchedule
from celery_ext.timetable import Timetable, encode_when, timetable
from kombu_reliable import AFTER_RUN, Declaration, ScheduleInfo, Timing

__all__ = ('CHANGEABLE', 'Definition', 'define', 'is_lazy', 'read_definition')

#: Occurrences that are made up at most.
LARGEST_BACKLOG = 10_000

_DAY = 86_400_000

#: Options of a call that make no sense for one that others make later.
_FOREIGN = ('producer', 'publisher', 'connection', 'retry', 'retry_policy', 'add_to_parent')

#: What may be said of a schedule next to the options of its call.
CHANGEABLE = (
    'every', 'task', 'args', 'kwargs', 'zone', 'offset', 'relative', 'overlap', 'after', 'backlog',
    'jitter', 'start', 'end', 'max_runs',
)  # fmt: skip


@dataclass(frozen=True)
class Definition:
    """A schedule as it was declared.

    Args:
        name: of the schedule.
        task: name of the task.
        when: the calendar, see :func:`.timetable.encode_when`.
        args: positional arguments.
        kwargs: keyword arguments.
        options: for ``apply_async``: queue, priority, expires, tags ...
        overlap: whether a run may start while the last one has not ended.
        after_end: the interval is counted from the end of the last run.
        backlog: how many missed occurrences are made up.
        jitter: each fires up to so many milliseconds later.
        start: nothing fires before, ms since the epoch.
        end: nothing fires behind.
        max_runs: it ends after so many.
        lazy: its arguments are computed by the code that declares it.
    """

    name: str
    task: str
    when: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    overlap: bool = True
    after_end: bool = False
    backlog: int = 1
    jitter: int = 0
    start: int | None = None
    end: int | None = None
    max_runs: int | None = None
    lazy: bool = False

    @property
    def timetable(self) -> Timetable:
        return timetable(self.when)

    @property
    def spec(self) -> str:
        """All but name and calendar, as text."""
        own = {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if one.name not in ('name', 'when', 'overlap', 'after_end')
        }
        if self.lazy:
            own |= {'args': (), 'kwargs': {}}
        try:
            return str(dumps(own, sort_keys=True))
        except (TypeError, ValueError) as error:
            raise InvalidSchedule(
                f'schedule {self.name!r} cannot be kept as data: {error}; give arguments and '
                f'options that JSON can say'
            ) from None

    @property
    def rules(self) -> str:
        """What the server itself decides by."""
        alone = not self.overlap or self.after_end
        return json.dumps({'overlap': int(not alone), 'after': int(self.after_end)})

    @property
    def digest(self) -> str:
        text = '\n'.join((self.when, self.spec, self.rules))
        return hashlib.sha1(text.encode()).hexdigest()[:16]

    # -- times -------------------------------------------------------------------

    def first(self, now: int) -> Timing:
        """The first occurrence of a schedule that is made, or goes on, now."""
        table = self.timetable
        if self.start is not None and self.start > now:
            plain = table.every is not None and 'offset' not in table.data
            return self.timing(self.start if plain else table.after(self.start - 1))
        return self.timing(table.after(now))

    def timing(self, at: int | None) -> Timing:
        """An occurrence and when it fires; none behind the end."""
        if at is None or (self.end is not None and at > self.end):
            return Timing(None)
        return Timing(at, at + (random.randint(0, self.jitter) if self.jitter else 0))

    def declaration(self, now: int) -> Declaration:
        """As the server is told of it.

        Raises:
            InvalidSchedule: it never fires, or cannot be kept as data.
        """
        return Declaration(
            self.name, self.digest, self.when, self.spec, self.rules, self.first(now)
        )


def read_definition(info: ScheduleInfo) -> Definition:
    """The definition of a schedule that was read.

    Raises:
        InvalidSchedule: it was written by another version, or damaged.
    """
    known = {one.name for one in fields(Definition)}
    try:
        spec = loads(info.spec)
        own = {name: value for name, value in spec.items() if name in known}
        return Definition(
            name=info.name,
            when=info.when,
            overlap=bool(info.rules.get('overlap', 1)),
            after_end=bool(info.rules.get('after', 0)),
            **own,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidSchedule(f'schedule {info.name!r} cannot be read: {error}') from None


# -- from what people write ------------------------------------------------------


def define(
    app: Any,
    name: str,
    task: Any,
    every: Any,
    *,
    args: Any = (),
    kwargs: Any = None,
    zone: str | None = None,
    offset: Any = None,
    relative: bool = False,
    overlap: bool = True,
    after: str | None = None,
    backlog: int = 1,
    jitter: Any = 0,
    start: datetime | None = None,
    end: datetime | None = None,
    max_runs: int | None = None,
    **options: Any,
) -> Definition:
    """Makes a definition; see :func:`celery_ext.recurring` for what can be said.

    Raises:
        InvalidSchedule: something makes no sense.
    """
    if not isinstance(name, str) or not name:
        raise InvalidSchedule(f'a schedule has a text as its name, not {name!r}')
    if isinstance(task, Signature):
        args, kwargs = (*task.args, *args), {**task.kwargs, **(kwargs or {})}
        options = {**task.options, **options}
        task = task.task
    try:
        when = encode_when(every, app, zone=zone, offset=offset, relative=relative)
        args, kwargs, task = _args(args), _kwargs(kwargs), _task_name(task)
        definition = Definition(
            name=name, task=task, when=when, args=args, kwargs=kwargs,
            options=_routed(app, task, args, kwargs, _options(options)),
            overlap=bool(overlap), after_end=_after(after),
            backlog=_whole('backlog', backlog, 0, LARGEST_BACKLOG), jitter=_jitter(jitter),
            start=_moment(start, app), end=_moment(end, app),
            max_runs=None if max_runs is None else _whole('max_runs', max_runs, 1, 2**52),
        )  # fmt: skip
    except InvalidSchedule as error:
        raise InvalidSchedule(f'schedule {name!r}: {error}') from None
    definition = _lazily(definition)
    if definition.after_end and definition.timetable.every is None:
        raise InvalidSchedule(f"schedule {name!r}: after='end' is for intervals")
    if None not in (definition.start, definition.end) and definition.end < definition.start:  # type: ignore[operator]
        raise InvalidSchedule(f'schedule {name!r} ends before it starts')
    _ = definition.spec
    return definition


def _task_name(task: Any) -> str:
    name = task if isinstance(task, str) else getattr(task, 'name', None)
    if not isinstance(name, str) or not name:
        raise InvalidSchedule(f'{task!r} is neither a task nor the name of one')
    return name


def _args(args: Any) -> Sequence[Any]:
    if args is None:
        return ()
    if not isinstance(args, list | tuple):
        raise InvalidSchedule(f'args are a list or tuple, not {args!r}')
    return tuple(args)


def _kwargs(kwargs: Any) -> dict[str, Any]:
    if not kwargs:
        return {}
    if not isinstance(kwargs, Mapping):
        raise InvalidSchedule(f'kwargs are a dict, not {kwargs!r}')
    return dict(kwargs)


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    kept = {
        name: value for name, value in options.items() if name not in _FOREIGN and value is not None
    }
    features.normalize_options(kept)
    if 'depends_on' in kept:
        kept['depends_on'] = normalize(kept['depends_on'])
    return kept


def _routed(app: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a call with what the task and the routes of this app add to them: who fires
    may be a worker that knows neither."""
    task = app._tasks.get(name) if isinstance(app._tasks, dict) else None
    if task is not None:
        own = task._get_exec_options()
        options = {**{key: value for key, value in own.items() if value is not None}, **options}
    if options.keys() & {'queue', 'exchange', 'routing_key'}:
        return options
    try:
        queue = app.amqp.router.route({}, name, args, kwargs, task).get('queue')
    except Exception as error:
        raise InvalidSchedule(f'task {name} cannot be routed: {error!r}') from None
    if isinstance(queue, Queue) and not isinstance(queue, Broadcast):
        return {**options, 'queue': queue.name}
    return options


def _after(after: Any) -> bool:
    if after not in (None, AFTER_RUN):
        raise InvalidSchedule(f"after is 'end' or nothing, not {after!r}")
    return after is not None


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidSchedule(f'{name} {value!r} is no whole number from {least} to {most}')
    return value


def _jitter(jitter: Any) -> int:
    seconds = jitter.total_seconds() if isinstance(jitter, timedelta) else jitter
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise InvalidSchedule(f'jitter {jitter!r} is no number of seconds')
    if not 0 <= seconds * 1000 <= _DAY:
        raise InvalidSchedule(f'jitter {jitter!r} is not between nothing and a day')
    return round(seconds * 1000)


def _moment(when: Any, app: Any) -> int | None:
    if when is None:
        return None
    if not isinstance(when, datetime):
        raise InvalidSchedule(f'{when!r} is no datetime')
    aware = when if when.tzinfo is not None else when.replace(tzinfo=app.timezone)
    return round(aware.timestamp() * 1000)


def _lazily(definition: Definition) -> Definition:
    """Celery's arguments that are computed each time cannot be kept."""
    if any(map(is_lazy, (*definition.args, *definition.kwargs.values()))):
        return replace(definition, lazy=True)
    return definition


def is_lazy(value: Any) -> bool:
    """Whether an argument is one of Celery's that are computed when the task is sent."""
    # Who has made one has loaded the module; nobody else need.
    beat = sys.modules.get('celery.beat')
    return beat is not None and isinstance(value, beat.BeatLazyFunc)
