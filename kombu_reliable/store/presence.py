"""Who is there to work: workers that say so once in a while, until they leave or die."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kombu_reliable.scripts import translating

if TYPE_CHECKING:
    from kombu_reliable.store.info import JobInfo
    from kombu_reliable.store.store import Store

__all__ = ('Presence', 'Sign')

#: Entries of the hash of owners that are read at once.
STEP = 500


@dataclass(frozen=True, slots=True)
class Sign:
    """The last sign of a worker; times are ms since the epoch.

    Args:
        worker: the name under which it holds messages.
        since: when it came.
        seen: when it gave the sign.
        believed_until: when it counts as dead, unless it gives another one before.
        about: what it said of itself.
    """

    worker: str
    since: int
    seen: int
    believed_until: int
    about: Mapping[str, Any]


class Presence:
    """Gives and reads signs.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def beat(self, worker: str, believed: float, age: float, about: Mapping[str, Any]) -> None:
        """Says that a worker is there.

        Args:
            worker: the name under which it holds messages.
            believed: for how many seconds, unless it says so again.
            age: for how many seconds it has been there.
            about: what there is to know about it, as JSON can say it.
        """
        self._send(worker, round(believed * 1000), round(age * 1000), json.dumps(about))

    def leave(self, worker: str) -> None:
        """Says that a worker is gone."""
        self._send(worker, 0, 0, '')

    def _send(self, *args: Any) -> None:
        self._store.repeat(self._store.operations.call('beat', bool, *args))

    def signs(self) -> list[Sign]:
        """The last signs of all workers, also of those that died not long ago."""
        keys = self._store.keys
        with translating(), self._store.client.pipeline(transaction=False) as pipe:
            pipe.zrange(keys.workers, 0, -1, withscores=True)
            pipe.hgetall(keys.about)
            believed, about = pipe.execute()
        found = []
        for name, until in believed:
            seen, _, rest = about.get(name, b'').decode(errors='replace').partition(';')
            since, _, text = rest.partition(';')
            if seen.isdigit() and since.isdigit():
                found.append(Sign(name.decode(), int(since), int(seen), int(until), _mapping(text)))
        return found

    def holders(self) -> dict[str, list[str]]:
        """The keys of the jobs that somebody holds, or lost and nobody has claimed since, by the
        name of the worker."""
        found: dict[str, list[str]] = {}
        with translating():
            for job, owner in self._store.client.hscan_iter(self._store.keys.owners, count=STEP):
                worker = owner.decode(errors='replace').rpartition(';')[2]
                found.setdefault(worker, []).append(job.decode(errors='replace'))
        return found

    def jobs(self, keys: Sequence[str]) -> list[JobInfo]:
        """Those of these jobs that have not ended."""
        return self._store.jobs.look(keys)


def _mapping(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
