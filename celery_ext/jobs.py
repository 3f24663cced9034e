"""The jobs of an app, by id and by state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from celery_ext import control
from celery_ext.current import CurrentJob, current_job
from celery_ext.job import Canceled, Job, State, task_id
from celery_ext.search import Found, search
from kombu_reliable import JobInfo, UnknownJob, WrongState, pack_id

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('PAGE', 'Jobs', 'Page')

#: How many jobs a listing returns unless it is told otherwise.
PAGE = 100


class Page(list[Job]):
    """A part of the jobs that were asked for.

    Args:
        jobs: those.
        next: where to go on: ``after=page.next``; ``''`` if there are no more.
    """

    def __init__(self, jobs: Iterable[Job], next: str) -> None:
        super().__init__(jobs)
        self.next = next


class Jobs:
    """The tasks that have not ended, and those that have failed.

    A job that has succeeded is gone, unless it is tagged, tracked, or was to be kept for a while.
    Where an id is asked for, a result or a job serves as well.

    Example:
        >>> ext.jobs[result.id].state
        'delayed'
        >>> ext.jobs.cancel(result)
        'gone'
        >>> [job.task for job in ext.jobs.in_state('ready', queue='mail', limit=10)]
        ['shop.mail.send']
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    @property
    def _store(self) -> Any:
        return self._extension.store.jobs

    def wrap(self, infos: Iterable[JobInfo]) -> list[Job]:
        return [Job(self._extension, info) for info in infos]

    def __getitem__(self, which: Any) -> Job:
        """The newest job under an id.

        Raises:
            UnknownJob: there is none.
        """
        job = self.get(which)
        if job is None:
            raise UnknownJob(
                f'no job lives under {task_id(which)!r}: it has succeeded, was cancelled, '
                f'or there never was one'
            )
        return job

    def __contains__(self, which: Any) -> bool:
        return self.get(which) is not None

    def get(self, which: Any) -> Job | None:
        """The newest job under an id, or None."""
        info = self._store.get(task_id(which))
        return None if info is None else Job(self._extension, info)

    def all(self, which: Any) -> list[Job]:
        """All jobs under an id, the newest first: an id that is used twice is two jobs."""
        return self.wrap(self._store.all(task_id(which)))

    def by_key(self, which: Any, key: str) -> Job:
        """One of the jobs under an id, by its own name in the store.

        Raises:
            UnknownJob: it has ended.
        """
        for job in self.all(which):
            if job.info.key == key:
                return job
        raise UnknownJob(f'task {task_id(which)} has ended')

    def some(self, ids: Iterable[str]) -> dict[str, Job]:
        """The jobs under some ids, those that live or have failed, in one go.

        Of several jobs under one id it is the one that came first.
        """
        keys = [pack_id(one) for one in dict.fromkeys(ids)]
        return {job.id: job for job in self.wrap(self._store.look(keys))}

    @property
    def current(self) -> CurrentJob | None:
        """The job of the task that runs here; None outside of tasks."""
        return current_job(self._extension)

    def tagged(
        self, *tags: str, any: bool = False, offset: int = 0, limit: int = PAGE, after: str = ''
    ) -> Page:
        """A page of the jobs that have all of some tags, the newest first.

        Jobs that wait or run, dead letters, and completed ones that are kept.  With one tag any
        page costs the same.  With several, the jobs in front of a page are gone through, but not
        more than 6,000 at once: then the page is shorter than asked for, and ``after`` goes on.

        Args:
            tags: one or more.
            any: those that have any of the tags.
            offset: how many to pass over.
            limit: how many to return at most.
            after: goes on where :attr:`Page.next` says; cheaper than an offset.
        """
        found = self._extension.store.tags.find(
            tags, any=any, offset=offset, limit=limit, after=after
        )
        return Page(self.wrap(self._store.look(found.keys)), found.next)

    def tracked(self, offset: int = 0, limit: int = PAGE) -> list[Job]:
        """A page of the jobs that tell what befalls them, the newest first."""
        return self.wrap(self._store.look(self._extension.store.tags.tracked(offset, limit)))

    def in_state(
        self, state: State, queue: str | None = None, offset: int = 0, limit: int = PAGE
    ) -> list[Job]:
        """A page of the jobs in a state.

        Ready and throttled ones come in the order in which they will start, as far as their
        throttles let them, delayed and waiting ones by due time, leased ones by the end of their
        lease, dead letters from the newest, completed ones from the one that is kept longest.

        Args:
            state: ``delayed``, ``waiting``, ``ready``, ``throttled``, ``leased``, ``failed`` or
                ``completed``.
            queue: only this queue; else all, one queue after the other.
            offset: how many to pass over.
            limit: how many to return at most.
        """
        if queue is not None:
            return self.wrap(self._store.in_state(queue, state, offset, limit))
        return self.wrap(self._pages(state, offset, limit))

    def _pages(self, state: State, offset: int, limit: int) -> Iterator[JobInfo]:
        for name in self._extension.queues.names():
            held = getattr(self._store.counts(name), 'dead' if state == 'failed' else state)
            if offset < held and limit > 0:
                page = self._store.in_state(name, state, offset, limit)
                limit -= len(page)
                yield from page
            offset = max(0, offset - held)

    def search(
        self,
        state: State | None = None,
        queue: str | None = None,
        task: str | None = None,
        tags: Sequence[str] = (),
        after: str = '',
        limit: int = PAGE,
        within: float = float('inf'),
    ) -> Found:
        """A page of the jobs for which all of this is true.

        Any page costs about the same, however many jobs there are.  The server keeps no list by
        task, nor by state of those that have a tag: then at most 1,000 jobs are gone through for
        a page, it may be short or empty, and :attr:`Found.next` goes on.

        Args:
            state: as in :meth:`in_state`; any but ``completed`` unless given, and any at all
                with tags.
            queue: the name of a queue.
            task: the name of a task; ``*`` stands for any part of it.
            tags: the jobs have all of them.
            after: goes on where :attr:`Found.next` says; without tags also a number of jobs to
                pass over, as text.
            limit: how many to return at most.
            within: seconds after which no more are gone through for this page.

        Example:
            >>> found = ext.jobs.search(state='failed', task='shop.mail.*')
            >>> [job.id for job in found.jobs], found.next
        """
        return search(self._extension, state, queue, task, tags, after, limit, within)

    def failed(
        self, queue: str | None = None, group: str | None = None, offset: int = 0, limit: int = PAGE
    ) -> list[Job]:
        """A page of the dead letters, the newest first; see also ``ext.dead``."""
        return self.wrap(self._store.failed(queue, group, offset, limit))

    def cancel(
        self, which: Any, terminate: bool = False, *, cascade: bool = False, signal: str = 'TERM'
    ) -> Canceled:
        """Ends all jobs under an id.

        Args:
            which: an id, a result or a job.
            terminate: also end the process that runs it, with ``signal``.
            cascade: also if others wait for it: they fail, unless their policy is ``ignore``.
            signal: for ``terminate``.

        Returns:
            ``'gone'``: it will never start.  ``'requested'``: a worker had it.  If it has not
            begun it will not; if it runs it goes on unless ``terminate`` was asked for, but
            what comes of it does not count any more.  ``'unknown'``: there was nothing.

        Raises:
            HasDependents: others wait for it, and ``cascade`` was not asked for.
            WrongState: it is a dead letter, or has completed and is kept; discard it instead.
        """
        name = task_id(which)
        reason = 'terminated' if terminate else 'canceled'
        answer: Canceled
        answer, doubtful = control.cancel_surely(
            lambda: self._store.cancel(name, reason, cascade=cascade)
        )
        if doubtful and answer == 'unknown':
            answer = 'requested'
        # Whoever asks again after an error means a process that may still run.
        if answer == 'requested' or (terminate and answer == 'unknown'):
            control.broadcast_revoke(self._extension.app, name, terminate, signal)
        return answer

    def revoke(self, ids: Iterable[str], terminate: bool = False) -> None:
        """Removes what is queued under some ids, for Celery's ``revoke``: it asks nobody who
        waits, knows no error for what is gone, and lets run what runs, unless ``terminate``.
        """
        reason = 'terminated' if terminate else 'revoked'

        def revoke(name: str) -> None:
            with contextlib.suppress(WrongState):  # a dead letter runs no more, and stays
                self._store.cancel(name, reason, cascade=True, spare=not terminate)

        for name in ids:
            control.cancel_surely(partial(revoke, name))

    def retry(self, which: Any) -> Job:
        """Lets a dead letter run once more; see :meth:`Job.retry`."""
        name = task_id(which)
        before = self.get(name)
        self._store.replay(name)
        job = self.get(name) or before  # it may have run already
        return job if job is not None else self[name]

    replay = retry
