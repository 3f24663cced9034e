"""Tracked jobs, which tell what befalls them; and jobs that are kept when they have completed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

from celery_ext.decorators import declare
from celery_ext.features import Call, feature
from kombu_reliable import InvalidArgument

__all__ = ('connect', 'tracked')

T = TypeVar('T')

#: The headers, as the transport knows them.
TRACK = 'x-track'
RETENTION = 'x-retention'


def tracked(target: T) -> T:
    """Has every job of a task tell what befalls it, see :class:`.Events`.

    ``apply_async(track=False)`` makes an exception, and ``track=True`` tracks one job of a task
    that is not.  Completed jobs that are tracked are kept for an hour, unless the option
    ``completed_retention`` or the call (``retention=<seconds>``) says otherwise.

    Example:
        >>> @app.task
        ... @tracked
        ... def charge(customer_id): ...
        >>> for event in ext.events.listen(): print(event.event, event.id)
    """
    return declare(target, 'track', True)


def _track_header(call: Call) -> Mapping[str, Any]:
    return {TRACK: call.options.get('track', True)}


def _retention_header(call: Call) -> Mapping[str, Any]:
    return {RETENTION: call.options['retention']}


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise InvalidArgument(f'track={value!r:.100} is neither True nor False')


def _seconds(value: Any) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e10:
        raise InvalidArgument(f'retention={value!r:.100} is not a number of seconds, 0 or more')
    return value


def connect() -> None:
    """Registers the options of a call: ``track`` and ``retention``; idempotent."""
    feature('track', headers=(TRACK,), build=_track_header, options={'track': _flag})
    feature(
        'retention', headers=(RETENTION,), build=_retention_header, options={'retention': _seconds}
    )
