"""Throttles: limits that hold for all workers together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kombu_reliable.envelope import pack_id, unpack_id
from kombu_reliable.errors import InvalidArgument
from kombu_reliable.scripts import translating
from kombu_reliable.store import checks
from kombu_reliable.store.info import JobInfo, read_jobs
from kombu_reliable.store.job_operations import JOBS_LIMIT, JobOperations
from kombu_reliable.store.limits import QUEUE_LIMIT, Limit, check_name

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Holder', 'Pending', 'Throttle', 'Throttles')

#: Jobs under one id whose slots are taken at once.
MOST_KEYS = 100

#: Throttles that are looked at with one round trip.
STEP = 200

#: Longer times would not be exact.
LONGEST = 2**52 // 1000


class Holder(NamedTuple):
    """A job that has a slot of a throttle.

    Args:
        key: its own name in the store.
        id: Celery's task id.
        queue: where it is; ``''`` if it is gone.
        worker: name of the claiming process's poller; ``''`` if nobody holds it.
        since: since when, ms since the epoch.
    """

    key: str
    id: str
    queue: str
    worker: str
    since: int


class Pending(NamedTuple):
    """A job that waits for a throttle, and perhaps for others as well.

    Args:
        key: its own name in the store.
        id: Celery's task id.
        queue: where it is; ``''`` if it is gone.
        since: since when, ms since the epoch.
    """

    key: str
    id: str
    queue: str
    since: int


@dataclass(frozen=True, slots=True)
class Throttle:
    """A throttle as it was when it was looked at.

    Args:
        name: its name.
        concurrency: how many jobs run at once; None is no limit.
        rate: how many start in a time, ``'100/m'``; None is no limit.
        burst: how many may start at once after a pause; None without a rate.
        source: ``'set'`` by :meth:`Throttles.set`, or the ``'default'`` that its jobs brought with
            them, which is forgotten when none of them waits or runs any more.
        expires_at: when what was set ends and the default holds again, ms since the epoch.
        stopped: nothing may start, because the concurrency or the rate is 0.
        held: how many jobs have a slot.
        pending: how many jobs wait.
    """

    name: str
    concurrency: int | None
    rate: str | None
    burst: int | None
    source: Literal['set', 'default']
    expires_at: int | None
    stopped: bool
    held: int
    pending: int


class Throttles:
    """Looks at throttles and changes them; every change takes effect at once.

    The throttle ``queue:<name>`` limits a queue: how many of its jobs are with workers at once,
    whether or not they name a throttle themselves.

    Args:
        store: where they live.

    Example:
        >>> store.throttles.set('stripe', concurrency=5, rate='100/m')
        >>> store.throttles.get('stripe').stopped
        False
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys
        self._client: Any = store.client

    def set(
        self,
        name: str,
        concurrency: int | None = None,
        rate: str | None = None,
        burst: int | None = None,
        expires: float | None = None,
    ) -> None:
        """Gives a throttle its limits, whatever its jobs say.  What is not given is unlimited.

        Args:
            name: any text.
            concurrency: how many jobs run at once; 0 stops the throttle.
            rate: how many start in a time, ``'100/m'``; ``'0/m'`` stops it.
            burst: how many may start at once after a pause; 3 if nothing is said.
            expires: seconds after which the jobs' own limits hold again.

        Raises:
            InvalidArgument: these limits make no sense.
        """
        limit = Limit(concurrency, rate, burst)
        life = 0
        if expires is not None:
            valid = isinstance(expires, int | float) and not isinstance(expires, bool)
            if not valid or not 0 < expires < LONGEST:
                raise InvalidArgument(
                    f'expires {expires!r:.100} is not a number of seconds above 0'
                )
            life = max(1, round(expires * 1000))
        self._run('set_limit', check_name(name), 'set', life, *limit.fields)

    def delete(self, name: str) -> bool:
        """Forgets what was set: the limits that its jobs bring with them hold again.

        Jobs that have a slot keep it.

        Returns:
            Whether anything was set.
        """
        return bool(self._run('set_limit', check_name(name), 'delete'))

    def release(self, name: str, job: str) -> bool:
        """Takes a job's slot from it, although it may still run.

        Args:
            name: of the throttle.
            job: a task id or the key of a job.

        Returns:
            Whether it had one.
        """
        twins = self._client.smembers(self._keys.twins(pack_id(job)))
        jobs = [job, pack_id(job), *(twin.decode() for twin in twins)]
        return bool(self._run('free_slot', check_name(name), *jobs[:MOST_KEYS]))

    def get(self, name: str) -> Throttle | None:
        """A throttle as it is now; None if nobody has set it and no job waits or runs."""
        return next(iter(self.look([check_name(name)])), None)

    def look(self, names: Iterable[str]) -> list[Throttle]:
        """Throttles as they are now, a few hundred with each round trip.

        Those that nobody has set, and for which no job waits or runs, are left out.
        """
        wanted, now = list(names), self._store.now()
        found = []
        for at in range(0, len(wanted), STEP):
            step = wanted[at : at + STEP]
            with self._client.pipeline(transaction=False) as pipe:
                asked = [self._ask(pipe, name) for name in step]
                replies = iter(pipe.execute(raise_on_error=False))
            found += [
                _throttle(name, now, list(islice(replies, count)))
                for name, count in zip(step, asked, strict=True)
            ]
        return [throttle for throttle in found if throttle is not None]

    def _ask(self, pipe: Any, name: str) -> int:
        """Asks for limits, those that run and those that wait; how many replies there will be."""
        keys = self._keys
        counted = [keys.held(name), keys.pending(name)]
        if name.startswith(QUEUE_LIMIT):
            queue = name.removeprefix(QUEUE_LIMIT)
            counted = [keys.leased(queue), keys.ready(queue), keys.throttled(queue)]
        pipe.hgetall(keys.limits(name))
        for key in counted:
            pipe.zcard(key)
        return 1 + len(counted)

    def holders(self, name: str, offset: int = 0, limit: int = 100) -> list[Holder]:
        """A page of the jobs that have a slot, the longest first."""
        found = self._page(self._keys.held(check_name(name)), offset, limit)
        known = self._look([key for key, _ in found])
        return [
            Holder(key, unpack_id(key), job.queue, job.worker or '', since)
            if (job := known.get(key))
            else Holder(key, unpack_id(key), '', '', since)
            for key, since in found
        ]

    def pending(self, name: str, offset: int = 0, limit: int = 100) -> list[Pending]:
        """A page of the jobs that wait, the longest first."""
        found = self._page(self._keys.pending(check_name(name)), offset, limit)
        known = self._look([key for key, _ in found])
        return [
            Pending(key, unpack_id(key), known[key].queue if key in known else '', since)
            for key, since in found
        ]

    def _look(self, keys: list[str]) -> dict[str, JobInfo]:
        found: dict[str, JobInfo] = {}
        for at in range(0, len(keys), JOBS_LIMIT):
            step = keys[at : at + JOBS_LIMIT]
            reply = self._store.run(JobOperations(self._store.operations).inspect(step))
            jobs = read_jobs(reply, step, [b''] * len(step))
            found |= {job.key: job for job in jobs if job is not None}
        return found

    def names(self) -> list[str]:
        """All throttles that were set, or for which jobs wait or run."""
        with translating():  # in steps: there may be one for each customer
            found = {*self._client.sscan_iter(self._keys.throttles, count=1_000)}
        return sorted(name.decode(errors='replace') for name in found)

    def _page(self, key: str, offset: int, limit: int) -> list[tuple[str, int]]:
        checks.page(offset, limit)
        if not limit:
            return []
        with translating():
            found = self._client.zrange(key, offset, offset + limit - 1, withscores=True)
        return [(job.decode(errors='replace'), int(since)) for job, since in found]

    def _run(self, name: str, *args: Any) -> int:
        return int(self._store.repeat(self._store.operations.call(name, int, *args)))


def _throttle(name: str, now: int, replies: list[Any]) -> Throttle | None:
    raw, held, *waiting = map(_unless_foreign, replies)
    fields = {key.decode(): value.decode(errors='replace') for key, value in (raw or {}).items()}
    if not fields and not held and not any(waiting):
        return None
    until = int(float(fields.get('until') or 0))
    is_set = 'set' in fields and not 0 < until <= now
    names = ('c', 'text', 'b') if is_set else ('dc', 'dtext', 'db')
    concurrency, rate, burst = (fields.get(name, '') for name in names)
    return Throttle(
        name=name,
        concurrency=int(concurrency) if concurrency else None,
        rate=rate or None,
        burst=int(burst) if burst else None,
        source='set' if is_set else 'default',
        expires_at=until or None if is_set else None,
        stopped=concurrency == '0',
        held=held or 0,
        pending=sum(count or 0 for count in waiting),
    )


def _unless_foreign(reply: Any) -> Any:
    if isinstance(reply, Exception):
        if 'WRONGTYPE' not in str(reply):
            raise reply
        return None
    return reply
