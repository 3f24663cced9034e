"""``events``: what befalls tracked jobs, as it happens."""

from __future__ import annotations

import json

import click

from celery_ext.cli.common import Cli, command
from celery_ext.cli.output import visible, write
from celery_ext.events import EVENTS, JobEvent
from kombu_reliable import Gap

__all__ = ('events',)


@command(
    'events',
    examples=[
        'celery -A proj reliable events',
        'celery -A proj reliable events --since 0 --timeout 1 --json',
        'celery -A proj reliable events --only failed --only stalled',
    ],
)
@click.option(
    '--since', metavar='POSITION', help='What comes after this event; 0: all that are kept.'
)
@click.option(
    '--timeout', type=float, metavar='SECONDS', help='End when nothing has come for so long.'
)
@click.option('--only', multiple=True, type=click.Choice(EVENTS), help='May be repeated.')
def events(cli: Cli, since: str | None, timeout: float | None, only: tuple[str, ...]) -> None:
    """Prints what befalls tracked jobs, until it is interrupted.

    With --json each event is a line of its own.
    """
    for event in cli.ext.events.listen(since, timeout):
        if not only or event.event in only:
            write(_json(event) if cli.json else visible(_line(event)))


def _line(event: JobEvent | Gap) -> str:
    if isinstance(event, Gap):
        lost = 'some' if event.lost is None else event.lost
        return f'... {lost} events are missing here'
    at = event.at.astimezone().isoformat(' ', 'milliseconds')
    return f'{at} {event.event:<10} {event.id} {event.task} {event.queue} {event.detail}'.rstrip()


def _json(event: JobEvent | Gap) -> str:
    if isinstance(event, Gap):
        return json.dumps({'event': 'gap', **event._asdict()})
    return json.dumps({**event._asdict(), 'at': event.at.isoformat()})
