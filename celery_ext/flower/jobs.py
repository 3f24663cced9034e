"""The tab Jobs: lists, searches, and the page of one job."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from celery_ext.flower.graph import Graph, graph_of
from celery_ext.flower.page import Page
from celery_ext.flower.pages import SIZE, Pages
from celery_ext.flower.query import Query
from celery_ext.flower.queues import rows
from celery_ext.job import Event, Failure, Job, State
from celery_ext.search import Found
from kombu_reliable import InvalidArgument, TagCount, UnknownJob

__all__ = ('JobRow', 'JobsPage', 'SingleJobPage', 'job_rows')

STATES: tuple[State, ...] = get_args(State)

#: Seconds after which a page shows what it has found so far.
WITHIN = 1.0

#: Tags that are offered.
TAGS = 12


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job in a list, with what its message says."""

    job: Job
    task: str
    args: str

    @property
    def due(self) -> datetime | None:
        """Its due time, if it has a delay: one that waits for others has a time all the same."""
        info = self.job.info
        return self.job.due if info.due is not None and info.due > info.published_at else None


def job_rows(jobs: list[Job]) -> list[JobRow]:
    return [JobRow(job, job.task, _arguments(job)) for job in jobs]


def _arguments(job: Job) -> str:
    args, kwargs = job.args, job.kwargs
    return ' '.join(one for one in (args, kwargs) if one not in ('', '()', '[]', '{}'))


@dataclass(frozen=True, slots=True)
class JobsView:
    """A page of jobs.

    Args:
        rows: those.
        found: what the search says of itself.
        pages: where the page stands, if what is shown is all that is gone through.
        state, queue, task, tags: what was asked for.
        queues: all names.
        top: the most used tags.
    """

    rows: list[JobRow]
    found: Found
    pages: Pages | None
    state: str
    queue: str
    task: str
    tags: list[str]
    queues: list[str]
    top: list[TagCount]
    states: tuple[State, ...] = STATES


class JobsPage(Page):
    tab = 'reliable-jobs'
    template = 'reliable-jobs.html'

    def look(self, extension: Any, query: Query) -> JobsView:
        state = query.text('state')
        if state and state not in STATES:
            raise InvalidArgument(f'there is no state {state[:50]!r}')
        queue, task, tags = query.text('queue'), query.text('task'), _tags(query)
        found = extension.jobs.search(
            state or None, queue or None, task or None, tags, query.text('after'), SIZE, WITHIN
        )
        listed, _ = rows(self.watch, extension)
        pages = None
        if not tags and not task:
            offset = query.number('after')
            pages = Pages(offset, min(SIZE, max(0, (found.total or 0) - offset)), found.total)
        return JobsView(
            job_rows(found.jobs), found, pages, state, queue, task, tags,
            [row.name for row in listed],
            self.watch.recent('tags', lambda: extension.tags.top(TAGS)),
        )  # fmt: skip


def _tags(query: Query) -> list[str]:
    """One tag as it is, which may hold anything, or words from the form."""
    tag = query.text('tag')
    return [*([tag] if tag else []), *query.words('tags')]


@dataclass(frozen=True, slots=True)
class JobView:
    """What there is to know of one job.

    Args:
        row: the job, and what its message says.
        failure: why it is a dead letter.
        history: the newest first.
        graph: what it waits for, and who waits for it.
        others: further jobs under the same id.
        queues: where it can be moved.
        known: Flower has seen events of it.
    """

    row: JobRow
    kwargs: str
    failure: Failure | None
    history: list[Event]
    graph: Graph | None
    others: list[Job]
    queues: list[str]
    known: bool

    @property
    def job(self) -> Job:
        return self.row.job

    @property
    def waits(self) -> bool:
        """Nobody has it, so it can be moved and changed."""
        return self.job.state in ('ready', 'throttled', 'delayed', 'waiting', 'failed')


class SingleJobPage(Page):
    tab = 'reliable-jobs'
    template = 'reliable-job.html'

    def look(self, extension: Any, query: Query) -> JobView:
        name = query.needed('id')
        found = extension.jobs.all(name) or extension.jobs.all(name.strip())
        if not found:
            raise UnknownJob(
                f'no job lives under {name[:100]!r} any more: it has succeeded, was cancelled, '
                'or there never was one'
            )
        job = found[0]
        listed, _ = rows(self.watch, extension)
        return JobView(
            JobRow(job, job.task, job.args), job.kwargs,
            job.failure, job.history[::-1], graph_of(extension, job), found[1:],
            [row.name for row in listed],
            name in self.application.events.state.tasks,
        )  # fmt: skip
