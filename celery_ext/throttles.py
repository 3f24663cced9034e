"""Limits that hold for all workers together: how many run at once, how many start in a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from celery_ext.decorators import declare
from celery_ext.features import Call, feature
from celery_ext.job import task_id
from celery_ext.moments import moment
from celery_ext.templates import check
from kombu_reliable import InvalidArgument, Limit

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('Holder', 'Throttle', 'ThrottleControl', 'ThrottleInfo', 'Throttles', 'Waiter',
           'throttled')  # fmt: skip

T = TypeVar('T')

HEADER = 'x-throttles'


@dataclass(frozen=True)
class Throttle:
    """A throttle that a task takes part in, with the limits that hold unless others were set.

    Args:
        name: any text; ``{argument}`` stands for an argument of the call.
        concurrency: how many jobs run at once; 0 stops the throttle, None is no limit.
        rate: how many start in a time: ``'100/m'``, ``'5/s'``, ``'1/10s'``; None is no limit.
        burst: how many may start at once after a pause, with a rate; 3 unless stated.

    Raises:
        InvalidArgument: these limits make no sense.
        InvalidTemplate: the name makes none.

    Example:
        >>> stripe = Throttle('stripe', concurrency=5, rate='100/m')
        >>> charge.apply_async((order,), throttles=[stripe, 'tenant:{tenant_id}'])
    """

    name: str
    concurrency: int | None = None
    rate: str | None = None
    burst: int | None = None

    def __post_init__(self) -> None:
        check(self.name)
        Limit(self.concurrency, self.rate, self.burst)

    @property
    def plain(self) -> dict[str, Any]:
        """As it travels."""
        given = ((one.name, getattr(self, one.name)) for one in fields(self))
        return {name: value for name, value in given if value is not None}


def throttled(
    name: str | Throttle,
    *,
    concurrency: int | None = None,
    rate: str | None = None,
    burst: int | None = None,
) -> Callable[[T], T]:
    """Has a task wait for a throttle; several decorators are several throttles, and a job starts
    only if all of them let it.

    Args:
        name: of the throttle; see :class:`Throttle` for this and the others.

    Example:
        >>> @app.task
        ... @throttled('stripe', concurrency=5, rate='100/m')
        ... @throttled('tenant:{tenant_id}', concurrency=2)
        ... def charge(tenant_id, amount): ...
    """
    limits = (concurrency, rate, burst)
    if isinstance(name, Throttle):
        if limits != (None, None, None):
            raise InvalidArgument(f'{name!r} has its limits: @throttled takes no others with it')
        wanted = name
    elif isinstance(name, str):
        wanted = Throttle(name, *limits)
    else:
        raise InvalidArgument('@throttled takes the name of a throttle: @throttled("stripe")')
    return lambda target: declare(target, 'throttles', wanted.plain)


def _plain(throttles: Any) -> list[dict[str, Any]]:
    """What ``throttles`` of a call takes, as it travels."""
    if isinstance(throttles, str | Throttle | Mapping):
        throttles = (throttles,)
    if not isinstance(throttles, Iterable) or isinstance(throttles, bytes):
        raise InvalidArgument(f'throttles {throttles!r:.100} is no list of names and Throttle(...)')
    return [_one(throttle).plain for throttle in throttles]


def _one(throttle: Any) -> Throttle:
    if isinstance(throttle, Throttle):
        return throttle
    if isinstance(throttle, str):
        return Throttle(throttle)
    known = {one.name for one in fields(Throttle)}
    if isinstance(throttle, Mapping) and 'name' in throttle and throttle.keys() <= known:
        return Throttle(**throttle)  # what an earlier call of ours has made
    raise InvalidArgument(f'{throttle!r:.100} in throttles is no name and no Throttle(...)')


def _headers(call: Call) -> dict[str, Any]:
    """The task's throttles and those of the call, whose limits win."""
    wanted: dict[str, dict[str, Any]] = {}
    for throttle in (*call.declared, *call.options.get('throttles', ())):
        name = call.fill(throttle['name'])
        if name not in wanted or len(throttle) > 1:
            wanted[name] = {**throttle, 'name': name}
    return {HEADER: list(wanted.values())}


feature(
    'throttles',
    headers=(HEADER,),
    build=_headers,
    options={'throttles': _plain},
    cleared={HEADER: []},
)


# -- look and act ----------------------------------------------------------------


class Holder(NamedTuple):
    """A job that has a slot.

    Args:
        id: Celery's task id.
        queue: where it is; empty if it is gone.
        worker: who holds it: ``<host>:<process id of the worker>:<random>``; may be empty.
        since: since when it has the slot.
    """

    id: str
    queue: str
    worker: str
    since: datetime


class Waiter(NamedTuple):
    """A job that waits for a throttle.

    Args:
        id: Celery's task id.
        queue: where it is.
        since: since when it waits.
    """

    id: str
    queue: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ThrottleInfo:
    """A throttle as it was when it was looked at.

    Args:
        name: its name.
        concurrency: how many jobs run at once; None is no limit.
        rate: how many start in a time; None is no limit.
        burst: how many may start at once after a pause; None without a rate.
        source: ``'set'`` at run time, or the ``'default'`` that tasks bring with them.
        expires_at: when what was set ends, and the default holds again.
        stopped: nothing starts, because a limit is 0.
        held: how many jobs have a slot.
        pending: how many jobs wait.
    """

    name: str
    concurrency: int | None
    rate: str | None
    burst: int | None
    source: Literal['set', 'default']
    expires_at: datetime | None
    stopped: bool
    held: int
    pending: int


class ThrottleControl:
    """One throttle, by its name; nobody need have used it yet.

    Example:
        >>> stripe = ext.throttles['stripe']
        >>> stripe.set(concurrency=2, rate='50/m', expires=3600)
        >>> stripe.get().pending
        17
        >>> stripe.delete()
        True
    """

    def __init__(self, extension: Extension, name: str) -> None:
        self._extension = extension
        self.name = name

    @property
    def _store(self) -> Any:
        return self._extension.store.throttles

    def set(
        self,
        concurrency: int | None = None,
        rate: str | None = None,
        burst: int | None = None,
        expires: float | timedelta | None = None,
    ) -> None:
        """Sets the limits, for all workers, at once and whatever the tasks say.

        Lower limits stop nothing that runs.  What is not given is not limited.

        Args:
            concurrency: how many jobs run at once; 0 stops the throttle.
            rate: how many start in a time, ``'100/m'``; ``'0/m'`` stops it.
            burst: how many may start at once after a pause; 3 unless stated.
            expires: seconds after which the limits of the tasks hold again; never unless stated.

        Raises:
            InvalidArgument: these make no sense.
        """
        if isinstance(expires, timedelta):
            expires = expires.total_seconds()
        self._store.set(self.name, concurrency, rate, burst, expires)

    def delete(self) -> bool:
        """Forgets what was set: the limits of the tasks hold again.  Who has a slot keeps it.

        Returns:
            Whether anything was set.
        """
        return bool(self._store.delete(self.name))

    def get(self) -> ThrottleInfo | None:
        """Its limits and how much it is used; None if nothing was set and no job uses it."""
        found = self._store.get(self.name)
        return None if found is None else _info(found)

    def holders(self, offset: int = 0, limit: int = 100) -> list[Holder]:
        """A page of the jobs that have a slot, the longest first."""
        return [
            Holder(one.id, one.queue, one.worker, _time(one.since))
            for one in self._store.holders(self.name, offset, limit)
        ]

    def pending(self, offset: int = 0, limit: int = 100) -> list[Waiter]:
        """A page of the jobs that wait for it, the longest first."""
        return [
            Waiter(one.id, one.queue, _time(one.since))
            for one in self._store.pending(self.name, offset, limit)
        ]

    def release(self, which: Any) -> bool:
        """Takes its slot from a job, although it may still run: the next one starts.

        Args:
            which: an id, a result or a job.

        Returns:
            Whether it had one.
        """
        return bool(self._store.release(self.name, task_id(which)))

    def __repr__(self) -> str:
        return f'<throttle {self.name!r}>'


class Throttles:
    """All throttles that were set, or that a job uses.

    Example:
        >>> for info in ext.throttles.look(): print(info.name, info.held, info.pending)
        stripe 5 1312
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def __getitem__(self, name: str) -> ThrottleControl:
        return ThrottleControl(self._extension, name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self[name].get() is not None

    def __iter__(self) -> Iterator[ThrottleControl]:
        return (self[name] for name in self.names())

    def names(self) -> list[str]:
        """Their names."""
        return list(self._extension.store.throttles.names())

    def look(self) -> list[ThrottleInfo]:
        """All of them as they are now, those with most that wait first."""
        found = self._extension.store.throttles.look(self.names())
        order = sorted(found, key=lambda one: (-one.pending, -one.held, one.name))
        return [_info(one) for one in order]


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _info(found: Any) -> ThrottleInfo:
    return ThrottleInfo(
        found.name, found.concurrency, found.rate, found.burst, found.source,
        moment(found.expires_at), found.stopped, found.held, found.pending,
    )  # fmt: skip
