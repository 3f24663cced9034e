"""``@recurring(every=300)``, and everything else by which an app's code declares schedules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from celery.utils.log import get_logger

from celery_ext.decorators import declare, declared
from celery_ext.defaults import OUR_SCHEDULER
from celery_ext.definition import CHANGEABLE, Definition, define
from celery_ext.errors import InvalidSchedule
from celery_ext.timetable import encode_when

__all__ = ('declared_schedules', 'recurring')

T = TypeVar('T')

logger = get_logger(__name__)

FEATURE = 'recurring'


def recurring(every: Any, *, name: str | None = None, **settings: Any) -> Any:
    """Has a task run again and again, fired by the workers themselves.

    Stands under ``@app.task`` or ``@shared_task``.  May stand there several times, with names.

    Args:
        every: seconds, a timedelta, a ``crontab``, ``"0 4 * * mon"``, or a ``solar`` event.
        name: of the schedule; the task's name unless given.
        settings: further ones, all with safe defaults:
            ``args``, ``kwargs``: of the task;
            ``overlap=False``: an occurrence is skipped while the last run has not ended;
            ``after='end'``: the interval is counted from the end of the last run;
            ``backlog=1``: how many missed occurrences are made up;
            ``jitter=0``: each fires up to so many seconds later;
            ``offset``: an interval fires at its whole multiples since 1970, plus so many seconds;
            ``zone``: in which a crontab is read, as ``'Europe/Berlin'``; the app's unless given;
            ``start``, ``end``: datetimes before and behind which nothing fires;
            ``max_runs``: it ends after so many;
            ``queue``, ``priority``, ``expires``, ``tags``, ``throttles`` ...: as ``apply_async``
            takes them.

    Raises:
        InvalidSchedule: the interval or the calendar makes no sense.

    Example:
        >>> @app.task
        ... @recurring(every=300, overlap=False)
        ... def poll(): ...
        >>> @app.task
        ... @recurring(every=crontab(hour=4, minute=0), zone='Europe/Berlin', queue='reports')
        ... def nightly(): ...
    """
    places = ('zone', 'offset', 'relative')
    encode_when(every, None, **{key: settings[key] for key in places if key in settings})

    def noting(target: T) -> T:
        return declare(target, FEATURE, {'every': every, 'name': name, **settings})

    return noting


def declared_schedules(app: Any, beat: bool = False) -> dict[str, Definition]:
    """All schedules that the code of an app declares: ``beat_schedule``, ``add_periodic_task``,
    ``@recurring``.  One that makes no sense costs the others nothing: it is logged.

    Args:
        app: the Celery app.
        beat: for ``celery beat`` with our scheduler, whatever the settings say.
    """
    found: dict[str, Definition] = {}
    for name, task, settings in _declarations(app, beat):
        try:
            if name in found:
                raise InvalidSchedule(f'two schedules are called {name!r}: give them names')
            found[name] = define(app, name, task, **settings)
            found[name].first(0)
        except (InvalidSchedule, TypeError) as error:
            logger.error('schedule %r is left out: %s', name, error)
    return found


def _declarations(app: Any, beat: bool) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    count = 0
    if beat or app.conf.beat_scheduler == OUR_SCHEDULER:
        for key, entry in dict(app.conf.beat_schedule or {}).items():
            count += 1
            yield _of_entry(str(key), entry)
    elif app.conf.beat_schedule:
        logger.info('beat_schedule is left to %s', app.conf.beat_scheduler)
    for task in list(app.tasks.values()):
        for settings in declared(task).get(FEATURE, ()):
            count += 1
            own = dict(settings)
            yield own.pop('name') or task.name, task.name, own
    name = 'celery.backend_cleanup'
    wanted = app.conf.result_expires and not app.backend.supports_autoexpire
    if count and wanted and name not in (app.conf.beat_schedule or {}):
        # As Celery's beat has it.
        yield name, name, {'every': '0 4 * * *', 'expires': 12 * 3600}


def _of_entry(name: str, entry: Any) -> tuple[str, Any, dict[str, Any]]:
    """An entry of ``beat_schedule``: Celery's fields, and ours next to them."""
    if not isinstance(entry, Mapping):
        entry = {
            field: getattr(entry, field)
            for field in ('task', 'schedule', 'args', 'kwargs', 'options')
        }
    own = {key: value for key, value in entry.items() if key in CHANGEABLE and key != 'task'}
    own |= dict(entry.get('options') or {})
    own['every'] = entry.get('schedule')
    own['relative'] = bool(entry.get('relative'))
    return name, entry.get('task'), own
