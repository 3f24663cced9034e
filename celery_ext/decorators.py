"""What stands under ``@app.task`` and only notes what a task wants.

    @app.task
    @throttled('stripe', concurrency=5)
    @tagged('customer:{customer_id}')
    def charge(customer_id): ...

A decorator of ours returns the function it was given, so their order among themselves does not
matter, nor whether ``@app.task`` or ``@shared_task`` stands above them.  Task classes take them
as well; their subclasses inherit what they want.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from celery.app.task import Task
from celery.local import Proxy

from kombu_reliable import InvalidArgument

__all__ = ('any_declared', 'declare', 'declared')

_ATTRIBUTE = '__celery_ext__'
_NOTHING: Mapping[str, tuple[Any, ...]] = MappingProxyType({})

T = TypeVar('T')

_used = False


def declare(target: T, feature: str, value: Any) -> T:
    """Notes on a function or a task class what it wants of a feature.

    Args:
        target: what the decorator stands above.
        feature: the name under which the feature is registered, see :func:`.features.feature`.
        value: whatever the feature understands; it gets all values of a task, the topmost
            decorator's first.

    Returns:
        ``target``.

    Raises:
        InvalidArgument: it is a task already, or nothing that can become one.
    """
    if isinstance(target, Task | Proxy):
        raise InvalidArgument(
            f'a decorator for {feature} stands above @app.task or @shared_task: put it below, '
            f'next to the function'
        )
    if not callable(target):
        raise InvalidArgument(
            f'a decorator for {feature} stands above a function, not above {target!r}'
        )
    # A copy: functools.wraps shares the attributes of a function, and a class those of its bases.
    before: Mapping[str, tuple[Any, ...]] = getattr(target, _ATTRIBUTE, _NOTHING)
    values = (value, *before.get(feature, ()))
    setattr(target, _ATTRIBUTE, {**before, feature: values})
    global _used
    _used = True
    return target


def any_declared() -> bool:
    """Whether any task of this process wants anything."""
    return _used


def declared(task: Any) -> Mapping[str, tuple[Any, ...]]:
    """What a task wants, by feature; empty for nearly all tasks."""
    own: Mapping[str, tuple[Any, ...]] = getattr(task.run, _ATTRIBUTE, _NOTHING)
    inherited: Mapping[str, tuple[Any, ...]] = getattr(type(task), _ATTRIBUTE, _NOTHING)
    if not inherited:
        return own
    return {
        feature: (*own.get(feature, ()), *inherited.get(feature, ()))
        for feature in {**own, **inherited}
    }
