"""``failed``: dead letters, by group and one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from celery_ext.cli.acting import act_on, ids_of
from celery_ext.cli.common import Cli, Column, QueueName, group
from celery_ext.cli.output import age, count
from celery_ext.job import Job

__all__ = ('failed', 'groups_of')

failed = group(
    'failed',
    'Dead letters: what failed for good.\n\nThey are kept for 7 days and 10,000 a queue unless '
    'the transport options failed_retention and failed_limit say otherwise.  A group is usually '
    'a task.',
    examples=[
        'celery -A proj reliable failed groups',
        'celery -A proj reliable failed list --group shop.charge',
        'celery -A proj reliable failed replay --group shop.charge',
        'celery -A proj reliable jobs 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b',
    ],
)

#: Groups that are read at once.
GROUPS = 1000

GROUP_COLUMNS = (
    Column('group', tail=True),
    Column('count', right=True, style=lambda _: 'red'),
    Column('last', 'last failure', show=age),
)
_COLUMNS = (
    Column('id', keep=True),
    Column('task', drop=1, tail=True),
    Column('queue', drop=3),
    Column('at', 'failed', drop=2, show=age),
    Column('error'),
)


def groups_of(cli: Cli, limit: int = GROUPS) -> list[dict[str, Any]]:
    """The groups of dead letters, that of the last failure first."""
    return [
        {'group': one.name, 'count': one.count, 'last': one.last}
        for one in cli.ext.dead.groups(0, limit)
    ]


@failed.action('groups', examples=['celery -A proj reliable failed groups'])
def groups(cli: Cli) -> None:
    """Lists the groups of dead letters, that of the last failure first."""
    found = groups_of(cli)
    cli.show({'groups': found}, cli.table(found, GROUP_COLUMNS, 'no dead letters'))


@failed.action(
    'list',
    examples=[
        'celery -A proj reliable failed list --group shop.charge --limit 10',
        'celery -A proj reliable failed list --queue mail --json',
    ],
)
@click.option('--group', help='Only those of this group.')
@click.option('--queue', type=QueueName(), help='Only those in this queue.')
@click.option('--offset', type=click.IntRange(0), default=0, help='Pass over so many.')
@click.option(
    '--limit', type=click.IntRange(1), default=50, show_default=True, help='At most so many.'
)
def list_(cli: Cli, group: str | None, queue: str | None, offset: int, limit: int) -> None:
    """Lists dead letters, the newest first; "jobs ID" shows one with its traceback."""
    records = [_record(job) for job in cli.ext.dead.page(queue, group, offset, limit)]
    cli.show({'jobs': records}, cli.table(records, _COLUMNS, 'no dead letters'))


def _record(job: Job) -> dict[str, Any]:
    failure = job.failure
    return {
        'id': job.id,
        'task': job.task,
        'queue': job.queue,
        'reason': failure and failure.reason,
        'type': failure and failure.type,
        'message': failure and failure.message,
        'error': str(failure or ''),
        'group': failure and failure.group,
        'at': failure and failure.at,
    }


_chosen = (
    click.argument('ids', nargs=-1, metavar='[ID]...'),
    click.option('--group', help='All of this group.'),
    click.option('--all', 'everything', is_flag=True, help='All of all groups.'),
)


def _choice(fun: Any) -> Any:
    for decorate in reversed(_chosen):
        fun = decorate(fun)
    return fun


@failed.action(
    'replay',
    examples=[
        'celery -A proj reliable failed replay 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b',
        'celery -A proj reliable failed replay --group shop.charge',
    ],
)
@_choice
def replay(cli: Cli, ids: tuple[str, ...], group: str | None, everything: bool) -> None:
    """Lets dead letters run once more: some by id, those of a group, or all.

    They have as many deliveries as new jobs have.  "-" reads ids from standard input.
    """
    _check(cli, ids, group, everything)
    if ids:

        def act(one: str) -> tuple[bool, str, str]:
            return True, 'done', f'runs again in queue {cli.ext.dead.replay(one).queue}'

        act_on(cli, ids_of(ids), act)
        return
    _each_group(cli, group, 'Replaying', cli.ext.dead.replay_group, 'run again')


@failed.action(
    'discard',
    destroys=True,
    examples=[
        'celery -A proj reliable failed discard 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b',
        'celery -A proj reliable failed discard --group shop.charge --yes',
    ],
)
@_choice
def discard(cli: Cli, ids: tuple[str, ...], group: str | None, everything: bool) -> None:
    """Deletes dead letters: some by id, those of a group, or all.

    What waits for them fails, unless its policy is "ignore".  "-" reads ids from standard input.
    """
    _check(cli, ids, group, everything)
    if ids:
        chosen = ids_of(ids)
        cli.confirm(f'Delete {len(chosen)} dead letter{"s" * (len(chosen) != 1)} for good?')

        def act(one: str) -> tuple[bool, str, str]:
            cli.ext.dead.discard(one)
            return True, 'done', 'deleted'

        act_on(cli, chosen, act)
        return
    held = sum(one['count'] for one in groups_of(cli) if group in (None, one['group']))
    cli.confirm(f'Delete {count(held)} dead letters of {group or "all groups"} for good?')
    _each_group(cli, group, 'Deleting', cli.ext.dead.discard_group, 'deleted')


def _check(cli: Cli, ids: tuple[str, ...], group: str | None, everything: bool) -> None:
    if bool(ids) + (group is not None) + everything != 1:
        raise click.UsageError('say which: ids, --group NAME, or --all', cli.ctx)


def _each_group(
    cli: Cli, group: str | None, label: str, act: Callable[..., int], said: str
) -> None:
    names = [one['group'] for one in groups_of(cli)] if group is None else [group]
    done = []
    for name in names:
        with cli.progress(label) as tell:
            done.append({'group': name, 'count': act(name, tell)})
    cli.show(
        {'groups': done},
        cli.table(done, [Column('group'), Column('count', said, right=True)], 'no dead letters'),
    )
