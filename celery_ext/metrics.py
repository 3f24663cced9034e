"""Figures for Prometheus: a collector of prometheus_client.

    pip install 'kombu-reliable[metrics]'

It is served by ``celery reliable metrics`` and in Flower's ``/metrics``; one process that serves it
is enough.  What it tells is the state of the server, not of this process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import redis.exceptions
from prometheus_client import REGISTRY
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from kombu_reliable import ReliableError, Stats, Summary

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('BUCKETS', 'Collector', 'register')

logger = logging.getLogger('celery_ext')

#: Upper bounds of the buckets of histograms, in seconds.
BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
    900.0, 3600.0, 14400.0, 86400.0,
)  # fmt: skip

#: What was collected serves all scrapes for so many seconds, and for so many times as long as it
#: took to collect.
FRESH, SHARE = 1.0, 20.0

#: After how many seconds a server that did not answer is asked again.
RETRY = 5.0

#: How often the names of the queues are looked up, in seconds.
NAMES = 10.0

#: More throttles than this are not told of.
THROTTLES = 100

PREFIX = 'celery_reliable'


class Collector:
    """Collects the figures of an app's broker.

    Args:
        extension: of the app.

    Example:
        >>> prometheus_client.REGISTRY.register(Collector(ext))
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension
        self._lock = threading.Lock()
        self._metrics: list[Metric] = []
        self._good_until = float('-inf')
        self._names: list[str] = []
        self._names_until = float('-inf')

    def describe(self) -> Sequence[Metric]:
        """Nothing: registering a collector must not ask the server."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The figures, at most a second old."""
        with self._lock:
            begun = time.monotonic()
            if begun >= self._good_until:
                self._metrics, pause = self._look()
                now = time.monotonic()
                self._good_until = now + max(pause, SHARE * (now - begun))
        yield from self._metrics

    def _look(self) -> tuple[list[Metric], float]:
        up = GaugeMetricFamily(f'{PREFIX}_up', 'Whether the server answers.')
        try:
            metrics = list(self._figures())
        except (redis.exceptions.RedisError, OSError, ReliableError) as error:
            logger.warning('no metrics: %s', error)
            up.add_metric((), 0)
            return [up], RETRY
        up.add_metric((), 1)
        return [up, *metrics], FRESH

    def _figures(self) -> Iterator[Metric]:
        store = self._extension.store
        now = time.monotonic()
        if now >= self._names_until:
            self._names = self._extension.queues.names()
            self._names_until = now + NAMES
        yield from _queues(store.overview(self._names))
        yield from _workers(store)
        yield from _throttles(store)
        yield from _tasks(store.stats.read([store.stats.today()]))


def _queues(found: Any) -> Iterator[Metric]:
    jobs = GaugeMetricFamily(f'{PREFIX}_jobs', 'Jobs by state.', labels=('queue', 'state'))
    paused = GaugeMetricFamily(f'{PREFIX}_queue_paused', 'Whether it is paused.', labels=('queue',))
    oldest = GaugeMetricFamily(
        f'{PREFIX}_oldest_waiting_seconds',
        'How long the job has waited that could start or is throttled; 0 if there is none.',
        labels=('queue',),
    )
    for name, figures in found.queues.items():
        for state in ('ready', 'delayed', 'waiting', 'leased', 'throttled'):
            jobs.add_metric((name, state), getattr(figures.counts, state))
        jobs.add_metric((name, 'failed'), figures.counts.dead)
        paused.add_metric((name,), int(figures.counts.paused))
        oldest.add_metric((name,), figures.oldest or 0.0)
    yield from (jobs, paused, oldest)
    for name, text, value in (
        ('leases_lost', 'Leases that ended before their job did.', found.leases_lost),
        ('settlements_fenced', 'Ends of runs that came too late.', found.fenced),
        ('dead_letters_trimmed', 'Dead letters that retention has deleted.', found.trimmed),
        ('ends_untold', 'Ends of jobs that nobody was told of.', found.untold),
    ):
        yield CounterMetricFamily(f'{PREFIX}_{name}', text, value=value)


def _workers(store: Any) -> Iterator[Metric]:
    now, alive = store.now(), 0
    signs = store.presence.signs()
    alive = sum(sign.believed_until > now for sign in signs)
    workers = GaugeMetricFamily(
        f'{PREFIX}_workers', 'Workers with celery_ext; the dead are shown for an hour.',
        labels=('state',),
    )  # fmt: skip
    workers.add_metric(('alive',), alive)
    workers.add_metric(('dead',), len(signs) - alive)
    yield workers


def _throttles(store: Any) -> Iterator[Metric]:
    held, pending, limit = (
        GaugeMetricFamily(f'{PREFIX}_throttle_{name}', text, labels=('throttle',))
        for name, text in (
            ('held', 'Jobs that have a slot of it.'),
            ('pending', 'Jobs that wait for it.'),
            ('concurrency', 'How many slots it has; it is left out if there is no limit.'),
        )
    )
    for found in store.throttles.look(store.throttles.names()[:THROTTLES]):
        held.add_metric((found.name,), found.held)
        pending.add_metric((found.name,), found.pending)
        if found.concurrency is not None:
            limit.add_metric((found.name,), found.concurrency)
    yield from (held, pending, limit)


def _tasks(found: list[Stats]) -> Iterator[Metric]:
    labels = ('queue', 'task')
    midnight = ' Begins anew at midnight (UTC).'
    waits = HistogramMetricFamily(
        f'{PREFIX}_wait_seconds', 'From when a task was due to its start.' + midnight, labels=labels
    )
    runs = HistogramMetricFamily(
        f'{PREFIX}_run_seconds', 'How long tasks ran.' + midnight, labels=labels
    )
    counters = {
        name: CounterMetricFamily(f'{PREFIX}_{name}', text + midnight, labels=labels)
        for name, text in (
            ('failed', 'Tasks that failed for good.'),
            ('retried', 'Runs that ended with a retry.'),
            ('stalled', 'Runs that were lost with their worker or their lease.'),
        )
    }
    for one in found:
        pair = (one.queue, one.task)
        for family, summary in ((waits, one.wait), (runs, one.run)):
            if summary.count:
                family.add_metric(pair, _buckets(summary), summary.total)
        for name, counter in counters.items():
            counter.add_metric(pair, getattr(one, name))
    yield from (waits, runs, *counters.values())


def _buckets(summary: Summary) -> list[tuple[str, float]]:
    # Rounded down, or a count could go back when the next one comes.
    below = [(repr(bound), float(int(summary.below(bound)))) for bound in BUCKETS]
    return [*below, ('+Inf', float(summary.count))]


def register(extension: Extension, registry: Any = REGISTRY) -> Collector:
    """Adds an app's figures to a registry, once.

    Args:
        extension: what ``install`` returned.
        registry: of prometheus_client; what it serves by default unless given.
    """
    known: dict[int, Collector] = extension.__dict__.setdefault('collectors', {})
    if id(registry) not in known:
        known[id(registry)] = Collector(extension)
        registry.register(known[id(registry)])
    return known[id(registry)]
