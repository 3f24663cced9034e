"""``celery reliable ...``: the command line.

Celery loads this module whenever any of its commands starts.  That is what makes the broker
URLs known and the worker's knowledge available to the transport, with no import in user code.
"""

from __future__ import annotations

import click

import kombu_reliable
from celery_ext import bridge, next_run

__all__ = ('reliable',)

kombu_reliable.register()
bridge.connect()
next_run.connect()


@click.group(name='reliable')
@click.version_option(kombu_reliable.__version__, prog_name='kombu_reliable')
def reliable() -> None:
    """Looks after queues on kombu_reliable.

    \b
    Point an app at the transport with its broker URL:
      broker_url = "reliable+redis://localhost:6379/0"
    """
