"""What jobs wait for, and who waits for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kombu_reliable.errors import DependencyCycle
from kombu_reliable.scripts import Call
from kombu_reliable.store.operations import EDGE_LIMIT, Operations
from kombu_reliable.types import Dependencies, Outgoing, Policy

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Edges', 'calls_for_parts', 'cycle', 'in_parts')

#: How long a publish of many dependencies may take from its first to its last part, in ms.
#: Whoever died on the way leaves a job that fails after this time.
PUBLISH_TIME = 3_600_000


def cycle() -> DependencyCycle:
    return DependencyCycle(
        'the job would wait for itself, by way of what it depends on; '
        'leave out what leads back to it'
    )


def _parts(whole: Dependencies) -> Iterator[Dependencies]:
    step = EDGE_LIMIT - 1
    for at in range(0, len(whole.on), step):
        part = slice(at, at + step)
        yield replace(whole, on=whole.on[part], within=whole.within[part], after=whole.after[part])


def in_parts(message: Outgoing, mark: str) -> tuple[Outgoing, list[Dependencies]]:
    """Splits a message with more dependencies than one call may carry.

    The first part waits for a mark as well, which stands for the parts that are to come.

    Args:
        message: the message.
        mark: a name of its own, the same in each attempt to publish it.
    """
    assert message.depends is not None
    first, *others = _parts(message.depends)
    within = (*(first.within or (0,) * len(first.on)), PUBLISH_TIME)
    after = (*first.after, ()) if first.after else ()
    first = replace(first, on=(*first.on, mark), within=within, after=after)
    return message._replace(depends=first), others


def calls_for_parts(
    operations: Operations, mark: str, parts: Sequence[Dependencies]
) -> Iterator[Call[int]]:
    """What has to follow such a message."""
    for part in parts:
        yield operations.depend(mark, part, last=part is parts[-1])


class Edges:
    """Looks at and changes what a job waits for.

    Args:
        store: the server.

    Example:
        >>> edges.unmet('=invoice')
        ['=payment']
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def unmet(self, job: str) -> list[str]:
        """The keys that a job still waits for."""
        found: Any = self._store.client.smembers(self._store.keys.unmet(job))
        keys = sorted(key.decode() for key in found)
        return [key for key in keys if not key.startswith('!')]

    def dependents(self, job: str, offset: int = 0, limit: int = 100) -> list[tuple[str, Policy]]:
        """Those who wait for a job, in order, and what they do if it fails."""
        found: Any = self._store.client.zrange(
            self._store.keys.dependents(job), offset, offset + limit - 1, withscores=True
        )
        return [(key.decode(), Policy(int(score))) for key, score in found if key]

    def add(self, job: str, on: Dependencies) -> bool:
        """Makes a job that waits already wait for more; False if it does not wait.

        Raises:
            DependencyCycle: it would wait for itself.  Of more than 300, some may be added.
        """
        for part in _parts(on):
            status = self._store.repeat(self._store.operations.depend(job, part))
            if status < 0:
                raise cycle()
            if not status:
                return False
        return True

    def remove(self, job: str, on: Sequence[str]) -> int:
        """Makes a job wait no more for others; returns how many of these it waited for."""
        return sum(
            self._store.repeat(self._store.operations.undepend(job, on[at : at + EDGE_LIMIT]))
            for at in range(0, len(on), EDGE_LIMIT)
        )
