"""``schedules``: what fires when, what it did, and changes of that."""

from __future__ import annotations

import json
from typing import Any

import click
from click.shell_completion import CompletionItem

from celery_ext.cli.common import Cli, Column, group
from celery_ext.cli.output import age, fields, visible
from celery_ext.errors import InvalidSchedule
from celery_ext.schedules import Run, Schedule

__all__ = ('schedules',)

schedules = group(
    'schedules',
    'Recurring jobs: when they fire next, what they did; pause, change, run now.',
    examples=[
        'celery -A proj reliable schedules list',
        'celery -A proj reliable schedules show nightly',
        'celery -A proj reliable schedules run nightly',
        'celery -A proj reliable schedules create nightly proj.tasks.report --every "0 4 * * *"',
    ],
)


class ScheduleName(click.ParamType):  # type: ignore[type-arg]
    """The name of a schedule; the shell completes it."""

    name = 'schedule'

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from celery_ext.cli.common import _app_of, extension_of

        try:
            names = extension_of(_app_of(ctx)).schedules.names()
        except Exception:  # a shell that completes must never see an error
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Json(click.ParamType):  # type: ignore[type-arg]
    """A value as JSON."""

    name = 'json'

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            self.fail(f'{value!r} is no JSON: {error}', param, ctx)


class Every(click.ParamType):  # type: ignore[type-arg]
    """Seconds, or a crontab of five fields."""

    name = 'time'

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            return float(value)
        except (TypeError, ValueError):
            return value


def _color(state: Any) -> str | None:
    return {'paused': 'yellow', 'orphaned': 'red'}.get(str(state))


COLUMNS = (
    Column('name', 'schedule'),
    Column('task', drop=1),
    Column('when'),
    Column('state', style=_color),
    Column('next_run', 'next', show=age),
    Column('last_run', 'last', show=age, drop=2),
    Column('runs', right=True, drop=3),
)

HISTORY = (
    Column('at', 'when'),
    Column('event', style=lambda value: 'red' if value == 'error' else None),
    Column('scheduled_for', 'due', drop=1),
    Column('id', 'task id', keep=True),
    Column('result', drop=2),
    Column('detail', drop=3),
)


def _record(one: Schedule) -> dict[str, Any]:
    try:
        task = one.task
    except InvalidSchedule:
        task = ''
    return {
        'name': one.name,
        'task': task,
        'when': one.when,
        'state': one.state,
        'next_run': one.next_run,
        'last_run': one.last_run,
        'runs': one.runs,
        'declared': one.declared,
    }


def _details(one: Schedule) -> dict[str, Any]:
    made = one.definition
    return {
        **_record(one),
        'args': list(made.args),
        'kwargs': dict(made.kwargs),
        'options': dict(made.options),
        'overlap': made.overlap and not made.after_end,
        'after': 'end' if made.after_end else None,
        'backlog': made.backlog,
        'jitter': made.jitter / 1000,
        'max_runs': made.max_runs,
    }


def _event(cli: Cli, run: Run) -> dict[str, Any]:
    result = None
    if run.id is not None:
        try:
            result = cli.app.AsyncResult(run.id).state
        except Exception:  # no result backend, or none that can be reached
            result = None
    return {
        'at': run.at,
        'event': run.event,
        'scheduled_for': run.scheduled_for,
        'until': run.until,
        'id': run.id,
        'result': result,
        'detail': run.detail,
    }


def _text(value: Any) -> str:
    return json.dumps(value, default=str) if value else ''


@schedules.action('list', examples=['celery -A proj reliable schedules list --limit 20'])
@click.option('--limit', type=click.IntRange(1), default=100, show_default=True)
@click.option('--offset', type=click.IntRange(0), default=0)
def list_(cli: Cli, limit: int, offset: int) -> None:
    """Lists schedules, those first that fire next.

    state: active, paused, ended (nothing more will come), orphaned (no program that lives
    declares it any more; it does not fire).
    """
    found = [_record(one) for one in cli.ext.schedules.page(offset, limit)]
    cli.show({'schedules': found}, cli.table(found, COLUMNS, 'no schedules'))


@schedules.action('show', examples=['celery -A proj reliable schedules show nightly --json'])
@click.argument('name', type=ScheduleName())
@click.option('--limit', type=click.IntRange(0, 50), default=10, help='Entries of the history.')
def show(cli: Cli, name: str, limit: int) -> None:
    """Shows a schedule, and what it did."""
    one = cli.ext.schedules[name]
    details = _details(one)
    history = [_event(cli, run) for run in one.history(limit)]
    readable = {key: _text(value) if isinstance(value, dict | list) else value
                for key, value in details.items()}  # fmt: skip
    cli.show(
        {**details, 'history': history},
        fields(readable),
        cli.table(history, HISTORY, 'it has done nothing yet'),
    )


@schedules.action('pause', examples=['celery -A proj reliable schedules pause nightly'])
@click.argument('names', nargs=-1, required=True, type=ScheduleName(), metavar='SCHEDULE...')
def pause(cli: Cli, names: tuple[str, ...]) -> None:
    """Lets schedules fire no more, until "resume"; what comes due meanwhile is not made up."""
    done = [{'name': name, 'changed': cli.ext.schedules[name].pause()} for name in names]
    _tell(cli, done, 'paused', 'was paused before')


@schedules.action('resume', examples=['celery -A proj reliable schedules resume nightly'])
@click.argument('names', nargs=-1, required=True, type=ScheduleName(), metavar='SCHEDULE...')
def resume(cli: Cli, names: tuple[str, ...]) -> None:
    """Lets paused schedules go on."""
    done = [{'name': name, 'changed': cli.ext.schedules[name].resume()} for name in names]
    _tell(cli, done, 'goes on', 'was not paused')


@schedules.action('run', examples=['celery -A proj reliable schedules run nightly'])
@click.argument('name', type=ScheduleName())
def run(cli: Cli, name: str) -> None:
    """Has a schedule run once more, now; when it fires by itself does not change."""
    result = cli.ext.schedules[name].run_now()
    cli.show({'name': name, 'id': result.id}, f'{visible(name)}: sent as {result.id}')


_SETTINGS = (
    click.option('--every', type=Every(), help='Seconds, or "minute hour day month weekday".'),
    click.option('--zone', help='In which a crontab is read, as Europe/Berlin.'),
    click.option('--offset', type=float, help='Seconds, for intervals.'),
    click.option('--args', type=Json(), help='A JSON list.'),
    click.option('--kwargs', type=Json(), help='A JSON object.'),
    click.option('--queue'),
    click.option('--priority', type=int),
    click.option('--expires', type=float, help='Seconds.'),
    click.option('--overlap/--no-overlap', default=None, help='Two runs at once?'),
    click.option('--after', type=click.Choice(['end']), help='Count from the end of the last run.'),
    click.option('--backlog', type=int, help='How many missed occurrences are made up.'),
    click.option('--jitter', type=float, help='Seconds.'),
    click.option('--max-runs', type=int),
)


def _with_settings(function: Any) -> Any:
    for option in reversed(_SETTINGS):
        function = option(function)
    return function


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}


@schedules.action(
    'create',
    examples=['celery -A proj reliable schedules create nightly proj.report --every "0 4 * * *"'],
)
@click.argument('name')
@click.argument('task')
@_with_settings
def create(cli: Cli, name: str, task: str, **settings: Any) -> None:
    """Makes a schedule that lasts until it is deleted."""
    given = _given(settings)
    if 'every' not in given:
        cli.fail('--every is missing', 2)
    made = cli.ext.schedules.create(name, task, **given)
    _show_one(cli, made)


@schedules.action(
    'update', examples=['celery -A proj reliable schedules update nightly --every "30 4 * * *"']
)
@click.argument('name', type=ScheduleName())
@click.option('--task')
@_with_settings
def update(cli: Cli, name: str, **settings: Any) -> None:
    """Changes a schedule.  If code declares it, this holds until the code says something new."""
    given = _given(settings)
    if not given:
        cli.fail('nothing to change was named', 2)
    _show_one(cli, cli.ext.schedules[name].update(**given))


@schedules.action(
    'delete', examples=['celery -A proj reliable schedules delete nightly'], destroys=True
)
@click.argument('names', nargs=-1, required=True, type=ScheduleName(), metavar='SCHEDULE...')
def delete(cli: Cli, names: tuple[str, ...]) -> None:
    """Deletes schedules.  One that code declares comes back when the code says something new."""
    found = [cli.ext.schedules[name] for name in names]
    cli.confirm(f'Delete {", ".join(names)}?')
    done = [{'name': one.name, 'changed': one.delete()} for one in found]
    _tell(cli, done, 'deleted', 'was gone before')


def _show_one(cli: Cli, one: Schedule) -> None:
    record = _record(one)
    cli.show(record, cli.table([record], COLUMNS))


def _tell(cli: Cli, done: list[dict[str, Any]], changed: str, otherwise: str) -> None:
    lines = [f'{visible(one["name"])}: {changed if one["changed"] else otherwise}' for one in done]
    cli.show({'schedules': done}, '\n'.join(lines))
