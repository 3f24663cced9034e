"""``tags``: which tags jobs have, who has them, and acting on all of these together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from celery_ext.bulk import Result, Selection
from celery_ext.cli.common import Cli, Column, QueueName, group
from celery_ext.cli.jobs import COLUMNS, record_of
from celery_ext.cli.output import count

__all__ = ('tags',)

tags = group(
    'tags',
    'Finds jobs by their tags, and acts on all of them together.',
    examples=[
        'celery -A proj reliable tags top',
        'celery -A proj reliable tags jobs billing customer:17',
        'celery -A proj reliable tags cancel customer:17 --dry-run',
    ],
)


@tags.action('top', examples=['celery -A proj reliable tags top --limit 50'])
@click.option('--limit', type=click.IntRange(1), default=20, show_default=True)
@click.option('--offset', type=click.IntRange(0), default=0)
def top(cli: Cli, limit: int, offset: int) -> None:
    """Shows the tags that most jobs have."""
    found = [one._asdict() for one in cli.ext.tags.top(limit, offset)]
    columns = [Column('tag'), Column('count', 'jobs', right=True)]
    cli.show({'tags': found}, cli.table(found, columns, 'no job has a tag'))


_names = click.argument('names', metavar='TAG...', nargs=-1, required=True)
_any = click.option('--any', 'any_', is_flag=True, help='Jobs that have any of the tags.')


@tags.action('jobs', examples=['celery -A proj reliable tags jobs billing customer:17'])
@_names
@_any
@click.option('--limit', type=click.IntRange(1), default=50, show_default=True)
@click.option('--after', default='', help='Go on where "next" of the page before says.')
def jobs(cli: Cli, names: tuple[str, ...], any_: bool, limit: int, after: str) -> None:
    """Lists the jobs that have all of some tags, the newest first."""
    page = cli.ext.jobs.tagged(*names, any=any_, limit=limit, after=after)
    found = [{**record_of(job), 'tags': list(job.tags)} for job in page]
    more = f'more: --after {page.next}' if page.next else ''
    shown = cli.table(found, [*COLUMNS, Column('tags', drop=6)], 'no job has them')
    cli.show({'jobs': found, 'next': page.next}, shown, more)


def _act(
    cli: Cli, done: str, selection: Selection, dry_run: bool, act: Callable[..., Result],
    question: str = '',
) -> None:  # fmt: skip
    if question and not dry_run:
        cli.confirm(question)
    with cli.progress(f'{done}: looked at', selection.at_most()) as tell:
        result = act(progress=lambda result: tell(result.seen), dry_run=dry_run)
    document: dict[str, Any] = {
        'dry_run': dry_run, 'seen': result.seen, 'done': result.done,
        'skipped': dict(result.skipped),
    }  # fmt: skip
    would = 'would be ' if dry_run else ''
    lines = [f'{count(result.done)} of {count(result.seen)} {would}{done}']
    lines += [f'{count(number)} not: {why}' for why, number in sorted(result.skipped.items())]
    cli.show(document, '\n'.join(lines))


_dry_run = click.option('--dry-run', is_flag=True, help='Only say what would be done.')


@tags.action('cancel', destroys=True, examples=['celery -A proj reliable tags cancel customer:17'])
@_names
@_any
@_dry_run
@click.option('--terminate', is_flag=True, help='Also end the processes that run them.')
@click.option('--cascade', is_flag=True, help='Also those for which others wait; these fail.')
def cancel(
    cli: Cli, names: tuple[str, ...], any_: bool, dry_run: bool, terminate: bool, cascade: bool
) -> None:
    """Ends all that have not ended."""
    chosen = cli.ext.tags.select(*names, any=any_)

    def act(**how: Any) -> Result:
        return chosen.cancel(terminate=terminate, cascade=cascade, **how)

    _act(cli, 'canceled', chosen, dry_run, act, f'Cancel all {chosen}?')


@tags.action('retry', examples=['celery -A proj reliable tags retry billing'])
@_names
@_any
@_dry_run
def retry(cli: Cli, names: tuple[str, ...], any_: bool, dry_run: bool) -> None:
    """Lets their dead letters run once more."""
    chosen = cli.ext.tags.select(*names, any=any_)
    _act(cli, 'retried', chosen, dry_run, chosen.retry)


@tags.action('move', examples=['celery -A proj reliable tags move billing --to slow'])
@_names
@_any
@_dry_run
@click.option('--to', 'queue', type=QueueName(), required=True, help='The other queue.')
def move(cli: Cli, names: tuple[str, ...], any_: bool, dry_run: bool, queue: str) -> None:
    """Puts those that nobody holds into another queue."""
    chosen = cli.ext.tags.select(*names, any=any_)
    _act(cli, 'moved', chosen, dry_run, lambda **how: chosen.move(queue, **how))


@tags.action('priority', examples=['celery -A proj reliable tags priority billing --set 9'])
@_names
@_any
@_dry_run
@click.option('--set', 'value', type=click.IntRange(0, 255), required=True, help='0 to 255.')
def priority(cli: Cli, names: tuple[str, ...], any_: bool, dry_run: bool, value: int) -> None:
    """Gives those that nobody holds another priority."""
    chosen = cli.ext.tags.select(*names, any=any_)
    _act(
        cli, 'given the priority', chosen, dry_run, lambda **how: chosen.set_priority(value, **how)
    )
