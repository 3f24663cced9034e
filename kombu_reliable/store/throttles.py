"""Throttles: limits that hold for all workers together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from kombu_reliable.envelope import unpack_id
from kombu_reliable.errors import InvalidArgument
from kombu_reliable.scripts import translating
from kombu_reliable.store import checks
from kombu_reliable.store.limits import Limit, check_name

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Holder', 'Pending', 'Throttle', 'Throttles')

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
                raise InvalidArgument(f'expires {expires!r:.100} is not a number of seconds above 0')
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
        raise NotImplementedError

    def get(self, name: str) -> Throttle | None:
        """A throttle as it is now; None if nobody has set it and no job waits or runs."""
        raise NotImplementedError

    def holders(self, name: str, offset: int = 0, limit: int = 100) -> list[Holder]:
        """A page of the jobs that have a slot, the longest first."""
        raise NotImplementedError

    def pending(self, name: str, offset: int = 0, limit: int = 100) -> list[Pending]:
        """A page of the jobs that wait, the longest first."""
        raise NotImplementedError

    def names(self) -> list[str]:
        """All throttles that were set, or for which jobs wait or run."""
        raise NotImplementedError

    def _run(self, name: str, *args: Any) -> int:
        return int(self._store.repeat(self._store.operations.call(name, int, *args)))
