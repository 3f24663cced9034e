"""``migrate``: from kombu's redis transport and back."""

from __future__ import annotations

import time
from typing import Any

import click

from celery_ext.cli.common import Cli, Column, command
from celery_ext.cli.output import count, duration, visible
from celery_ext.migrate import Migration

__all__ = ('migrate',)

#: Seconds between two looks with ``--follow``.
PAUSE = 1.0

_FORWARD = (Column('queue'), Column('ready', right=True), Column('unacked', right=True))
_BACK = (
    Column('queue'),
    Column('ready', right=True),
    Column('delayed', right=True),
    Column('waiting', right=True),
    Column('leased', right=True),
    Column('failed', right=True),
)
_STAYED = (Column('queue'), Column('jobs', right=True), Column('why'))


def _option(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for one in values:
        name, equals, value = one.partition('=')
        if not equals:
            raise click.BadParameter(f'{one!r} is not NAME=VALUE')
        if name == 'priority_steps':
            given[name] = [int(step) for step in value.split(',')]
        else:
            given[name] = value
    return given


@command(
    'migrate',
    destroys=True,
    examples=[
        'celery -A proj reliable migrate --from redis://localhost:6379/0 --dry-run',
        'celery -A proj reliable migrate --from redis://localhost:6379/0 --follow',
        'celery -A proj reliable migrate --from redis://localhost:6379/0 --old-workers-stopped',
        'celery -A proj reliable migrate --to redis://localhost:6379/0 --old-workers-stopped',
    ],
)
@click.option('--from', 'source', metavar='URL', help='Move from here; else from the app.')
@click.option('--to', 'target', metavar='URL', help='Move to here; else to the app.')
@click.option('--queue', 'queues', multiple=True, help='Only this queue; may be repeated.')
@click.option(
    '--old-workers-stopped',
    'stopped',
    is_flag=True,
    help='Also what workers held; refused while one answers a ping.',
)
@click.option(
    '--keep-priorities',
    is_flag=True,
    help='Keep the numbers.  By default 0, first with redis://, becomes 9, first here.',
)
@click.option('--follow', is_flag=True, help='Go on with what comes in, until Ctrl-C.')
@click.option('--dry-run', is_flag=True, help='Only tell what waits.')
@click.option(
    '--option',
    'options',
    multiple=True,
    metavar='NAME=VALUE',
    callback=_option,
    help='Transport option of the redis:// side, as global_keyprefix, sep, priority_steps=0,3,6,9;'
    ' by default those of the app.',
)
def migrate(
    cli: Cli,
    source: str | None,
    target: str | None,
    queues: tuple[str, ...],
    stopped: bool,
    keep_priorities: bool,
    follow: bool,
    dry_run: bool,
    options: dict[str, Any],
) -> None:
    """Moves what waits under redis:// to reliable+redis://, or back.

    Nothing is lost and nothing doubled, also if this is killed and run again.  Give the other
    side with --from or --to; this side is the broker of the app.  What is ready moves while
    producers and workers go on.  What workers hold, tasks with a countdown among it, moves when
    they have stopped: --old-workers-stopped.
    """
    if source is None and target is None:
        raise click.UsageError('give the other side with --from or --to', cli.ctx)
    with Migration(
        cli.app,
        source,
        target,
        options=options,
        queues=queues,
        keep_priorities=keep_priorities,
        stopped=stopped,
    ) as migration:
        plan = migration.plan()
        if dry_run:
            cli.show({'dry_run': True, **plan}, *_plan(cli, migration, plan))
            return
        waits = sum(one['ready'] + one.get('delayed', 0) for one in plan['queues'])
        held = plan.get('unacked', 0) if stopped else 0
        cli.confirm(
            f'Move {count(waits + held)} messages from {plan["source"]} to {plan["target"]}?'
        )
        _run(cli, migration, waits + held, follow)
        report = migration.report()
        cli.show({'dry_run': False, **report}, *_report(cli, migration, report))
        if report.get('unreadable'):
            cli.ctx.exit(1)


def _run(cli: Cli, migration: Migration, total: int, follow: bool) -> None:
    with cli.progress('Moving', total) as tell:
        migration.run(tell)
        try:
            while follow:
                time.sleep(PAUSE)
                migration.run(tell)
        except KeyboardInterrupt:
            pass
    migration.end()


def _plan(cli: Cli, migration: Migration, plan: dict[str, Any]) -> list[str]:
    texts = [
        f'From {visible(plan["source"])} to {visible(plan["target"])}; nothing was changed.',
        cli.table(plan['queues'], _FORWARD[:2] if migration.forward else _BACK, 'no queues'),
    ]
    return [*texts, *_rest(migration, plan)]


def _report(cli: Cli, migration: Migration, report: dict[str, Any]) -> list[str]:
    columns = _FORWARD if migration.forward else _BACK[:3]
    texts = [
        f'{count(report["moved"])} messages moved in {duration(report["seconds"])}, '
        f'from {visible(report["source"])} to {visible(report["target"])}.',
        cli.table(report['queues'], columns, ''),
    ]
    if migration.forward and report['delayed']:
        texts.append(f'{count(report["delayed"])} of them have a due time.')
    if report.get('stayed'):
        texts.append('Not moved:\n' + cli.table(report['stayed'], _STAYED))
    if report['left']:
        left = cli.table(report['left'], _FORWARD[:2] if migration.forward else _BACK)
        texts.append(f'Left at the source:\n{left}')
    return [*texts, *_rest(migration, report)]


def _rest(migration: Migration, found: dict[str, Any]) -> list[str]:
    texts = []
    if found.get('unacked'):
        texts.append(
            f'Workers on the old broker hold {count(found["unacked"])} messages, those with a '
            'countdown among them. '
            + ('' if migration.stopped else 'Stop them, then run this with --old-workers-stopped.')
        )
    if found.get('unreadable'):
        texts.append(
            f'{count(found["unreadable"])} messages could not be read; they are in the list '
            f'{visible(found["unreadable_key"])}.'
        )
    if found.get('unknown_queues'):
        names = ', '.join(map(visible, found['unknown_queues']))
        texts.append(f'Tasks wait in lists that are no known queues; --queue moves them: {names}')
    return texts
