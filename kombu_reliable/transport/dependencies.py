"""Reads from a message's headers what it depends on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from kombu_reliable.envelope import pack_id
from kombu_reliable.errors import DependencyCycle, InvalidMessage
from kombu_reliable.types import Dependencies, Policy

__all__ = ('DEPENDS_ON', 'POLICY', 'take_dependencies')

#: Ids of tasks, or ``{'id': ..., 'expected': <seconds>}`` for one that is still to come.  It may
#: have ``'after': [<id>, ...]``: unless one of these lives, it has come, and ended.
DEPENDS_ON = 'x-depends-on'
#: ``wait`` (the default), ``fail`` or ``ignore``.
POLICY = 'x-dependency-policy'

LONGEST_WAIT = 2**52  # ms


def take_dependencies(headers: dict[str, Any], job: str) -> Dependencies | None:
    """What the message of a job depends on, if on anything; it is taken out of the headers, or a
    retry, which copies them, would wait again.

    Raises:
        DependencyCycle: the task would wait for itself.
        InvalidMessage: these headers make no sense.
    """
    if DEPENDS_ON not in headers and POLICY not in headers:
        return None
    policy = _policy(headers.pop(POLICY, None))
    wanted = headers.pop(DEPENDS_ON, None) or ()
    if not isinstance(wanted, list | tuple | set | frozenset):
        raise InvalidMessage(f'{DEPENDS_ON} {wanted!r} is no list of task ids')
    found: dict[str, int] = {}
    before: dict[str, tuple[str, ...]] = {}
    for one in wanted:
        key, within, after = _dependency(one)
        if key == job:
            raise DependencyCycle(f'{DEPENDS_ON} names the task itself: it would wait for ever')
        found[key] = max(within, found.get(key, 0))
        before[key] = after
    if not found:
        return None
    afters = tuple(before.values()) if any(before.values()) else ()
    return Dependencies(tuple(found), policy, tuple(found.values()), afters)


def _policy(name: Any) -> Policy:
    if name is None:
        return Policy.WAIT
    for policy in Policy:
        if name == policy.name.lower():
            return policy
    known = ', '.join(policy.name.lower() for policy in Policy)
    raise InvalidMessage(f'{POLICY} {name!r} is none of {known}')


def _dependency(one: Any) -> tuple[str, int, tuple[str, ...]]:
    within = 0
    after: tuple[str, ...] = ()
    if isinstance(one, Mapping):
        unknown = set(one) - {'id', 'expected', 'after'}
        if unknown or 'id' not in one:
            raise InvalidMessage(
                f'{one!r} in {DEPENDS_ON} is no {{"id": ..., "expected": <seconds>}}'
            )
        within = _milliseconds(one.get('expected'))
        after = tuple(_key(each) for each in one.get('after') or ())
        one = one['id']
    return _key(one), within, after


def _key(one: Any) -> str:
    if not isinstance(one, str) or not one:
        raise InvalidMessage(f'{one!r} in {DEPENDS_ON} is no id of a task')
    try:
        one.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f'half a character in an id in {DEPENDS_ON}') from None
    return pack_id(one)


def _milliseconds(seconds: Any) -> int:
    if seconds is None:
        return 0
    valid = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not valid or not math.isfinite(seconds) or not 0 < seconds * 1000 <= LONGEST_WAIT:
        raise InvalidMessage(
            f'{seconds!r} in {DEPENDS_ON} is no number of seconds for which to expect a task'
        )
    return max(1, round(float(seconds) * 1000))
