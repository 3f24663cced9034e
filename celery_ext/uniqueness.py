"""Unique jobs: of the calls with the same key, one at a time is queued or runs.

    @app.task
    @unique(key='{customer_id}', ttl=600)
    def rebuild_report(customer_id): ...

    rebuild_report.apply_async((7,), unique={'on_conflict': 'replace'}, countdown=30)

The key is part of the job and ends with it, however that ends: there is no lock that could be
left behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from celery.utils import uuid

from celery_ext import following
from celery_ext.decorators import declare
from celery_ext.features import Call, feature
from celery_ext.templates import check
from kombu_reliable import DuplicateJob, InvalidArgument

__all__ = ('CONFLICT', 'FOR', 'KEY', 'UNTIL', 'send', 'unique')

#: The headers, as the transport knows them.
KEY, FOR = 'x-unique-key', 'x-unique-for'
CONFLICT, UNTIL = 'x-on-conflict', 'x-unique-until'

CHOICES = {
    'on_conflict': ('skip', 'replace', 'raise'),
    'until': ('done', 'start'),
    'scope': ('task', 'global'),
}
FIELDS = ('key', 'ttl', *CHOICES)
LONGEST_TTL = 100 * 366 * 24 * 3600.0

T = TypeVar('T')


def unique(
    key: str | None = None,
    ttl: float | None = None,
    on_conflict: str = 'skip',
    until: str = 'done',
    scope: str = 'task',
) -> Callable[[T], T]:
    """A decorator under ``@app.task``: of the calls with the same key, there is one at a time.

    Args:
        key: filled in from the arguments; without one, the task itself is unique.
        ttl: seconds after the publish after which another one is let in whatever became of the
            first.  None: not before it has ended.
        on_conflict: what becomes of a call whose key another job has.  ``skip``: nothing is
            published, and the result of the other one is returned.  ``raise``: nothing is
            published, and :class:`.DuplicateJob` says which job it is.  ``replace``: it takes the
            place of the other one, which is canceled; behind one that runs it waits for its end.
        until: ``done``, the key is free when the job has ended; ``start``, when its run begins.
        scope: ``task``: other tasks may have the same key; ``global``: no other job at all.

    Example:
        >>> @app.task
        ... @unique(key='{customer_id}', ttl=600)
        ... def rebuild_report(customer_id): ...
    """
    wanted = _checked(
        {'key': key, 'ttl': ttl, 'on_conflict': on_conflict, 'until': until, 'scope': scope}
    )

    def decorate(target: T) -> T:
        return declare(target, 'unique', wanted)

    return decorate


def _checked(given: Any) -> dict[str, Any]:
    """What a call or a decorator says, if it makes sense; only what is said."""
    if given is False:
        return {'off': True}
    if given is True:
        return {}
    if isinstance(given, str):
        given = {'key': given}
    if not isinstance(given, Mapping):
        raise InvalidArgument(
            f'unique {given!r}: give True, False, a key, or a dict of {", ".join(FIELDS)}'
        )
    if given.get('off') is True:
        return {'off': True}
    said = {field: value for field, value in given.items() if value is not None}
    for field, value in said.items():
        if field not in FIELDS:
            raise InvalidArgument(f'unique: {field!r} is none of {", ".join(FIELDS)}')
        if field in CHOICES and value not in CHOICES[field]:
            raise InvalidArgument(
                f'unique: {field} {value!r} is none of {", ".join(CHOICES[field])}'
            )
    if 'key' in said:
        said['key'] = check(said['key'])
    if 'ttl' in said:
        said['ttl'] = _seconds(said['ttl'])
    return said


def _seconds(ttl: Any) -> float:
    number = isinstance(ttl, int | float) and not isinstance(ttl, bool)
    if not number or not math.isfinite(ttl) or not 0 < ttl <= LONGEST_TTL:
        raise InvalidArgument(f'unique: ttl {ttl!r} is not a number of seconds above 0')
    return float(ttl)


def _headers(call: Call) -> dict[str, Any]:
    """What a call says goes before what its task has declared."""
    own = call.options.get('unique', {})
    if own.get('off'):
        return {}
    wanted = {**(call.declared[0] if call.declared else {}), **own}
    ttl = wanted.get('ttl')
    until = wanted.get('until', 'done')
    return {
        KEY: _full_key(wanted, call),
        FOR: None if ttl is None else max(1, round(ttl * 1000)),
        CONFLICT: wanted.get('on_conflict', 'skip'),
        UNTIL: until if until != 'done' else None,
    }


def _full_key(wanted: Mapping[str, Any], call: Call) -> str:
    key = call.fill(wanted['key']) if wanted.get('key') else ''
    # Neither two tasks nor a task and what is global can come to the same.
    name = call.name.replace('%', '%25').replace(':', '%3A')
    if wanted.get('scope') != 'global':
        return f'{name}:{key}'
    if not key:
        raise InvalidArgument(f'task {call.name}: unique with scope "global" needs a key')
    return f':{key}'


feature('unique', headers=(KEY, FOR, CONFLICT, UNTIL), build=_headers, options={'unique': _checked})


# -- publishing ------------------------------------------------------------------


def send(
    app: Any, publish: Callable[..., Any], name: str, args: Any, kwargs: Any, rest: Any,
    options: dict[str, Any],
) -> Any:  # fmt: skip
    """Publishes a task that has a key; returns its result, or that of the job that is there."""
    headers = dict(options['headers'])
    skips = headers.get(CONFLICT) in (None, 'skip')
    if skips:
        # Celery drops what a transport returns, but not what it raises; and what was not
        # published is not announced by its signals and events either.
        headers[CONFLICT] = 'raise'
        options['headers'] = headers
    options['task_id'] = options.get('task_id') or uuid()
    try:
        return publish(name, args, kwargs, *rest, **options)
    except DuplicateJob as error:
        _expect_no_result(app, options)
        if not skips:
            raise
        return following.result_of(app, error.id, name, options)


def _expect_no_result(app: Any, options: Mapping[str, Any]) -> None:
    """Celery listens for the result of a task from before it is published."""
    forget = getattr(app.backend, 'remove_pending_result', None)
    if forget is not None:
        forget(app.AsyncResult(options['task_id']))
