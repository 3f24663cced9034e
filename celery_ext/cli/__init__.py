"""``celery reliable ...``: the command line.

Celery loads this module whenever any of its commands starts.  That is what makes the broker
URLs known and the worker's knowledge available to the transport, with no import in user code.
The commands are loaded when one of them is used: a worker that starts must not pay for them.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click
from celery import signals
from click_didyoumean import DYMGroup

import kombu_reliable
from celery_ext import bridge, following, next_run, starts

__all__ = ('COMMANDS', 'Commands', 'reliable')

kombu_reliable.register()
bridge.connect()
next_run.connect()
starts.connect()
following.connect()


def _serve_in_flower(sender: Any, **_: Any) -> None:
    """Flower, when it starts, imports the tasks of its app: then it gets our figures and pages."""
    context = click.get_current_context(silent=True)
    if context is not None and context.info_name == 'flower':
        from celery_ext import metrics
        from celery_ext.broker import is_ours
        from celery_ext.cli.common import extension_of

        if is_ours(sender):
            metrics.register(extension_of(sender))
            import_module('celery_ext.flower')


signals.import_modules.connect(_serve_in_flower, weak=False, dispatch_uid='celery_ext.flower')


#: Name of a command -> the file beside this one that has it, under the same name.
COMMANDS: dict[str, str] = {
    'cancel': 'acting',
    'doctor': 'doctor',
    'events': 'events',
    'failed': 'failed',
    'jobs': 'jobs',
    'metrics': 'metrics',
    'migrate': 'migrate',
    'move': 'acting',
    'pause': 'queues',
    'priority': 'acting',
    'queues': 'queues',
    'resume': 'queues',
    'retry': 'acting',
    'schedules': 'schedules',
    'stats': 'stats',
    'status': 'status',
    'tags': 'tags',
    'throttles': 'throttles',
    'workers': 'workers',
}


class Commands(DYMGroup):
    """A group that loads a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> Any:
        if name not in COMMANDS:
            return None
        module = import_module(f'celery_ext.cli.{COMMANDS[name]}')
        return getattr(module, name)


@click.group(name='reliable', cls=Commands)
@click.version_option(kombu_reliable.__version__, prog_name='kombu_reliable')
def reliable() -> None:
    """Looks after queues on kombu_reliable.

    \b
    Point an app at the transport with its broker URL:
      broker_url = "reliable+redis://localhost:6379/0"
    """
