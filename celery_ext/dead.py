"""Dead letters: what failed for good, why, and what to do with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery_ext.job import Job, task_id
from celery_ext.jobs import PAGE

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('DeadLetters', 'Group')

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters that died of the same.

    Args:
        name: usually the name of the task; the reason, if no worker could tell more.
        count: how many there are.
        last: when the last one died.
    """

    name: str
    count: int
    last: datetime


class DeadLetters:
    """The jobs that have failed, kept for a while: 7 days and 10,000 a queue unless the options
    ``failed_retention`` and ``failed_limit`` say otherwise.

    Example:
        >>> for group in ext.dead.groups(): print(group.name, group.count)
        shop.mail.send 3
        >>> for job in ext.dead.page(group='shop.mail.send'): print(job.id, job.failure)
        3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b SMTPServerDisconnected: please run connect() first
        >>> ext.dead.replay_group('shop.mail.send')
        3
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    @property
    def _store(self) -> Any:
        return self._extension.store.jobs

    def page(
        self, queue: str | None = None, group: str | None = None, offset: int = 0, limit: int = PAGE
    ) -> list[Job]:
        """A page of them, the newest first.

        Args:
            queue: only those of this queue.
            group: only those of this group.
            offset: how many to pass over.
            limit: how many to return at most.
        """
        return self._extension.jobs.failed(queue, group, offset, limit)

    def __iter__(self) -> Iterator[Job]:
        """All of them, the newest first, read in pages while one goes on."""
        offset = 0
        while page := self.page(offset=offset):
            yield from page
            offset += PAGE

    def groups(self, offset: int = 0, limit: int = PAGE) -> list[Group]:
        """A page of the groups; that of the last death comes first."""
        return [
            Group(group.name, group.count, datetime.fromtimestamp(group.last / 1000, UTC))
            for group in self._store.groups(offset, limit)
        ]

    def replay(self, which: Any) -> Job:
        """Lets one run again, with as many deliveries as a new job has.

        Raises:
            WrongState: it has not failed.
            UnknownJob: there is none.
        """
        return self._extension.jobs.retry(which)

    def replay_group(self, group: str, progress: Progress | None = None) -> int:
        """Lets all of a group run again, step by step.

        Args:
            group: its name.
            progress: called with the number so far after each step.

        Returns:
            How many there were.
        """
        return int(self._store.replay_group(group, progress))

    def discard(self, which: Any) -> None:
        """Deletes one.  Those that wait for it fail, unless their policy is ``ignore``."""
        self._store.discard(task_id(which))

    def discard_group(self, group: str, progress: Progress | None = None) -> int:
        """Deletes all of a group; see :meth:`replay_group`."""
        return int(self._store.discard_group(group, progress))
