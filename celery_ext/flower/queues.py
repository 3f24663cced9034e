"""The tab Queues, and the page of one queue."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from celery_ext.flower.charts import histogram
from celery_ext.flower.page import Page
from celery_ext.flower.pages import Pages
from celery_ext.flower.query import Query
from celery_ext.flower.watch import Watch
from celery_ext.job import Job
from celery_ext.throttles import ThrottleInfo
from kombu_reliable import QueueCounts, Stats, UnknownQueue

__all__ = ('QueueRow', 'QueuesPage', 'SingleQueuePage', 'rows')

#: Queues on one page.
QUEUES = 100

#: Jobs that are shown of a queue.
NEXT = 10

#: Over how many days the charts of a queue may go.
DAYS = (1, 7, 30)


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue in the list.

    Args:
        name: its name.
        counts: its jobs, by state.
        oldest: since when the job waits that has waited longest and could start or is throttled.
        workers: how many workers consume it, as far as they say so.
    """

    name: str
    counts: QueueCounts
    oldest: datetime | None
    workers: int

    @property
    def queued(self) -> int:
        """Those that wait, for whatever."""
        counts = self.counts
        return counts.ready + counts.delayed + counts.waiting + counts.throttled


def rows(watch: Watch, extension: Any) -> tuple[list[QueueRow], int]:
    """All queues, and how many workers live."""

    def read() -> tuple[list[QueueRow], int]:
        store = extension.store
        names = extension.queues.names()
        figures = store.overview(names).queues
        now = store.now()
        alive = [sign for sign in store.presence.signs() if sign.believed_until > now]
        consumers = Counter(str(name) for sign in alive for name in sign.about.get('queues', ()))
        at = datetime.now(UTC)
        found = [
            QueueRow(
                name, figures[name].counts,
                None if figures[name].oldest is None
                else at - timedelta(seconds=figures[name].oldest or 0.0),
                consumers[name],
            )
            for name in names
        ]  # fmt: skip
        return found, len(alive)

    return watch.recent('queues', read)


@dataclass(frozen=True, slots=True)
class QueuesView:
    rows: list[QueueRow]
    pages: Pages
    totals: QueueCounts
    paused: int
    workers: int


class QueuesPage(Page):
    tab = 'reliable-queues'
    template = 'reliable-queues.html'

    def look(self, extension: Any, query: Query) -> QueuesView:
        found, workers = rows(self.watch, extension)
        wanted = query.text('search').lower()
        offset = query.number('offset')
        chosen = [row for row in found if wanted in row.name.lower()]
        shown = chosen[offset : offset + QUEUES]
        return QueuesView(
            shown, Pages(offset, len(shown), len(chosen), QUEUES),
            _totals([row.counts for row in found]),
            sum(row.counts.paused for row in found), workers,
        )  # fmt: skip


def _totals(counts: list[QueueCounts]) -> QueueCounts:
    names = ('ready', 'delayed', 'leased', 'dead', 'waiting', 'throttled')
    return QueueCounts(**{name: sum(getattr(one, name) for one in counts) for name in names})


@dataclass(frozen=True, slots=True)
class QueueView:
    """What there is to see of one queue.

    Args:
        name: its name.
        counts: its jobs, by state.
        next: the jobs that will start next.
        running: those that workers have.
        stats: of the last ``days``.
        wait: markup of the chart of waits.
        run: ... and of runs.
        limits: of the queue itself, if it has any.
        workers: who consumes it.
    """

    name: str
    counts: QueueCounts
    next: list[Job]
    running: list[Job]
    stats: Stats
    days: int
    wait: str
    run: str
    limits: ThrottleInfo | None
    workers: list[str] = field(default_factory=list)
    all_days: tuple[int, ...] = DAYS


def _limits(info: ThrottleInfo | None) -> ThrottleInfo | None:
    """Those that limit something: a queue with jobs has a throttle, whether or not it does."""
    limited = info is not None and (info.concurrency is not None or info.rate is not None)
    return info if limited else None


class SingleQueuePage(Page):
    tab = 'reliable-queues'
    template = 'reliable-queue.html'

    def look(self, extension: Any, query: Query) -> QueueView:
        name = query.needed('name')
        days = query.number('days', 1, 1, 30)
        queue = extension.queues[name]
        store = extension.store
        if not store.knows(name):
            raise UnknownQueue(f'there is no queue {name[:100]!r}')
        now = store.now()
        workers = [
            str(sign.about.get('name') or sign.worker)
            for sign in store.presence.signs()
            if sign.believed_until > now and name in sign.about.get('queues', ())
        ]
        stats = self.watch.recent(('stats', name, days), lambda: queue.stats(days=days))
        return QueueView(
            name, queue.counts(), queue.peek(NEXT),
            extension.jobs.in_state('leased', name, limit=NEXT),
            stats, days, histogram(stats.wait), histogram(stats.run), _limits(queue.throttle.get()),
            sorted(workers),
        )  # fmt: skip
