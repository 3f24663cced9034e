"""What ``depends_on`` takes, and what of it travels with a message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from celery.canvas import Signature, _chain, _chord, group
from celery.result import AsyncResult, EagerResult, ResultSet

from celery_ext.errors import InvalidDependency

__all__ = ('POLICIES', 'Expected', 'expected', 'normalize', 'normalize_policy')

#: What becomes of a job when one that it depends on has failed.
POLICIES = ('wait', 'fail', 'ignore')

#: How long, in seconds, a task that is still to come is waited for, if nobody said how long.
PATIENCE = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Expected:
    """A dependency that may not have been published yet; made by :func:`expected`."""

    what: Any
    timeout: float


def expected(what: Any, timeout: float = PATIENCE) -> Expected:
    """Marks a dependency as still to come.

    An id that nobody knows counts as finished long ago.  One that is marked is waited for; if
    nobody has published it within ``timeout`` seconds, the job that waits fails, reason
    ``dependency-timeout``.

    Args:
        what: a task id, an :class:`~celery.result.AsyncResult`, or a signature that was frozen.
        timeout: seconds, a day unless stated otherwise.

    Example:
        >>> payment = pay.s(order).set(task_id='pay-17')
        >>> invoice.apply_async((order,), depends_on=[expected('pay-17', timeout=600)])
        >>> payment.apply_async()
    """
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 < seconds <= 10 * 366 * 24 * 3600:
        raise InvalidDependency(
            f'expected() takes a number of seconds above 0 as its timeout, not {timeout!r}'
        )
    return Expected(what, seconds)


def normalize(depends_on: Any) -> list[str | dict[str, Any]]:
    """Dependencies as they travel: ids, and dicts for those that are still to come.

    Applied twice it changes nothing, because signatures carry what it returned.

    Raises:
        InvalidDependency: something in it names no task.
    """
    found: dict[str, str | dict[str, Any]] = {}
    for one in _each(depends_on, None):
        name = one if isinstance(one, str) else one['id']
        if not isinstance(found.get(name), dict):
            found[name] = one
    return list(found.values())


def normalize_policy(policy: Any) -> str:
    """One of :data:`POLICIES`.

    Raises:
        InvalidDependency: it is another word.
    """
    if policy in POLICIES:
        return str(policy)
    raise InvalidDependency(f'dependency_policy {policy!r}: choose from {", ".join(POLICIES)}')


def _each(what: Any, timeout: float | None) -> Iterator[str | dict[str, Any]]:
    if what is None or isinstance(what, EagerResult):
        return
    if isinstance(what, Expected):
        yield from _each(what.what, what.timeout)
    elif isinstance(what, str):
        yield _one(what, timeout)
    elif isinstance(what, AsyncResult | ResultSet):
        yield from _of_result(what, timeout)
    elif isinstance(what, Signature):
        yield from (_one(each, timeout or PATIENCE) for each in _ends(what))
    elif isinstance(what, Mapping):
        yield _checked(what)
    elif isinstance(getattr(what, 'id', None), str):
        yield _one(what.id, timeout)
    elif isinstance(what, Iterable) and not isinstance(what, bytes):
        for one in what:
            yield from _each(one, timeout)
    else:
        raise InvalidDependency(
            f'depends_on takes task ids, results, frozen signatures, jobs and expected(...), '
            f'not {what!r}'
        )


def _one(name: str, timeout: float | None) -> str | dict[str, Any]:
    if not name:
        raise InvalidDependency('a dependency with an empty id: give the id of a task')
    return name if timeout is None else {'id': name, 'expected': timeout}


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call of ours has made, read back from a signature."""
    if isinstance(given.get('id'), str) and 'expected' in given:
        return dict(given)
    raise InvalidDependency(f'a dependency as {given!r}: use expected(id, timeout=...)')


def _of_result(result: Any, timeout: float | None) -> Iterator[str | dict[str, Any]]:
    """The results of a chain or chord stand for tasks that are published only when those before
    them are done.  So they are to be expected while one of those lives."""
    before = sorted(set(_before(result)))
    members = [result] if isinstance(result, AsyncResult) else list(result.results)
    for member in members:
        if isinstance(member, ResultSet):
            yield from _of_result(member, timeout)
        elif isinstance(member, EagerResult):
            continue
        elif timeout is None and (earlier := sorted({*before, *_before(member)})):
            yield {'id': member.id, 'expected': PATIENCE, 'after': earlier}
        else:
            yield _one(member.id, timeout)


def _before(result: Any) -> Iterator[str]:
    """The ids of all tasks that come before a result."""
    parent = result.parent
    while parent is not None:
        yield from _ids(parent)
        parent = parent.parent


def _ids(result: Any) -> Iterator[str]:
    if isinstance(result, ResultSet):
        for member in result.results:
            yield from _ids(member)
            yield from _before(member)
    else:
        yield result.id


def _ends(signature: Any) -> Iterator[str]:
    """The ids of the tasks with which a signature ends."""
    if isinstance(signature, _chain):
        if signature.tasks:
            yield from _ends(signature.tasks[-1])
    elif isinstance(signature, group):
        for member in signature.tasks:
            yield from _ends(member)
    elif isinstance(signature, _chord):
        yield from _ends(signature.body)
    elif signature.options.get('task_id'):
        yield signature.options['task_id']
    else:
        raise InvalidDependency(
            f'{signature!r} has no id yet: call its freeze(), or depend on the result of its '
            f'apply_async()'
        )
