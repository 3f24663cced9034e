"""Acting on many jobs, in steps that hold nobody up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_ext import control
from celery_ext.job import Job
from kombu_reliable import InvalidArgument, JobInfo, unpack_id

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('Result', 'Selection')

#: What the store answers where something was done; a job in state ``leased`` that is canceled
#: is taken from its worker.
_DONE = frozenset({'done', 'gone', 'requested'})

#: States in which each action does something.
_FITTING = {
    'cancel': {'ready', 'throttled', 'delayed', 'waiting', 'leased'},
    'retry': {'failed'},
    'move': {'ready', 'throttled', 'delayed', 'waiting', 'failed'},
    'set_priority': {'ready', 'throttled', 'delayed', 'waiting', 'failed'},
}


@dataclass
class Result:
    """What has been done so far.

    Args:
        total: how many jobs there were when it began; with several tags at most that many.
        seen: how many were gone through.
        done: with how many it was done; of a dry run, with how many it would be.
        skipped: why it was not done with others, and how many they are: the state that forbids
            it, ``dependents`` (others wait for them), ``unknown`` (they ended meanwhile).
    """

    total: int = 0
    seen: int = 0
    done: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, statuses: Sequence[str]) -> None:
        self.seen += len(statuses)
        for status in statuses:
            if status in _DONE:
                self.done += 1
            else:
                self.skipped[status] += 1


Progress = Callable[[Result], None]


class Selection:
    """The jobs that have some tags.

    Actions go through them step by step, from the oldest; what is published meanwhile is left
    alone.  After each step ``progress`` is called with the :class:`Result` so far.  With
    ``dry_run=True`` nothing is changed.

    Example:
        >>> late = ext.tags.select('billing', 'customer:17')
        >>> late.cancel(dry_run=True)
        Result(total=120, seen=120, done=117, skipped=Counter({'failed': 3}))
        >>> late.cancel(progress=lambda result: print(result.seen, 'of', result.total))
    """

    def __init__(self, extension: Extension, tags: Sequence[str], any: bool = False) -> None:
        self._extension = extension
        self.tags = tuple(tags)
        self.any = any

    @property
    def _store(self) -> Any:
        return self._extension.store

    def __iter__(self) -> Iterator[Job]:
        """All of them, from the oldest, read in steps while one goes on."""
        for keys in self._steps():
            yield from self._extension.jobs.wrap(self._look(keys))

    def at_most(self) -> int:
        """How many there are; with several tags at most that many."""
        counts = [self._store.tags.count(tag) for tag in self.tags]
        return sum(counts) if self.any else min(counts, default=0)

    def cancel(
        self,
        *,
        cascade: bool = False,
        terminate: bool = False,
        signal: str = 'TERM',
        progress: Progress | None = None,
        dry_run: bool = False,
    ) -> Result:
        """Ends those that have not ended; see :meth:`Jobs.cancel`.

        Without ``cascade`` those are skipped for which others wait.
        """
        reason = 'terminated' if terminate else 'canceled'

        def cancel(keys: list[str]) -> Sequence[str]:
            statuses, doubtful = control.cancel_surely(lambda: self._cancel(keys, reason, cascade))
            if doubtful:
                statuses = ['requested' if one == 'unknown' else one for one in statuses]
            held = [
                key for key, status in zip(keys, statuses, strict=True) if status == 'requested'
            ]
            if held:
                ids = [unpack_id(key) for key in held]
                control.broadcast_revoke(self._extension.app, ids, terminate, signal)
            return statuses

        return self._act('cancel', cancel, progress, dry_run)

    def retry(self, *, progress: Progress | None = None, dry_run: bool = False) -> Result:
        """Lets dead letters run once more, with as many deliveries as new jobs have."""
        operations = self._store.jobs.operations
        return self._act(
            'retry', lambda keys: self._run(operations.replay(keys)), progress, dry_run
        )

    def move(
        self, queue: str, *, progress: Progress | None = None, dry_run: bool = False
    ) -> Result:
        """Puts those that nobody holds into another queue, in their state, at their place."""
        operations = self._store.jobs.operations
        operations.move([], queue)  # which says at once what is wrong with it
        return self._act(
            'move', lambda keys: self._run(operations.move(keys, queue)), progress, dry_run
        )

    def set_priority(
        self, priority: int, *, progress: Progress | None = None, dry_run: bool = False
    ) -> Result:
        """Gives those that nobody holds another priority, 0-255."""
        operations = self._store.jobs.operations
        operations.set_priority([], priority)
        return self._act(
            'set_priority',
            lambda keys: self._run(operations.set_priority(keys, priority)),
            progress,
            dry_run,
        )

    # -- how ---------------------------------------------------------------------

    def _steps(self) -> Iterator[list[str]]:
        if not self.tags:
            raise InvalidArgument('name at least one tag')
        steps: Iterator[list[str]] = self._store.tags.walk(self.tags, any=self.any)
        return steps

    def _look(self, keys: Sequence[str]) -> list[JobInfo]:
        found: list[JobInfo] = self._store.jobs.look(keys)
        return found

    def _run(self, call: Any) -> Sequence[str]:
        statuses: Sequence[str] = self._store.run(call)
        return statuses

    def _cancel(self, keys: list[str], reason: str, cascade: bool) -> Sequence[str]:
        operations = self._store.jobs.operations
        statuses = self._run(operations.cancel(keys, reason, cascade))
        if 'dependents' in statuses and len(keys) > 1:
            # One for which others wait keeps all of a call.
            return [self._run(operations.cancel([key], reason, cascade))[0] for key in keys]
        return statuses

    def _would(self, action: str, keys: Sequence[str]) -> Sequence[str]:
        states = {info.key: info.state for info in self._look(keys)}
        fitting = _FITTING[action]
        found = [str(states.get(key, 'unknown')) for key in keys]
        return ['done' if state in fitting else state for state in found]

    def _act(
        self,
        action: str,
        step: Callable[[list[str]], Sequence[str]],
        progress: Progress | None,
        dry_run: bool,
    ) -> Result:
        result = Result(total=self.at_most())
        for keys in self._steps():
            result.add(self._would(action, keys) if dry_run else step(keys))
            if progress is not None:
                progress(result)
        return result

    def __str__(self) -> str:
        how = ' or ' if self.any else ' and '
        return f'jobs tagged {how.join(map(repr, self.tags))}'

    def __repr__(self) -> str:
        return f'<{self}>'
