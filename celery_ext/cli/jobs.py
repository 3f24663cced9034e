"""``jobs``: lists jobs, and shows one with all that is known about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
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


def header_of(job: Job, name: str) -> str:
    """A field that is read from the message, which foreign data may have damaged."""
    try:
        return str(getattr(job, name))
    except Exception:
        return ''


def record_of(job: Job) -> dict[str, Any]:
    """A job as a row of a table."""
    return {
        'id': job.id,
        'task': header_of(job, 'task'),
        'args': header_of(job, 'args'),
        'kwargs': header_of(job, 'kwargs'),
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
@click.option('--task', help='Only those of this task.')
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
    seen = 0

    def wanted(job: Job) -> bool:
        nonlocal seen
        seen += 1
        return (
            (task is None or header_of(job, 'task') == task)
            and state in (None, job.state)
            and queue in (None, job.queue)
        )

    searching = bool(task or tags)
    found = _tagged(cli, tags) if tags else _all(cli, state, queue)
    found = islice(found, SEARCHED) if searching else found
    page = list(islice(filter(wanted, found), offset, offset + limit))
    records = [record_of(job) for job in page]
    complete = len(page) < limit and not (searching and seen == SEARCHED)
    if not complete and not cli.json:
        cli.note(f'there may be more: --offset {offset + limit}, or a larger --limit')
    cli.show({'jobs': records, 'complete': complete}, cli.table(records, COLUMNS, 'no jobs'))


def _all(cli: Cli, state: State | None, queue: str | None) -> Iterator[Job]:
    for one in (state,) if state else STATES[:-1]:  # what has completed needs nobody
        yield from pages(partial(cli.ext.jobs.in_state, one, queue, limit=PAGE))


def _tagged(cli: Cli, tags: tuple[str, ...]) -> Iterator[Job]:
    page = cli.ext.jobs.tagged(*tags, limit=PAGE)
    yield from page
    while page.next:
        page = cli.ext.jobs.tagged(*tags, limit=PAGE, after=page.next)
        yield from page


def pages(read: Callable[[int], list[Job]]) -> Iterator[Job]:
    """The jobs of all pages that a function reads from an offset on."""
    offset = 0
    # A page may be short because some of its jobs have gone meanwhile.
    while page := read(offset):
        yield from page
        offset += PAGE


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
