"""The tab Schedules: what fires when, and what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from celery_ext.errors import InvalidSchedule
from celery_ext.flower.page import Page
from celery_ext.flower.pages import SIZE, Pages
from celery_ext.flower.query import Query
from celery_ext.schedules import Run, Schedule

__all__ = ('SchedulesPage', 'SingleSchedulePage')

#: Entries among which the last run of a schedule is looked for.
RECENT = 5


@dataclass(slots=True)
class ScheduleRow:
    """A schedule in the list.

    Args:
        schedule: it.
        task: its task; ``''`` if this version cannot read it.
        last: the last thing it did.
        result: what came of it: a state of a job or of a result; ``''`` if nobody knows.
    """

    schedule: Schedule
    task: str
    last: Run | None
    result: str = ''


@dataclass(slots=True)
class SchedulesView:
    rows: list[ScheduleRow]
    pages: Pages


class SchedulesPage(Page):
    tab = 'reliable-schedules'
    template = 'reliable-schedules.html'

    def look(self, extension: Any, query: Query) -> SchedulesView:
        offset = query.number('offset')
        found = extension.schedules.page(offset, SIZE)
        shown = [_row(one) for one in found]
        living = extension.jobs.some(row.last.id for row in shown if row.last and row.last.id)
        for row in shown:
            if row.last is not None and row.last.id in living:
                row.result = living[row.last.id].state
        return SchedulesView(shown, Pages(offset, len(shown), len(extension.schedules)))

    async def complete(self, view: SchedulesView) -> None:
        runs = [row.last.id for row in view.rows if row.last and row.last.id and not row.result]
        results = await self.watch.extra(_results, runs) or {}
        for row in view.rows:
            if row.last is not None and not row.result:
                row.result = results.get(row.last.id or '', '')


def _row(one: Schedule) -> ScheduleRow:
    runs = (run for run in one.history(RECENT) if run.event in ('fired', 'asked', 'error'))
    return ScheduleRow(one, _task(one), next(runs, None))


def _task(one: Schedule) -> str:
    try:
        return one.task
    except InvalidSchedule:
        return ''


def _results(extension: Any, ids: list[str]) -> dict[str, str]:
    """States of results in the app's backend; of those that it knows."""
    found = {one: str(extension.app.AsyncResult(one).state).lower() for one in ids}
    return {one: state for one, state in found.items() if state != 'pending'}


@dataclass(slots=True)
class ScheduleView:
    """What there is to know of one schedule."""

    schedule: Schedule
    task: str
    details: dict[str, Any]
    history: list[Run]
    problem: str = ''
    results: dict[str, str] = field(default_factory=dict)


def _details(one: Schedule) -> dict[str, Any]:
    """Its settings, those that say something."""
    made = one.definition
    settings = {
        'arguments': _json(list(made.args)),
        'keyword arguments': _json(dict(made.kwargs)),
        'options': _json(dict(made.options)),
        'two runs at once': 'yes' if made.overlap and not made.after_end else 'no',
        'counts from': 'the end of the last run' if made.after_end else '',
        'missed runs made up': made.backlog or '',
        'jitter': f'{made.jitter / 1000:g} s' if made.jitter else '',
        'runs at most': made.max_runs or '',
        'declared by code': 'yes' if one.declared else 'no',
    }
    return {name: value for name, value in settings.items() if value != ''}


def _json(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False) if value else ''


class SingleSchedulePage(Page):
    tab = 'reliable-schedules'
    template = 'reliable-schedule.html'

    def look(self, extension: Any, query: Query) -> ScheduleView:
        one = extension.schedules[query.needed('name')]
        history = one.history(SIZE)
        try:
            view = ScheduleView(one, one.task, _details(one), history)
        except InvalidSchedule as error:
            return ScheduleView(one, '', {}, history, str(error))
        living = extension.jobs.some(run.id for run in history if run.id)
        view.results = {id: job.state for id, job in living.items()}
        return view

    async def complete(self, view: ScheduleView) -> None:
        runs = [run.id for run in view.history if run.id and run.id not in view.results]
        view.results.update(await self.watch.extra(_results, runs[:20]) or {})
