"""``workers``: who is there, and what each holds."""

from __future__ import annotations

from typing import Any

import click

from celery_ext.cli.common import Cli, Column, command
from celery_ext.cli.output import age
from celery_ext.workers import Worker

__all__ = ('COLUMNS', 'record_of', 'workers')


def _color(state: Any) -> str:
    return 'green' if state == 'alive' else 'red'


COLUMNS = (
    Column('name', 'worker', tail=True),
    Column('state', style=_color),
    Column('since', show=age, drop=2),
    Column('seen', 'last sign', show=age),
    Column('slots', right=True, drop=3),
    Column('holding', right=True),
    Column('queues', drop=4, show=lambda names: ', '.join(names) or '-'),
    Column('id', keep=True, drop=1),
)

JOBS = (
    Column('worker', tail=True),
    Column('id', 'job', keep=True),
    Column('task', tail=True),
    Column('queue'),
    Column('lease_expires_at', 'lease ends', show=age),
)


def record_of(worker: Worker) -> dict[str, Any]:
    """A worker as a row of a table."""
    return {
        'name': worker.name or worker.id, 'state': worker.state, 'since': worker.since,
        'seen': worker.seen, 'slots': worker.slots, 'holding': worker.holding,
        'queues': list(worker.queues), 'id': worker.id,
    }  # fmt: skip


@command(
    'workers',
    examples=['celery -A proj reliable workers', 'celery -A proj reliable workers --jobs'],
)
@click.option('--jobs', 'with_jobs', is_flag=True, help='Also the jobs that each holds.')
def workers(cli: Cli, with_jobs: bool) -> None:
    """Shows the workers: those that are there, and for an hour those that have died.

    Those without celery_ext are seen only while they hold something.
    """
    found = cli.ext.workers.all()
    records = [record_of(one) for one in found]
    jobs = [
        {
            'worker': one.name or one.id, 'id': job.id, 'task': job.task, 'queue': job.queue,
            'lease_expires_at': job.lease_expires_at,
        }
        for one in found
        for job in one.jobs
    ]  # fmt: skip
    document = {'workers': records, 'jobs': jobs} if with_jobs else {'workers': records}
    texts = [cli.table(records, COLUMNS, 'no workers')]
    if with_jobs:
        texts.append(cli.table(jobs, JOBS, 'nobody holds anything'))
    cli.show(document, *texts)
