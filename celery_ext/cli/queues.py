"""``queues``, ``pause``, ``resume``."""

from __future__ import annotations

from typing import Any

import click

from celery_ext.cli.common import Cli, Column, QueueName, command
from celery_ext.cli.output import visible

__all__ = ('pause', 'queues', 'resume')


def _alarming(value: Any) -> str | None:
    return 'red' if value else None


#: Also what ``status`` shows.
COLUMNS = (
    Column('name', 'queue'),
    Column('ready', right=True),
    Column('delayed', right=True),
    Column('waiting', right=True),
    Column('throttled', right=True),
    Column('leased', right=True),
    Column('failed', right=True, style=_alarming),
    Column('paused', show=lambda value: 'paused' if value else '', style=lambda _: 'yellow'),
)


def look(cli: Cli, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The counts of queues: of those named, or of all."""
    found = []
    for name in names or cli.ext.queues.names():
        counts = cli.ext.queues[name].counts()
        found.append(
            {
                'name': name,
                'ready': counts.ready,
                'delayed': counts.delayed,
                'waiting': counts.waiting,
                'throttled': counts.throttled,
                'leased': counts.leased,
                'failed': counts.dead,
                'paused': counts.paused,
            }
        )
    return found


@command(
    'queues',
    examples=[
        'celery -A proj reliable queues',
        'celery -A proj reliable queues mail reports --json',
    ],
)
@click.argument('names', nargs=-1, type=QueueName(), metavar='[QUEUE]...')
def queues(cli: Cli, names: tuple[str, ...]) -> None:
    """Counts the jobs of all queues, or of those named, by state.

    Queues that no worker consumes are among them.  ready: may start now; delayed: due later;
    waiting: for other jobs; throttled: for a throttle, or their turn; leased: a worker has them;
    failed: dead letters.
    """
    found = look(cli, names)
    cli.show({'queues': found}, cli.table(found, COLUMNS, 'no queues'))


@command('pause', examples=['celery -A proj reliable pause mail reports'])
@click.argument('names', nargs=-1, required=True, type=QueueName(), metavar='QUEUE...')
def pause(cli: Cli, names: tuple[str, ...]) -> None:
    """Lets no worker start anything more from some queues.

    What runs goes on; what is published, and what falls due, waits.  It lasts until "resume",
    over restarts of all workers.
    """
    done = [{'name': name, 'changed': cli.ext.queues[name].pause()} for name in names]
    _tell(cli, done, 'paused', 'was paused before')


@command('resume', examples=['celery -A proj reliable resume mail reports'])
@click.argument('names', nargs=-1, required=True, type=QueueName(), metavar='QUEUE...')
def resume(cli: Cli, names: tuple[str, ...]) -> None:
    """Lets paused queues go on."""
    done = [{'name': name, 'changed': cli.ext.queues[name].resume()} for name in names]
    _tell(cli, done, 'goes on', 'was not paused')


def _tell(cli: Cli, done: list[dict[str, Any]], changed: str, otherwise: str) -> None:
    lines = [f'{visible(one["name"])}: {changed if one["changed"] else otherwise}' for one in done]
    cli.show({'queues': done}, '\n'.join(lines))
