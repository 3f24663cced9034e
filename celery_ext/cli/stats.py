"""``stats``: how long tasks waited and ran."""

from __future__ import annotations

from typing import Any

import click

from celery_ext.cli.common import Cli, Column, QueueName, command
from celery_ext.cli.output import figures, visible
from kombu_reliable import Stats, Summary

__all__ = ('stats',)

#: Of a histogram in the terminal.
LINES, WIDTH = 20, 40

SHARES = {'p50': 0.5, 'p95': 0.95, 'p99': 0.99}


def _time(seconds: Any) -> str:
    """A length of time that is told from others at a glance."""
    if seconds is None:
        return '-'
    if seconds < 0.9995:  # or it would be printed as 1,000 ms
        return f'{figures(seconds * 1000)} ms'
    if seconds < 120:
        return f'{figures(seconds)} s'
    if seconds < 7200:
        return f'{figures(seconds / 60)} min'
    return f'{figures(seconds / 3600)} h'


COLUMNS = (
    Column('day', drop=1),
    Column('queue', tail=True),
    Column('task', tail=True),
    Column('runs', right=True),
    Column('failed', right=True, style=lambda value: 'red' if value else None),
    Column('retried', right=True, drop=4),
    Column('stalled', right=True, drop=3, style=lambda value: 'yellow' if value else None),
    Column('wait_p50', 'wait p50', right=True, show=_time, drop=5),
    Column('wait_p95', 'wait p95', right=True, show=_time),
    Column('run_p50', 'run p50', right=True, show=_time, drop=2),
    Column('run_p95', 'run p95', right=True, show=_time),
)


@command(
    'stats',
    examples=[
        'celery -A proj reliable stats',
        'celery -A proj reliable stats --queue mail --days 7 --by day',
        'celery -A proj reliable stats --task shop.mail.send --histogram',
    ],
)
@click.option('--queue', type=QueueName(), help='Only this queue.')
@click.option('--task', help='Only this task.')
@click.option('--day', metavar='YYYY-MM-DD', help='The last day (UTC); today unless given.')
@click.option('--days', type=int, default=1, show_default=True, help='How many days.')
@click.option(
    '--by', multiple=True, type=click.Choice(['day', 'queue', 'task']),
    help='What to tell apart; queue and task unless given.',
)  # fmt: skip
@click.option('--histogram', is_flag=True, help='How waits and runs are spread, all in one.')
def stats(
    cli: Cli, queue: str | None, task: str | None, day: str | None, days: int,
    by: tuple[str, ...], histogram: bool,
) -> None:  # fmt: skip
    """Shows how long tasks waited and ran, and how often they failed.

    wait: from when they were due, or ready, to their start.  stalled: runs that were lost with
    their worker or their lease.  Days are kept for a month.
    """
    if histogram:
        whole = cli.ext.stats(queue, task, day, days)
        cli.show(
            {'stats': _record(whole), 'wait': _bars(whole.wait), 'run': _bars(whole.run)},
            *(_picture(name, summary) for name, summary in (('wait', whole.wait),
                                                            ('run', whole.run))),
        )  # fmt: skip
        return
    parts = by or ('queue', 'task')
    found = [
        _record(one) for one in cli.ext.stats.by(*parts, queue=queue, task=task, day=day, days=days)
    ]
    columns = [one for one in COLUMNS if one.field not in ('day', 'queue', 'task')]
    shown = [one for one in COLUMNS if one.field in parts] + columns
    cli.show({'stats': found}, cli.table(found, shown, 'nothing was counted'))


def _record(one: Stats) -> dict[str, Any]:
    record: dict[str, Any] = {
        'day': one.day, 'queue': one.queue, 'task': one.task, 'runs': one.run.count,
        'failed': one.failed, 'retried': one.retried, 'stalled': one.stalled,
    }  # fmt: skip
    for name, summary in (('wait', one.wait), ('run', one.run)):
        known = summary.count > 0
        for field in ('count', 'mean', 'stdev', 'min', 'max'):
            record[f'{name}_{field}'] = getattr(summary, field)
        for field, share in SHARES.items():
            record[f'{name}_{field}'] = summary.percentile(share) if known else None
    return record


def _bars(summary: Summary) -> list[dict[str, Any]]:
    return [{'from': bar.low, 'to': bar.high, 'count': bar.count} for bar in summary.bars()]


def _picture(name: str, summary: Summary) -> str:
    """A histogram as bars; several buckets to a line if there are many."""
    if not summary.count:
        return f'{name}: nothing was counted'
    shares = ', '.join(f'{one} {_time(summary.percentile(SHARES[one]))}' for one in SHARES)
    lines = [f'{name}: {summary.count:,} counted, mean {_time(summary.mean)}, {shares}']
    bars = summary.bars()
    step = -(-len(bars) // LINES)
    groups = [bars[at : at + step] for at in range(0, len(bars), step)]
    counts = [sum(bar.count for bar in group) for group in groups]
    for group, count in zip(groups, counts, strict=True):
        bar = '#' * -(-WIDTH * count // max(counts))
        lines.append(f'  up to {_time(group[-1].high):>8}  {bar:<{WIDTH}}  {count:,}'.rstrip())
    return visible('\n'.join(lines), lines=True)
