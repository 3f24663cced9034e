"""What the store tells about a job, read from the reply of ``lua/ops/inspect.lua``."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from kombu_reliable.envelope import unpack_id

__all__ = ('STATES', 'Event', 'Failure', 'Group', 'JobInfo', 'JobState', 'read_jobs')

JobState = Literal['delayed', 'waiting', 'ready', 'throttled', 'leased', 'failed', 'completed']
STATES: tuple[JobState, ...] = get_args(JobState)


class Group(NamedTuple):
    """Dead letters that died of the same: usually those of one task.

    Args:
        name: as the worker gave it; the reason of death if there was no worker to give one.
        count: how many there are.
        last: when the last one died, ms since the epoch.
    """

    name: str
    count: int  # type: ignore[assignment]
    last: int


class Event(NamedTuple):
    """Something that happened to a job, or that its task has logged.

    Args:
        at: when, ms since the epoch.
        event: ``requeued``, ``released``, ``lost``, ``moved``, ``replayed``, ``retried``,
            ``failed`` ...; for jobs that are tagged, tracked or kept also ``put``, ``popped``,
            ``completed``; ``log``.
        detail: who, where or why; what was logged; may be empty.
        data: what was logged with it.
    """

    at: int
    event: str
    detail: str = ''
    data: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a job came to be a dead letter.

    Args:
        reason: ``delivery-limit``, ``rejected``, ``lost``, ``dependency`` ...
        type: name of the exception, ``''`` if there was none.
        message: what it said.
        traceback: as text, cut to a few kB.
        group: see :class:`Group`.
        at: when it died, ms since the epoch.
    """

    reason: str
    type: str = ''
    message: str = ''
    traceback: str = ''
    group: str = ''
    at: int = 0


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as it was when it was looked at.

    Times are milliseconds since the epoch, by the server's clock.

    Args:
        key: its own name; two jobs with the same id have different ones.
        id: Celery's task id.
        queue: where it is.
        state: ``delayed``, ``waiting`` (for other jobs), ``ready``, ``throttled``, ``leased``,
            ``failed`` or ``completed`` (and kept for a while).
        priority: 0-255, as its publisher gave it.
        published_at: when this run of it was published.
        due: not started before; None if it may start at once.
        deliveries: how often this run was handed to a worker, including now; of a dead letter,
            without the one in which it failed.
        worker: name of the claiming process's poller; None if nobody holds it.
        lease_expires_at: None unless it is leased.
        failure: None unless it is a dead letter.
        depends_on: ids of jobs that it waits for, the first hundred.
        dependencies: how many it waits for.
        dependents: ids of jobs that wait for it, the first hundred.
        dependent_count: how many wait for it.
        policy: what becomes of it if a dependency fails: ``wait``, ``fail`` or ``ignore``;
            ``''`` if it has none.
        throttles: the names of those that hold it back, or may.
        history: what happened to it, the oldest first: the first event and the last nineteen, and
            among them the first line that it logged and the last forty-nine.
        tags: its tags.
        tracked: whether it tells what befalls it, see :class:`.Events`.
        progress: how far it says that it is, from 0 to 1; None if it says nothing.
        completed_at: when it succeeded; None unless it is completed.
        envelope: the message; :func:`kombu_reliable.open_job` opens it.
    """

    key: str
    id: str
    queue: str
    state: JobState
    priority: int
    published_at: int
    due: int | None = None
    deliveries: int = 0
    worker: str | None = None
    lease_expires_at: int | None = None
    failure: Failure | None = None
    depends_on: tuple[str, ...] = ()
    dependencies: int = 0
    dependents: tuple[str, ...] = ()
    dependent_count: int = 0
    policy: str = ''
    throttles: tuple[str, ...] = ()
    history: tuple[Event, ...] = ()
    tags: tuple[str, ...] = ()
    tracked: bool = False
    progress: float | None = None
    completed_at: int | None = None
    envelope: bytes = b''


def read_jobs(
    reply: Sequence[Any], keys: Sequence[str], envelopes: Sequence[bytes | None]
) -> list[JobInfo | None]:
    """Reads the reply of ``inspect``; None for what is no job, or none any more.

    Args:
        reply: what the script answered.
        keys: the jobs that it was asked for.
        envelopes: their messages; None for one that ended meanwhile.
    """
    fields = iter(reply)
    found = [_read_job(key, fields) for key in keys]
    return [
        None if envelope is None or make is None else make(envelope)
        for make, envelope in zip(found, envelopes, strict=True)
    ]


def _read_job(key: str, fields: Iterator[Any]) -> Any:
    state = _text(next(fields))
    if not state:
        return None
    rank, published, queue, score, owner, lost = (_text(next(fields)) for _ in range(6))
    reason, failure, group, policy, history, lane = (_text(next(fields)) for _ in range(6))
    tags, tracked, progress, log, done = (_text(next(fields)) for _ in range(5))
    dependencies, depends_on = _others(fields)
    dependent_count, dependents = _others(fields)
    at = int(float(score or 0))

    def make(envelope: bytes) -> JobInfo:
        return JobInfo(
            key=key,
            id=unpack_id(key),
            queue=queue,
            state=state,  # type: ignore[arg-type]
            priority=int(rank),
            published_at=int(published),
            due=at if state in ('delayed', 'waiting') else None,
            deliveries=int(lost or 0) + bool(owner),
            worker=owner.rpartition(';')[2] or None,
            lease_expires_at=at if state == 'leased' else None,
            failure=_failure(reason, failure, group, at) if state == 'failed' else None,
            depends_on=depends_on,
            dependencies=dependencies,
            dependents=dependents,
            dependent_count=dependent_count,
            policy=policy,
            throttles=_throttles(lane),
            history=tuple(heapq.merge(_events(history), _logged(log), key=lambda event: event.at)),
            tags=_tags(tags),
            tracked=bool(tracked),
            progress=float(progress) if progress else None,
            completed_at=int(done) if state == 'completed' and done else None,
            envelope=envelope,
        )

    return make


def _text(field: bytes | int | None) -> str:
    return field.decode(errors='replace') if isinstance(field, bytes) else str(field or '')


def _others(fields: Iterator[Any]) -> tuple[int, tuple[str, ...]]:
    """Their number and the ids of the first ones, without marks that are no jobs."""
    count, shown = int(next(fields)), int(next(fields))
    keys = [_text(next(fields)) for _ in range(shown)]
    jobs = [key for key in keys if key and not key.startswith('!')]
    return count - (shown - len(jobs)), tuple(map(unpack_id, jobs))


def _failure(reason: str, text: str, group: str, at: int) -> Failure:
    try:
        told = json.loads(text) if text else {}
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    names = ('type', 'message', 'traceback')
    said = {name: str(told[name]) for name in names if told.get(name) is not None}
    return Failure(reason, group=group or reason, at=at, **said)


def _throttles(lane: str) -> tuple[str, ...]:
    try:
        return tuple(str(name) for name, *_ in json.loads(lane)['t']) if lane else ()
    except (ValueError, TypeError, KeyError):
        return ()


def _events(history: str) -> Iterator[Event]:
    for line in history.split('\n'):
        at, _, rest = line.partition(' ')
        event, _, detail = rest.partition(' ')
        if at.isdigit():
            yield Event(int(at), event, detail)


def _logged(log: str) -> Iterator[Event]:
    for line in log.split('\n'):
        at, _, text = line.partition(' ')
        if not at.isdigit():
            continue
        try:
            message, data = json.loads(text)
        except (TypeError, ValueError):
            message, data = text, None
        yield Event(int(at), 'log', str(message), data)


def _tags(text: str) -> tuple[str, ...]:
    try:
        return tuple(map(str, json.loads(text))) if text else ()
    except (TypeError, ValueError):
        return ()
