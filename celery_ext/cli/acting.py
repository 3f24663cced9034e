"""``cancel``, ``retry``, ``move``, ``priority``: what acts on jobs by their ids."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from celery_ext.cli.common import Cli, QueueName, command
from celery_ext.cli.output import visible
from kombu_reliable import ReliableError

__all__ = ('act_on', 'cancel', 'ids_of', 'move', 'priority', 'retry')

_ids = click.argument('ids', nargs=-1, required=True, metavar='ID...')

_SAID = {
    'gone': 'canceled',
    'requested': 'canceled, but a worker had it and may have begun',
    'unknown': 'there is no such job: it has ended, or there never was one',
}


def ids_of(given: Iterable[str]) -> list[str]:
    """The ids given; ``-`` stands for those on standard input, one a line."""
    found: list[str] = []
    for one in given:
        found += sys.stdin.read().split() if one == '-' else [one]
    return list(dict.fromkeys(found))


def act_on(cli: Cli, ids: Iterable[str], act: Callable[[str], tuple[bool, str, str]]) -> None:
    """Acts on jobs one by one; one that cannot be acted on does not stop the others.

    Args:
        cli: the command.
        ids: of the jobs.
        act: acts on one and tells whether that worked, the outcome in a word, and a sentence.
    """
    done: list[dict[str, Any]] = []
    lines: dict[bool, list[str]] = {True: [], False: []}
    for one in ids:
        try:
            worked, outcome, text = act(one)
        except ReliableError as error:
            worked, outcome, text = False, 'refused', str(error)
        done.append({'id': one, 'done': worked, 'outcome': outcome, 'message': text})
        lines[worked].append(f'{visible(one)}: {visible(text)}')
    cli.show({'jobs': done}, '\n'.join(lines[True]))
    if lines[False]:
        cli.note('\n'.join(lines[False]))
        cli.ctx.exit(1)


@command(
    'cancel',
    destroys=True,
    examples=[
        'celery -A proj reliable cancel 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b',
        'celery -A proj reliable cancel --terminate --yes 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b',
        'celery ... jobs --task shop.sync --json | jq -r ".jobs[].id" | celery ... cancel -y -',
    ],
)
@_ids
@click.option('--terminate', is_flag=True, help='Also end the process that runs it.')
@click.option('--signal', default='TERM', show_default=True, help='For --terminate.')
@click.option('--cascade', is_flag=True, help='Also if other jobs wait for it: they fail.')
def cancel(cli: Cli, ids: tuple[str, ...], terminate: bool, signal: str, cascade: bool) -> None:
    """Ends jobs for good, also delayed and waiting ones; "-" reads their ids from standard input.

    What runs goes on, unless --terminate is given, but what comes of it does not count any more.
    A dead letter is no job to cancel: see "failed discard".
    """
    chosen = ids_of(ids)
    if not cli.yes:
        cli.confirm(f'Cancel {_named(cli, chosen)}?')

    def act(one: str) -> tuple[bool, str, str]:
        answer = cli.ext.jobs.cancel(one, terminate, cascade=cascade, signal=signal)
        return answer != 'unknown', answer, _SAID[answer]

    act_on(cli, chosen, act)


def _named(cli: Cli, ids: list[str]) -> str:
    if len(ids) != 1:
        return f'{len(ids)} jobs'
    job = cli.ext.jobs.get(ids[0])
    return f'job {ids[0]}' if job is None else f'{job.task or "job"} {job.id}, which is {job.state}'


@command('retry', examples=['celery -A proj reliable retry 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b'])
@_ids
def retry(cli: Cli, ids: tuple[str, ...]) -> None:
    """Lets dead letters run once more, with as many deliveries as new jobs have."""

    def act(one: str) -> tuple[bool, str, str]:
        job = cli.ext.jobs.retry(one)
        return True, 'done', f'runs again in queue {job.queue}'

    act_on(cli, ids_of(ids), act)


@command(
    'move',
    examples=['celery -A proj reliable move --to mail-slow 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b'],
)
@_ids
@click.option('--to', 'queue', required=True, type=QueueName(), help='The queue to move them to.')
def move(cli: Cli, ids: tuple[str, ...], queue: str) -> None:
    """Puts jobs into another queue, in the state and at the place they have."""

    def act(one: str) -> tuple[bool, str, str]:
        job = cli.ext.jobs[one]
        before = job.queue
        job.move(queue)
        return True, 'done', f'moved from {before} to {queue}'

    act_on(cli, ids_of(ids), act)


@command(
    'priority',
    examples=['celery -A proj reliable priority --to 9 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b'],
)
@_ids
@click.option(
    '--to', 'number', required=True, type=click.IntRange(0, 255), help='The priority, 0-255.'
)
def priority(cli: Cli, ids: tuple[str, ...], number: int) -> None:
    """Gives jobs another priority."""

    def act(one: str) -> tuple[bool, str, str]:
        cli.ext.jobs[one].set_priority(number)
        return True, 'done', f'has priority {number}'

    act_on(cli, ids_of(ids), act)
