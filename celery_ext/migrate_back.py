"""Moves jobs from our transport back to kombu's redis transport, so that each arrives once.

Jobs go in steps.  A step moves some of a queue into a queue beside it that no worker consumes,
its journal; puts those found there into the lists of kombu's transport, and their keys into a set
in the same transaction, so that it is done once; then empties the journal.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Iterable

from celery_ext.ends import ENDS
from celery_ext.migrate_stock import Lock, Stock, is_internal, message_for
from celery_ext.ticks import TICKS
from kombu_reliable import JobInfo, ReliableError, Store, WrongState

__all__ = ('JOURNAL', 'Back')

#: Jobs of a step; as many as one move carries.
STEP = 100

#: How the names of journals begin.
JOURNAL = 'celery_ext.migrate'

#: States that can move.  Delayed first: what falls due meanwhile is found among the others.  There
#: are no throttles on the other side: what waits for one is ready there.
STATES = ('delayed', 'throttled', 'ready')


class Back:
    """From our transport to kombu's redis transport.

    Args:
        stock: where the jobs go.
        store: where they are.
        turn: priorities run the other way round there.
        lock: held by this migration.
    """

    def __init__(self, stock: Stock, store: Store, turn: bool, lock: Lock) -> None:
        self.stock = stock
        self.store = store
        self.turn = turn
        self.lock = lock
        #: What was moved: ``(queue, 'ready' | 'delayed')`` -> number.
        self.moved: Counter[tuple[str, str]] = Counter()
        #: What stays, because there is no place for it: ``(queue, why)`` -> number.
        self.stayed: Counter[tuple[str, str]] = Counter()
        mark = hashlib.sha256(f'{stock.url} {stock.prefix}'.encode()).hexdigest()[:8]
        self._journals = f'{JOURNAL}.{mark}.'
        #: Of this run alone: whoever was held up must not empty the journal of another.
        self._own = f'{self._journals}{secrets.token_hex(4)}>'

    def begin(self) -> None:
        """Ends the step in which somebody was killed.

        Raises:
            WrongState: it was on its way to another server.
        """
        for name in self.store.known_queues():
            if not name.startswith(f'{JOURNAL}.'):
                continue
            counts = self.store.counts(name)
            left = counts.ready + counts.delayed + counts.throttled
            if not left:
                continue
            if not name.startswith(self._journals):
                raise WrongState(
                    f'{left} jobs in queue {name} are on their way to '
                    'another server, since a migration was interrupted: run that once more'
                )
            self._empty_journal(name)
        self._forget_done()

    def end(self) -> None:
        """Leaves nothing behind."""

    def queues(self) -> list[str]:
        """The names of the queues that can move."""
        return [
            name
            for name in self.store.known_queues()
            if name not in (ENDS, TICKS)
            and not name.startswith(f'{JOURNAL}.')
            and not is_internal(name)
        ]

    def await_leases(self, queues: Iterable[str]) -> None:
        """Waits until what killed workers held is ready again; their leases end soon."""
        names = list(queues)
        lease = self.store.operations.options.lease
        deadline = time.monotonic() + 2 * lease + 10
        while held := sum(self.store.counts(name).leased for name in names):
            if time.monotonic() > deadline:
                raise WrongState(f'{held} jobs are still leased: some worker is alive')
            # A claim of nothing does what time demands.
            call = self.store.operations.claim('', secrets.token_urlsafe(9), 0, names)
            self.store.run(call)
            self.lock.renew()
            time.sleep(0.1)

    def move_queue(self, queue: str) -> int:
        """Moves what waits in a queue; returns how many jobs that were."""
        before = self._moved_of(queue)
        for state in STATES:
            stay = 0
            while True:
                self.lock.renew()
                page = self.store.jobs.in_state(queue, state, stay, STEP)  # type: ignore[arg-type]
                movable = [job for job in page if self._can_move(job)]
                stay += len(page) - len(movable)
                if not page:
                    break
                if movable:
                    self._move(queue, [job.key for job in movable])
        return self._moved_of(queue) - before

    def _moved_of(self, queue: str) -> int:
        return self.moved[queue, 'delayed'] + self.moved[queue, 'ready']

    def _can_move(self, job: JobInfo) -> bool:
        why = ''
        if job.dependent_count:
            why = 'others wait for it'
        else:
            try:
                message_for(job, self.turn)
            except (ReliableError, KeyError, TypeError, ValueError):
                why = 'unreadable'
        if why:
            self.stayed[job.queue, why] += 1
        return not why

    def _move(self, queue: str, keys: list[str]) -> None:
        journal = self._own + queue
        self.store.run(self.store.jobs.operations.move(keys, journal))
        self._empty_journal(journal)

    def _empty_journal(self, journal: str) -> None:
        queue = journal.partition('>')[2]
        while found := self._read(journal):
            self._put(queue, found)
            for state in STATES:
                # Nobody else touches this queue: what is there is what was found.
                while self.store.run(self.store.jobs.operations.empty(journal, state)):
                    self.lock.renew()
            self._forget_done()

    def _forget_done(self) -> None:
        with self.stock.client.pipeline() as pipe:
            self.lock.guard(pipe)
            pipe.multi()
            pipe.delete(self.stock.done)
            self.lock.commit(pipe)

    def _read(self, journal: str) -> dict[str, JobInfo]:
        found: dict[str, JobInfo] = {}
        for state in STATES:
            at = 0
            while page := self.store.jobs.in_state(journal, state, at, STEP):  # type: ignore[arg-type]
                found.update((job.key, job) for job in page)
                at += STEP
        return found

    def _put(self, queue: str, jobs: dict[str, JobInfo]) -> None:
        client, stock = self.stock.client, self.stock
        with client.pipeline() as pipe:
            self.lock.guard(pipe, stock.done)
            done = pipe.smembers(stock.done)
            fresh = [job for key, job in jobs.items() if key.encode() not in done]
            pipe.multi()
            for job in _in_order(fresh):
                priority, raw = message_for(job, self.turn)
                pipe.lpush(stock.list_for(queue, priority), raw)
                pipe.sadd(stock.done, job.key)
            self.lock.commit(pipe)
        for job in fresh:
            self.moved[queue, 'delayed' if job.state == 'delayed' else 'ready'] += 1


def _in_order(jobs: list[JobInfo]) -> list[JobInfo]:
    """Ready ones came in their order; it must not matter that delayed ones were read first."""
    return sorted(jobs, key=lambda job: job.state == 'delayed')
