"""Fires what is due, in a worker or in ``celery beat``; the server decides who does it.

Whoever gets the tick of a schedule reads it, computes what is due by the server's clock, prepares
the messages as ``apply_async`` would send them, and asks one script to store them and to plan
the next occurrence.  If somebody else has done so before, the script does nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.utils import uuid
from celery.utils.log import get_logger

from celery_ext.definition import Definition, is_lazy, read_definition
from celery_ext.errors import InvalidSchedule
from celery_ext.ticks import TICKS
from kombu_reliable import (
    AFTER_RUN,
    Collector,
    Fired,
    Firing,
    ScheduleInfo,
    ScheduleStore,
    Store,
    Timing,
    fire_schedule,
)

__all__ = ('Firer', 'Plan', 'ask_for_run', 'plan')

logger = get_logger(__name__)

#: An occurrence that fires later than so many milliseconds was missed.
GRACE = 10_000

#: Occurrences that one step publishes, and messages.
STEP, MOST_MESSAGES = 50, 150


@dataclass(frozen=True)
class Plan:
    """What is to be done about a schedule.

    Args:
        runs: the occurrences to publish.
        following: the occurrence after them.
        missed: the first and the last one that nobody makes up.
    """

    runs: tuple[int, ...]
    following: int | None
    missed: tuple[int, int] | None = None


def plan(definition: Definition, at: int, count: int, now: int) -> Plan:
    """Decides which occurrences are published and which were missed.

    Args:
        definition: of the schedule.
        at: its next occurrence, which is due.
        count: its runs so far.
        now: the server's time.
    """
    table = definition.timetable
    alone = definition.after_end or not definition.overlap
    wanted = (0 if alone else definition.backlog) + 1
    due = table.between(at, now, wanted)
    if not due:
        return Plan((), at)
    newest = due[-1]
    in_time = now - newest <= GRACE + definition.jitter
    kept = due[-(definition.backlog + in_time) :] if definition.backlog + in_time else []
    if alone:
        kept = kept[-1:]
    if definition.max_runs is not None:
        kept = kept[: max(0, definition.max_runs - count)]
    following: int | None = table.after(newest)
    if len(kept) > STEP:
        kept, following = kept[:STEP], kept[STEP]
    if definition.max_runs is not None and count + len(kept) >= definition.max_runs:
        following = None
    first = kept[0] if kept else newest + 1
    return Plan(tuple(kept), following, _missed(at, first, table))


def _missed(at: int, first: int, table: Any) -> tuple[int, int] | None:
    earlier = table.between(at, first - 1, 1)
    return (at, earlier[-1]) if earlier else None


class _Collector(Collector):
    """Nobody here waits for the result, so Celery is told to ignore it, and the message is not.

    Celery's own way to say so, ``denied_join_result``, is for all threads of the process.
    """

    def __init__(self, channel: Any, ignored: bool | None) -> None:
        self._ignored = ignored
        super().__init__(channel)

    def publish(self, body: Any, *args: Any, headers: Any = None, **kwargs: Any) -> Any:
        headers = {**(headers or {}), 'ignore_result': self._ignored}
        return super().publish(body, *args, headers=headers, **kwargs)


class Firer:
    """Fires the schedules of one program.

    Args:
        app: the Celery app.
        store: the server.
        channel: prepares the messages.
        declared: the schedules that the code of this program declares.
    """

    def __init__(
        self, app: Any, store: Store, channel: Any, declared: Mapping[str, Definition] | None = None
    ) -> None:
        self.app = app
        self.store = store
        self.schedules: ScheduleStore = store.schedules(TICKS)
        self.channel = channel
        self.declared = dict(declared or {})
        digests = sorted(f'{name}:{one.digest}' for name, one in self.declared.items())
        whole = hashlib.sha1('\n'.join(digests).encode()).hexdigest()
        #: Stands for all that this code declares; the same in all programs that run it.
        self.declarer = whole[:12] if digests else ''
        self._living = ''

    # -- what code declares ------------------------------------------------------

    def declare(self) -> None:
        """Tells the server what this program declares."""
        if not self.declared:
            return
        now = self.schedules.now()
        declarations = [one.declaration(now) for one in self.declared.values()]
        living, words = self.schedules.declare(self.declarer, declarations)
        self._living = living.removeprefix('!')
        for declaration, word in zip(declarations, words, strict=True):
            if word in ('new', 'changed', 'mended'):
                logger.info('schedule %s is %s: %s', declaration.name, word, declaration.when)
            elif word == 'older':
                logger.warning(
                    'schedule %s: code that was seen later declares it otherwise, and that applies',
                    declaration.name,
                )

    def stay(self) -> None:
        """Says that this program is still there.  If others came or went, or this one was believed
        to be gone, what applies may be another declaration than before."""
        if self.declared:
            living, _ = self.schedules.declare(self.declarer)
            if living != self._living:
                self.declare()

    # -- firing ------------------------------------------------------------------

    def fire(self, name: str) -> str:
        """Does what is due by a schedule.

        Returns:
            What was done, see :class:`kombu_reliable.Fired`; ``'nothing'`` if nothing is due.

        Raises:
            InvalidSchedule: it cannot be read here.
        """
        info = self.schedules.get(name)
        if info is None or info.paused or info.orphaned or info.at is None:
            return 'nothing'
        now = info.read_at
        if info.due is not None and info.due > now:
            return 'nothing'
        definition = read_definition(info)
        if info.at == AFTER_RUN:
            return self._plan_after_run(info, definition, now).outcome
        assert isinstance(info.at, int)
        todo = plan(definition, info.at, info.count, now)
        return self._publish(info, definition, todo, now).outcome

    def _plan_after_run(self, info: ScheduleInfo, definition: Definition, now: int) -> Fired:
        following = definition.timing(now + (definition.timetable.every or 0))
        if definition.max_runs is not None and info.count >= definition.max_runs:
            following = Timing(None)
        return self._fire(info, Firing(info.name, info.revision, info.at, following))

    def _publish(self, info: ScheduleInfo, definition: Definition, todo: Plan, now: int) -> Fired:
        items: list[Any] = []
        lines: list[dict[str, Any]] = []
        if todo.missed:
            first, last = todo.missed
            lines.append({'event': 'missed', 'at': first, 'until': last})
        runs, following = 0, todo.following
        for at in todo.runs:
            if len(items) >= MOST_MESSAGES:
                following = at
                break
            try:
                task_id, prepared = self._prepare(definition, now)
            except Exception as error:
                logger.exception('schedule %s cannot be fired: %r', info.name, error)
                lines.append({'event': 'error', 'at': at, 'detail': f'{error!r:.300}'})
                continue
            items += prepared
            lines.append({'event': 'fired', 'at': at, 'id': task_id})
            runs += 1
        firing = Firing(
            info.name, info.revision, info.at, definition.timing(following), self.declarer, runs,
            lines,
        )  # fmt: skip
        fired = self._fire(info, firing, items)
        if fired.outcome == 'fired':
            logger.info('schedule %s sends %s', info.name, definition.task)
        return fired

    def _fire(self, info: ScheduleInfo, firing: Firing, items: list[Any] | None = None) -> Fired:
        fired = fire_schedule(self.store, self.schedules, firing, items)
        if fired.outcome not in ('fired', 'idle'):
            logger.info('schedule %s does not fire: %s', info.name, fired.outcome)
        return fired

    def run_now(self, info: ScheduleInfo) -> tuple[str, Fired]:
        """A run that somebody asks for; it counts as none of the schedule's own.

        Returns:
            The id of the task, and what came of it.
        """
        definition = read_definition(info)
        task_id, items = self._prepare(definition, info.read_at)
        line = {'event': 'asked', 'id': task_id}
        firing = Firing(info.name, info.revision, None, lines=[line])
        return task_id, fire_schedule(self.store, self.schedules, firing, items)

    # -- messages ----------------------------------------------------------------

    def _prepare(self, definition: Definition, now: int) -> tuple[str, list[Any]]:
        """The messages of one run, as ``apply_async`` would send them."""
        args, kwargs = self._arguments(definition)
        options = dict(_absolute(definition.options, now))
        headers = {**(options.pop('headers', None) or {}), 'celery_beat_task': True}
        headers['x-schedule'] = definition.name
        task_id = options.pop('task_id', None) or uuid()
        task = self.app.tasks.get(definition.task)
        publish = self.app.send_task if task is None else task.apply_async
        name = (definition.task,) if task is None else ()
        ignored = options.pop('ignore_result', None if task is None else task.ignore_result)
        collector = _Collector(self.channel, ignored)
        publish(
            *name, args, kwargs, task_id=task_id, producer=collector, retry=False,
            headers=headers, ignore_result=True, **options,
        )  # fmt: skip
        if not collector.items:
            raise InvalidSchedule(f'task {definition.task} publishes nothing')
        return task_id, collector.items

    def _arguments(self, definition: Definition) -> tuple[list[Any], dict[str, Any]]:
        if definition.lazy:
            local = self.declared.get(definition.name)
            if local is None:
                raise InvalidSchedule('its arguments are computed by code that is not here')
            definition = replace(definition, args=local.args, kwargs=local.kwargs)
        return (
            [_value(one) for one in definition.args],
            {name: _value(one) for name, one in definition.kwargs.items()},
        )


def _value(given: Any) -> Any:
    return given() if is_lazy(given) else given


def _absolute(options: Mapping[str, Any], now: int) -> Iterator[tuple[str, Any]]:
    """What counts from now counts from the server's: the clock of this machine may be wrong."""
    server = datetime.fromtimestamp(now / 1000, UTC)
    for name, value in options.items():
        if name in ('expires', 'countdown') and isinstance(value, int | float | timedelta):
            length = value if isinstance(value, timedelta) else timedelta(seconds=value)
            yield 'eta' if name == 'countdown' else name, server + length
        else:
            yield name, value


def ask_for_run(app: Any, store: Store, info: ScheduleInfo) -> tuple[str, Fired]:
    """Has a schedule run now, from any program."""
    with app.connection_for_write() as connection:
        return Firer(app, store, connection.default_channel).run_now(info)
