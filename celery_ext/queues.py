"""Queues as things that one can look at, pause and empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from celery_ext.ends import ENDS
from kombu_reliable import QueueCounts

if TYPE_CHECKING:
    from celery_ext.installation import Extension
    from celery_ext.job import Job
    from celery_ext.throttles import ThrottleControl

__all__ = ('Queue', 'Queues')


class Queue:
    """One queue, by its name; it need not exist yet.

    Example:
        >>> mail = ext.queues['mail']
        >>> mail.counts()
        QueueCounts(ready=3, delayed=1, leased=2, dead=0, waiting=0, paused=False)
        >>> mail.pause()
        True
    """

    def __init__(self, extension: Extension, name: str) -> None:
        self._extension = extension
        self.name = name

    @property
    def _store(self) -> Any:
        return self._extension.store.jobs

    def counts(self) -> QueueCounts:
        """How many jobs it holds, by state."""
        counts: QueueCounts = self._store.counts(self.name)
        return counts

    def peek(self, limit: int = 10) -> list[Job]:
        """The jobs that will start next, without taking them; those in the line of a throttle,
        or for their turn, after the others."""
        listed = self._extension.jobs.in_state
        found = listed('ready', self.name, limit=limit)
        if len(found) < limit:
            found += listed('throttled', self.name, limit=limit - len(found))
        return found

    def pause(self) -> bool:
        """Lets no worker start anything more from this queue, wherever it runs.

        What runs goes on.  What is published, and what falls due, waits here.  It lasts until
        :meth:`resume`, over restarts of all workers.  Returns False if it was paused already.
        """
        return bool(self._store.pause(self.name))

    def resume(self) -> bool:
        """Lets a paused queue go on.  Returns False if it was not paused."""
        return bool(self._store.resume(self.name))

    @property
    def throttle(self) -> ThrottleControl:
        """Limits how many of its jobs run at once, or start in a time, whatever tasks they are.

        Example:
            >>> ext.queues['mail'].throttle.set(concurrency=10, rate='20/s')
        """
        return self._extension.throttles[f'queue:{self.name}']

    @property
    def fair_by(self) -> str | None:
        """By which key of its jobs it takes turns: ``'{customer_id}'``; None if it does not.

        It is part of the program, as routes are, not of the server: set it where the app is
        made.  Jobs that lack the argument share one turn.
        """
        return self._extension.turns.get(self.name)

    @fair_by.setter
    def fair_by(self, template: str | None) -> None:
        self._extension.turns.set(self.name, template)

    @property
    def paused(self) -> bool:
        """Whether it is paused."""
        return self.counts().paused

    def purge(
        self,
        *states: str,
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Deletes jobs, without a word to those who wait for their results.

        Args:
            states: any of ``ready``, ``throttled``, ``delayed``, ``waiting``, ``failed``; all but
                the last unless given.
            progress: called with the number deleted so far after each step.

        Returns:
            How many were deleted.

        Example:
            >>> ext.queues['mail'].purge('delayed')
            17
        """
        chosen = states or ('ready', 'throttled', 'delayed', 'waiting')
        return int(self._store.purge(self.name, chosen, progress))

    def __len__(self) -> int:
        """How many jobs wait in it to be started, now or later."""
        counts = self.counts()
        return counts.ready + counts.throttled + counts.delayed + counts.waiting

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f'<Queue {self.name}>'


class Queues:
    """All queues, those that no worker consumes included.

    Example:
        >>> for queue in ext.queues: print(queue.name, queue.counts().ready)
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def __getitem__(self, name: str) -> Queue:
        return Queue(self._extension, name)

    def __iter__(self) -> Iterator[Queue]:
        return (self[name] for name in self.names())

    def names(self) -> list[str]:
        """The names of the queues that were declared or hold something.  The one in which
        workers are told of ends that none of them has seen is left out."""
        return [name for name in self._extension.store.jobs.queues() if name != ENDS]

    def paused(self) -> list[str]:
        """The names of those that are paused."""
        return list(self._extension.store.jobs.paused())
