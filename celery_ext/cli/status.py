"""``status``: what goes on, on one screen."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click
import redis.exceptions

from celery_ext.cli.common import Cli, Column, Failed, command, told
from celery_ext.cli.failed import GROUP_COLUMNS, groups_of
from celery_ext.cli.output import count, cut, duration, size, terminal_width, visible, write
from celery_ext.cli.queues import COLUMNS, look
from celery_ext.cli.throttles import COLUMNS as THROTTLE_COLUMNS
from celery_ext.cli.throttles import look as look_at_throttles
from celery_ext.cli.workers import COLUMNS as WORKER_COLUMNS
from celery_ext.cli.workers import record_of

__all__ = ('SECTIONS', 'status')

#: Groups of dead letters that are shown.
GROUPS = 5

#: Workers, and throttles, that are shown on the screen; and throttles in the JSON document.
SHOWN, THROTTLES = 10, 1_000

#: What a section finds, and how it looks.  It is given what the look before found, and how many
#: seconds ago that was.
Section = Callable[[Cli, Any, float], tuple[Any, str]]


def _server(cli: Cli, before: Any, passed: float) -> tuple[Any, str]:
    """The server, and how busy it is."""
    info: Any = cli.ext.store.client.info()
    found = {
        'url': cli.app.connection_for_write().as_uri(),
        'kind': 'valkey' if 'valkey_version' in info else 'redis',
        'version': info.get('valkey_version') or info.get('redis_version'),
        'used_memory': info.get('used_memory'),
        'clients': info.get('connected_clients'),
        'commands_per_second': info.get('instantaneous_ops_per_sec'),
        'uptime': info.get('uptime_in_seconds'),
    }
    text = (
        f'{visible(found["url"])}\n{found["kind"]} {found["version"]}, '
        f'{size(found["used_memory"])}, {count(found["clients"] or 0)} clients, '
        f'{count(found["commands_per_second"] or 0)} commands/s, up {duration(found["uptime"])}'
    )
    width = terminal_width() or len(text)
    return found, '\n'.join(cut(line, width) for line in text.split('\n'))


def _queues(cli: Cli, before: Any, passed: float) -> tuple[Any, str]:
    """The queues, by state, and how the jobs that wait change."""
    found = look(cli)
    known = {one['name']: one for one in before or []}
    for one in found:
        then = known.get(one['name'])
        one['change_per_second'] = (
            None if then is None else round((_held(one) - _held(then)) / passed, 1)
        )
    columns = [*COLUMNS]
    if before is not None:
        columns.insert(-1, Column('change_per_second', 'change/s', right=True, drop=1, show=_rate))
    total = {
        state: sum(one[state] for one in found)
        for state in ('ready', 'delayed', 'waiting', 'throttled', 'leased', 'failed')
    }
    rows = [*found, {'name': 'all', **total}] if len(found) > 1 else found
    return found, cli.table(rows, columns, 'no queues')


def _held(one: dict[str, Any]) -> int:
    states = ('ready', 'delayed', 'waiting', 'throttled', 'leased')
    return sum(int(one[state]) for state in states)


def _rate(value: float | None) -> str:
    return '' if value is None else f'{value:+,.1f}' if value else '0'


def _workers(cli: Cli, before: Any, passed: float) -> tuple[Any, str]:
    """The workers, those in trouble first."""
    found = [record_of(one) for one in cli.ext.workers.all(jobs=0)]
    found.sort(key=lambda one: one['state'] == 'alive')
    return found, cli.table(found[:SHOWN], WORKER_COLUMNS, 'no workers') + _more(found)


def _throttles(cli: Cli, before: Any, passed: float) -> tuple[Any, str]:
    """The throttles for which most jobs wait."""
    found = look_at_throttles(cli)
    text = cli.table(found[:SHOWN], THROTTLE_COLUMNS) + _more(found) if found else ''
    return found[:THROTTLES], text


def _more(found: list[Any]) -> str:
    return f'\nand {count(len(found) - SHOWN)} more' if len(found) > SHOWN else ''


def _dead(cli: Cli, before: Any, passed: float) -> tuple[Any, str]:
    """The last groups of dead letters."""
    found = groups_of(cli, GROUPS)
    return found, cli.table(found, GROUP_COLUMNS) if found else ''


#: Key in the JSON document -> section, in the order in which they are shown.
SECTIONS: dict[str, Section] = {
    'server': _server,
    'queues': _queues,
    'workers': _workers,
    'throttles': _throttles,
    'failed': _dead,
}


@command(
    'status',
    examples=[
        'celery -A proj reliable status',
        'celery -A proj reliable status --once',
        'celery -A proj reliable status --json',
    ],
)
@click.option('--once', is_flag=True, help='Print it once; so it is where no terminal is.')
@click.option(
    '--interval', type=click.FloatRange(0.2), default=2.0, show_default=True,
    help='Seconds between two looks.',
)  # fmt: skip
def status(cli: Cli, once: bool, interval: float) -> None:
    """Shows what goes on, and goes on showing it until Ctrl-C.

    The server, the queues by state, the workers, the throttles for which most jobs wait, and the
    last groups of dead letters.
    """
    if once or cli.json or not sys.stdout.isatty():
        found, texts = _look(cli, {}, 0.0)
        cli.show(found, *texts)
        return
    try:
        _watch(cli, interval)
    except KeyboardInterrupt:
        write('')


def _look(cli: Cli, before: dict[str, Any], passed: float) -> tuple[dict[str, Any], list[str]]:
    found: dict[str, Any] = {'at': datetime.now(UTC)}
    texts = []
    for name, section in SECTIONS.items():
        found[name], text = section(cli, before.get(name), passed)
        texts.append(text)
    return found, texts


def _watch(cli: Cli, interval: float) -> None:
    before: dict[str, Any] = {}
    looked = time.monotonic()
    click.clear()
    while True:
        try:
            with told():
                now = time.monotonic()
                before, texts = _look(cli, before, max(now - looked, 0.001))
                looked = now
            text = '\n\n'.join(filter(None, texts))
        except Failed as error:
            # Servers come back.
            if not before and not isinstance(error.__cause__, redis.exceptions.RedisError):
                raise
            text = click.style(error.message, fg='red')
        _draw(f'{datetime.now():%H:%M:%S}, every {duration(interval)}\n{text}')
        time.sleep(interval)


def _draw(text: str) -> None:
    """Overwrites the screen in one go, so that it does not flicker."""
    lines = text.split('\n')[: shutil.get_terminal_size().lines - 1]
    write('\x1b[H' + ''.join(f'{line}\x1b[K\n' for line in lines) + '\x1b[J')
