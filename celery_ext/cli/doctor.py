"""``doctor``: what is set up so that it will hurt."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterator
from dataclasses import asdict

import click

from celery_ext.cli.common import Cli, command
from celery_ext.cli.output import terminal_width, visible
from celery_ext.doctor import Finding, examine

__all__ = ('doctor',)

_COLORS = {'ok': 'green', 'warning': 'yellow', 'problem': 'red'}


@command(
    'doctor',
    examples=[
        'celery -A proj reliable doctor',
        'celery -A proj reliable doctor --json --strict',
    ],
)
@click.option('--strict', is_flag=True, help='Warnings count as problems.')
def doctor(cli: Cli, strict: bool) -> None:
    """Looks for settings that lose tasks, run them twice, or let them wait.

    The server (version, memory, persistence, clock, replication), the data (layout, leftovers of
    kombu's redis transport, forgotten pauses), the app (lease, acknowledgement of its tasks,
    result backend).  Each finding says what to do.  Exits with 1 if there is a problem.
    """
    with _only_errors(logging.getLogger('kombu_reliable')):  # the rest is among the findings
        found = examine(cli.app)
    bad = ('problem', 'warning') if strict else ('problem',)
    healthy = not any(one.level in bad for one in found)
    cli.show(
        {'healthy': healthy, 'findings': [asdict(one) for one in found]},
        '\n'.join(_text(one) for one in found),
        _sum(found),
    )
    if not healthy:
        cli.ctx.exit(1)


@contextlib.contextmanager
def _only_errors(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _text(finding: Finding) -> str:
    width = min(terminal_width() or 100, 100)
    indent = ' ' * 9

    def fill(text: str, first: str) -> str:
        return textwrap.fill(
            visible(text), width, initial_indent=first, subsequent_indent=indent,
            break_on_hyphens=False,
        )  # fmt: skip

    body = fill(f'{finding.check}: {finding.text}', indent)[len(indent) :]
    lines = [click.style(f'{finding.level:<7}', fg=_COLORS[finding.level]) + '  ' + body]
    if finding.advice:
        lines.append(fill(finding.advice, f'{indent}-> '))
    return '\n'.join(lines)


def _sum(found: list[Finding]) -> str:
    problems = sum(one.level == 'problem' for one in found)
    warnings = sum(one.level == 'warning' for one in found)
    if not (problems or warnings):
        return 'All is well.'
    return f'Problems: {problems}, warnings: {warnings}.'
