"""``throttles``: limits that hold for all workers, their slots and those who wait."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import click

from celery_ext.cli.common import Cli, Column, group
from celery_ext.cli.output import age, fields, visible
from celery_ext.throttles import ThrottleInfo
from kombu_reliable import InvalidArgument

__all__ = ('COLUMNS', 'look', 'throttles')

throttles = group(
    'throttles',
    'Limits that hold for all workers together, and who waits for them.',
    examples=[
        'celery -A proj reliable throttles list',
        'celery -A proj reliable throttles set stripe --concurrency 2 --rate 50/m',
        'celery -A proj reliable throttles holders stripe',
    ],
)

_UNITS = {'ms': 0.001, 's': 1, 'm': 60, 'h': 3_600, 'd': 86_400}


def _unlimited(value: Any) -> str:
    return 'any' if value is None else f'{value}'


COLUMNS = (
    Column('name', 'throttle'),
    Column('concurrency', right=True, show=_unlimited),
    Column('rate', right=True, show=_unlimited),
    Column('burst', right=True, drop=2),
    Column('held', right=True),
    Column('pending', right=True),
    Column('source', 'limits', drop=3),
    Column('expires_at', 'until', drop=1, show=age),
    Column('stopped', show=lambda value: 'stopped' if value else '', style=lambda _: 'red'),
)


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A length of time: ``90``, ``30m``, ``2h``, ``1d``."""

    name = 'time'

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?', str(value), re.ASCII)
        if match is None:
            self.fail(f'{value!r} is no time: use seconds, or 30m, 2h, 1d', param, ctx)
        return float(match[1]) * _UNITS[match[2] or 's']


def _record(info: ThrottleInfo) -> dict[str, Any]:
    return asdict(info)


def look(cli: Cli) -> list[dict[str, Any]]:
    """The throttles that are in use or were set, those with most that wait first."""
    return [_record(info) for info in cli.ext.throttles.look()]


@throttles.action('list', examples=['celery -A proj reliable throttles list --json'])
def list_(cli: Cli) -> None:
    """Lists the throttles that were set, or for which jobs wait or run.

    limits: "set" at run time, or the "default" of the tasks.
    """
    found = look(cli)
    cli.show({'throttles': found}, cli.table(found, COLUMNS, 'no throttles'))


@throttles.action('get', examples=['celery -A proj reliable throttles get stripe'])
@click.argument('name')
def get(cli: Cli, name: str) -> None:
    """Shows the limits of a throttle and how much it is used."""
    info = cli.ext.throttles[name].get()
    if info is None:
        cli.fail(f'nobody has set the throttle {name!r}, and no job uses it')
    cli.show(_record(info), _described(info))


def _described(info: ThrottleInfo) -> str:
    shown = {
        **_record(info),
        'concurrency': _unlimited(info.concurrency),
        'rate': _unlimited(info.rate),
        'expires_at': None,
        'until': None if info.expires_at is None else age(info.expires_at),
        'stopped': 'yes: a limit is 0' if info.stopped else None,
    }
    return fields(shown)


@throttles.action(
    'set',
    examples=[
        'celery -A proj reliable throttles set stripe --concurrency 2 --rate 50/m --expires 1h',
        'celery -A proj reliable throttles set stripe --concurrency 0',
        'celery -A proj reliable throttles set queue:mail --rate 20/s',
    ],
)
@click.argument('name')
@click.option('-c', '--concurrency', type=int, help='Jobs that run at once; 0 stops it.')
@click.option('-r', '--rate', help='Jobs that start in a time: 100/m, 5/s; 0/m stops it.')
@click.option('-b', '--burst', type=int, help='Jobs that may start at once after a pause.')
@click.option('-e', '--expires', type=Seconds(), help='For how long: 90, 30m, 2h; else for good.')
@click.option('--unlimited', is_flag=True, help='No limits at all.')
def set_(
    cli: Cli,
    name: str,
    concurrency: int | None,
    rate: str | None,
    burst: int | None,
    expires: float | None,
    unlimited: bool,
) -> None:
    """Sets the limits of a throttle for all workers, at once.

    They hold instead of those of the tasks until "delete".  What is not named is not limited.
    "queue:NAME" limits a queue.
    """
    if unlimited == ((concurrency, rate, burst) != (None, None, None)):
        raise click.UsageError('say --concurrency or --rate, or else --unlimited')
    throttle = cli.ext.throttles[name]
    try:
        throttle.set(concurrency, rate, burst, expires)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from None
    info = throttle.get()
    if info is None:
        cli.fail(f'the throttle {name!r} was deleted meanwhile')
    cli.show(_record(info), _described(info))


@throttles.action('delete', examples=['celery -A proj reliable throttles delete stripe'])
@click.argument('name')
def delete(cli: Cli, name: str) -> None:
    """Forgets what was set: the limits of the tasks hold again."""
    done = cli.ext.throttles[name].delete()
    text = 'the limits of its tasks hold again' if done else 'nothing was set'
    cli.show({'name': name, 'changed': done}, f'{visible(name)}: {text}')


_PAGE = (
    click.option('--offset', type=click.IntRange(0), default=0, help='Pass over so many.'),
    click.option(
        '--limit', type=click.IntRange(1), default=50, show_default=True, help='At most so many.'
    ),
)


def _paged(fun: Any) -> Any:
    for option in reversed(_PAGE):
        fun = option(fun)
    return fun


@throttles.action('holders', examples=['celery -A proj reliable throttles holders stripe'])
@click.argument('name')
@_paged
def holders(cli: Cli, name: str, offset: int, limit: int) -> None:
    """Lists the jobs that have a slot, the longest first."""
    found = [one._asdict() for one in cli.ext.throttles[name].holders(offset, limit)]
    _show_jobs(cli, 'holders', found, (Column('worker', drop=1),), 'no job has a slot')


@throttles.action('pending', examples=['celery -A proj reliable throttles pending stripe'])
@click.argument('name')
@_paged
def pending(cli: Cli, name: str, offset: int, limit: int) -> None:
    """Lists the jobs that wait for a throttle, the longest first."""
    found = [one._asdict() for one in cli.ext.throttles[name].pending(offset, limit)]
    _show_jobs(cli, 'pending', found, (), 'no job waits')


def _show_jobs(
    cli: Cli, what: str, found: list[dict[str, Any]], more: tuple[Column, ...], empty: str
) -> None:
    columns = (Column('id', keep=True), Column('queue'), *more, Column('since', show=age))
    cli.show({what: found}, cli.table(found, columns, empty))


@throttles.action(
    'release', examples=['celery -A proj reliable throttles release stripe ID'], destroys=True
)
@click.argument('name')
@click.argument('id')
def release(cli: Cli, name: str, id: str) -> None:
    """Takes its slot from a job, although it may still run: the next one starts."""
    cli.confirm(f'Let the next job start beside {id}, which may still run?')
    if not cli.ext.throttles[name].release(id):
        cli.fail(f'the job {id!r} has no slot of the throttle {name!r}')
    cli.show({'name': name, 'id': id, 'released': True}, f'{visible(id)} has no slot any more')
