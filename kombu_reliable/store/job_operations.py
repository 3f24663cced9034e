"""The operations on single jobs and on queues: Python values in, a :class:`Call` out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kombu_reliable.scripts import Call
from kombu_reliable.store import checks
from kombu_reliable.store.operations import Operations

__all__ = ('JOBS_LIMIT', 'JobOperations')

#: Jobs that one call may carry.
JOBS_LIMIT = 25


def _words(reply: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(word.decode() for word in reply)


def _flag(reply: int) -> bool:
    return bool(reply)


class JobOperations:
    """Encodes the operations that act on jobs by their keys.

    Each answers one word per job: ``done``, ``unknown``, or why nothing was changed: the state
    that forbids it, ``dependents``, ``no-queue``, ``duplicate <job>``.  Each may be repeated.

    Args:
        operations: knows the shard, the options and the time.
    """

    def __init__(self, operations: Operations) -> None:
        self.operations = operations

    def _act(self, name: str, jobs: Sequence[str], *args: Any) -> Call[tuple[str, ...]]:
        return self.operations.call(name, _words, *args, *jobs)

    def inspect(self, jobs: Sequence[str]) -> Call[list[Any]]:
        """Everything about jobs but their messages; see :func:`.info.read_jobs`."""
        return self.operations.call('inspect', list, *jobs)

    def cancel(
        self, jobs: Sequence[str], reason: str, cascade: bool, spare: bool = False
    ) -> Call[tuple[str, ...]]:
        """Removes jobs that have not ended; ``gone`` or ``requested`` instead of ``done``."""
        return self._act('cancel', jobs, reason, int(cascade), int(spare))

    def move(self, jobs: Sequence[str], queue: str) -> Call[tuple[str, ...]]:
        """Puts jobs into another queue, in the state they are in."""
        return self._act('move', jobs, self.operations.retention, checks.queue_name(queue))

    def prioritize(self, jobs: Sequence[str], rank: int) -> Call[tuple[str, ...]]:
        """Gives jobs another rank; they keep their order of arrival."""
        return self._act('prioritize', jobs, f'{rank:03}')

    def set_priority(self, jobs: Sequence[str], priority: int) -> Call[tuple[str, ...]]:
        """Gives jobs another priority, from 0 to 255."""
        return self.prioritize(jobs, self.operations.options.rank(checks.priority(priority)))

    def reschedule(self, jobs: Sequence[str], due: int) -> Call[tuple[str, ...]]:
        """Gives jobs another due time; one in the past means at once."""
        return self._act('reschedule', jobs, due)

    def replay(self, jobs: Sequence[str], group: str = '') -> Call[tuple[str, ...]]:
        """Makes dead letters ready, with fresh deliveries.

        Args:
            jobs: their keys.
            group: the group in which they were found; what is no dead letter leaves it.
        """
        return self._act('replay', jobs, group)

    def discard(self, jobs: Sequence[str], group: str = '') -> Call[tuple[str, ...]]:
        """Deletes dead letters; see :meth:`replay`."""
        return self._act('discard', jobs, group)

    def unlock(self, job: str, token: str) -> Call[int]:
        """Gives up the unique key of a job; 1 if it had it, -1 if the token is an old one."""
        return self.operations.call('unlock', int, job, token)

    def notice(self, queues: Sequence[str]) -> Call[bool]:
        """Remembers queues that nobody may have declared."""
        return self.operations.call('notice', _flag, *queues)

    def pause(self, queue: str, paused: bool) -> Call[bool]:
        """Stops a queue for all workers, or lets it go on; False if it was so before."""
        return self.operations.call('pause', _flag, queue, int(paused))

    def empty(self, queue: str, state: str) -> Call[int]:
        """Deletes a bounded number of the jobs that are in a state; 0 when none is left."""
        return self.operations.call('empty', int, queue, state)
