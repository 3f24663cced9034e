"""Who is there to work, and what each holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from celery_ext.job import Job
from celery_ext.moments import moment

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('Worker', 'Workers')

#: Jobs of one worker that are looked up, unless told otherwise.
SHOWN = 100


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker, or another consumer that holds messages.

    Args:
        id: the name under which it holds messages, ``<host>:<pid>:<random>``.
        name: Celery's name for it, ``celery@web3``; ``''`` if it has no celery_ext and cannot
            say so.
        state: ``'alive'``, or ``'dead'``: it has given no sign for longer than a lease and a half
            and all its leases have ended.
        since: when it came, if it says so.
        seen: its last sign: what it said, or renewed.
        queues: what it consumes, as far as it says so.
        slots: how many tasks it can run at once, if it says so.
        holding: how many jobs it holds, begun or fetched ahead.  Those of a dead worker are given
            to the next one that asks.
        jobs: the jobs that it holds, a hundred at most; their leases end at
            ``job.lease_expires_at``.
    """

    id: str
    name: str
    state: Literal['alive', 'dead']
    since: datetime | None
    seen: datetime | None
    queues: tuple[str, ...] = ()
    slots: int | None = None
    holding: int = 0
    jobs: tuple[Job, ...] = field(default=(), repr=False)

    @property
    def alive(self) -> bool:
        return self.state == 'alive'

    @property
    def host(self) -> str:
        return self.id.partition(':')[0]

    @property
    def pid(self) -> int | None:
        """Of its main process."""
        text = self.id.split(':')[1:2]
        return int(text[0]) if text and text[0].isdigit() else None


class Workers:
    """The workers of an app: those that are there, and for an hour those that have died.

    Those without celery_ext, and other consumers, are seen only while they hold something.

    Example:
        >>> for worker in ext.workers: print(worker.name, worker.state, worker.holding)
        celery@web3 alive 8
        celery@web4 dead 0
        >>> ext.workers['celery@web3'].jobs
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def __iter__(self) -> Iterator[Worker]:
        return iter(self.all())

    def __len__(self) -> int:
        return len(self.all(jobs=0))

    def __getitem__(self, name: str) -> Worker:
        """The worker of a name or id, one that lives if there are several.

        Raises:
            KeyError: there is none.
        """
        found = [worker for worker in self.all() if name in (worker.name, worker.id)]
        if not found:
            raise KeyError(name)
        return max(found, key=lambda worker: (worker.alive, worker.since is not None))

    def alive(self) -> list[Worker]:
        """Those that live."""
        return [worker for worker in self.all() if worker.alive]

    def all(self, jobs: int = SHOWN) -> list[Worker]:
        """All of them, by name.

        Args:
            jobs: how many of the jobs that each holds are looked up.
        """
        store = self._extension.store
        now, lease = store.now(), round(store.operations.options.lease * 1000)
        signs = {sign.worker: sign for sign in store.presence.signs()}
        holders = store.presence.holders()
        holders.pop('', None)  # single messages that somebody took without consuming
        found = []
        for worker in {*signs, *holders}:
            keys = holders.get(worker, [])
            sign = signs.get(worker)
            about = sign.about if sign is not None else {}
            theirs = self._jobs(worker, keys, jobs)
            leases = [_ms(job.lease_expires_at) for job in theirs if job.lease_expires_at]
            believed = max([*leases, sign.believed_until if sign else 0])
            renewed = max(leases, default=0) - round(about.get('lease', lease / 1000) * 1000)
            seen = max(renewed, sign.seen if sign else 0)
            found.append(
                Worker(
                    id=worker, name=str(about.get('name', '')),
                    state='alive' if believed > now else 'dead',
                    since=moment(sign.since if sign else None),
                    seen=moment(seen if seen > 0 else None),
                    queues=tuple(map(str, about.get('queues', ()))), slots=about.get('slots'),
                    holding=len(keys), jobs=tuple(theirs[:jobs]),
                )
            )  # fmt: skip
        return sorted(found, key=lambda one: (one.name or one.id, one.state, one.id))

    def _jobs(self, worker: str, keys: Sequence[str], limit: int) -> list[Job]:
        # At least one: its lease tells whether the worker lives.
        infos: list[Any] = self._extension.store.presence.jobs(list(islice(keys, max(1, limit))))
        return [Job(self._extension, info) for info in infos if info.worker == worker]


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)
