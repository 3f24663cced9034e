"""``jobs``: lists jobs, and shows one with all that is known about it."""

from __future__ import annotations

from typing import Any

import click

from celery_ext.cli.common import Cli, Column, QueueName, command
from celery_ext.cli.output import age, fields, visible
from celery_ext.job import Job, State

__all__ = ('COLUMNS', 'details_of', 'jobs', 'record_of')

STATES: tuple[State, ...] = (
    'leased',
    'ready',
    'throttled',
    'delayed',
    'waiting',
    'failed',
    'completed',
)
_COLORS = {'leased': 'green', 'failed': 'red', 'delayed': 'cyan', 'waiting': 'yellow'}

#: How many jobs a search looks at; the server keeps no list by task.
SEARCHED = 10_000
PAGE = 200


def state_color(state: Any) -> str | None:
    return _COLORS.get(state)


COLUMNS = (
    Column('id', keep=True),
    Column('task', tail=True),
    Column('state', keep=True, style=state_color),
    Column('queue', drop=2),
    Column('priority', 'prio', right=True, drop=4),
    Column('due', drop=3, show=age),
    Column('published_at', 'published', drop=1, show=age),
    Column('worker', drop=5),
)


def record_of(job: Job) -> dict[str, Any]:
    """A job as a row of a table."""
    return {
        'id': job.id,
        'task': job.task,
        'args': job.args,
        'kwargs': job.kwargs,
        'queue': job.queue,
        'state': job.state,
        'priority': job.priority,
        'published_at': job.published_at,
        'due': job.due,
        'deliveries': job.deliveries,
        'worker': job.worker,
        'lease_expires_at': job.lease_expires_at,
    }


def details_of(job: Job) -> dict[str, Any]:
    """All that is known about a job."""
    return {
        **record_of(job),
        'depends_on': list(job.depends_on),
        'dependency_count': job.depends_on.total,
        'dependents': list(job.dependents),
        'dependent_count': job.info.dependent_count,
        'dependency_policy': job.dependency_policy,
        'tags': list(job.tags),
        'tracked': job.tracked,
        'progress': job.progress,
        'completed_at': job.completed_at,
        'failure': None if job.failure is None else job.failure._asdict(),
        'history': [event._asdict() for event in job.history],
    }


@command(
    'jobs',
    examples=[
        'celery -A proj reliable jobs',
        'celery -A proj reliable jobs --state delayed --queue mail',
        'celery -A proj reliable jobs --task shop.mail.send --json',
        'celery -A proj reliable jobs --tag customer:17 --tag billing',
        'celery -A proj reliable jobs 3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b',
    ],
)
@click.argument('job_id', required=False)
@click.option('--state', type=click.Choice(STATES), help='Only those in this state.')
@click.option('--queue', type=QueueName(), help='Only those in this queue.')
@click.option('--task', help='Only those of this task; * stands for any part.')
@click.option('--tag', 'tags', multiple=True, help='Only those with this tag; may be repeated.')
@click.option('--offset', type=click.IntRange(0), default=0, help='Pass over so many.')
@click.option(
    '--limit', type=click.IntRange(1), default=50, show_default=True, help='At most so many.'
)
def jobs(
    cli: Cli, job_id: str | None, state: State | None, queue: str | None, task: str | None,
    tags: tuple[str, ...], offset: int, limit: int,
) -> None:  # fmt: skip
    """Lists jobs, or shows one with its history, dependencies and failure.

    A job is a task that has not ended, or that has failed.  Unless --state is given, the jobs of
    all states are listed: leased (a worker has it), ready, throttled (for a throttle, or its
    turn), delayed, waiting (for other jobs), failed.  Those with a tag are listed from the newest
    on, also those that have completed and are kept.
    """
    if job_id is not None:
        _show(cli, job_id)
        return
    page, complete = _page(cli, offset, limit, state=state, queue=queue, task=task, tags=tags)
    records = [record_of(job) for job in page]
    if not complete and not cli.json:
        cli.note(f'there may be more: --offset {offset + limit}, or a larger --limit')
    cli.show({'jobs': records, 'complete': complete}, cli.table(records, COLUMNS, 'no jobs'))


def _page(cli: Cli, offset: int, limit: int, **wanted: Any) -> tuple[list[Job], bool]:
    """Some of the jobs for which all of this is true, and whether no more follow."""
    after = ''
    if not (wanted['task'] or wanted['tags']):  # nothing need be gone through
        after, offset = str(offset), 0
    found: list[Job] = []
    looked = 0
    while len(found) < offset + limit and looked < max(SEARCHED, offset + limit):
        page = cli.ext.jobs.search(
            after=after, limit=min(PAGE, offset + limit - len(found)), **wanted
        )
        found += page.jobs
        looked, after = looked + page.looked, page.next
        if not after:
            break
    return found[offset:], not after


def _show(cli: Cli, job_id: str) -> None:
    found = cli.ext.jobs.all(job_id) or [cli.ext.jobs[job_id]]
    documents = [details_of(job) for job in found]
    cli.show({'jobs': documents}, *(_text(document) for document in documents))


def _text(job: dict[str, Any]) -> str:
    failure = job['failure']
    shown = {
        name: value
        for name, value in job.items()
        if name not in ('failure', 'history', 'dependency_count', 'dependent_count')
    }
    text = fields({name.replace('_', ' '): value for name, value in shown.items()})
    for name in ('depends_on', 'dependents'):
        total = job[{'depends_on': 'dependency_count', 'dependents': 'dependent_count'}[name]]
        if total > len(job[name]):
            text += f'\n{name.replace("_", " ")}: {total} in all'
    if failure is not None:
        told = {name: value for name, value in failure.items() if name != 'traceback'}
        text += '\n\n' + click.style('Failure', bold=True) + '\n' + fields(told)
        if failure['traceback']:
            text += '\n' + visible(failure['traceback'].rstrip(), lines=True)
    if job['history']:
        events = {
            f'{number}. {event["event"]}': f'{age(event["at"])} {event["detail"]}'.rstrip()
            for number, event in enumerate(job['history'], 1)
        }
        text += '\n\n' + click.style('History', bold=True) + '\n' + fields(events)
    return text
