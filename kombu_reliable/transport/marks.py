"""Reads from a message's headers its tags, and whether it is tracked and kept."""

from __future__ import annotations

import math
from typing import Any

from kombu_reliable.errors import InvalidArgument, InvalidMessage
from kombu_reliable.options import Options
from kombu_reliable.store import checks
from kombu_reliable.types import Marks

__all__ = ('RETENTION', 'TAGS', 'TRACK', 'take_marks')

#: A list of texts.
TAGS = 'x-tags'
#: Whether the job tells what befalls it.
TRACK = 'x-track'
#: For how many seconds it is kept once it has completed.
RETENTION = 'x-retention'

LONGEST_RETENTION = 2**45  # ms


def take_marks(headers: dict[str, Any], options: Options) -> Marks | None:
    """The marks of a message, if it has any; they are taken out of its headers: a next run keeps
    what its job has.

    Raises:
        InvalidMessage: these headers make no sense.
    """
    if TAGS in headers or TRACK in headers or RETENTION in headers:
        tags = _tags(headers.pop(TAGS, None))
        track = _track(headers.pop(TRACK, None), headers.get('task'))
        retain = _retention(headers.pop(RETENTION, None))
    elif options.completed_retention is None:
        return None
    else:
        tags, track, retain = (), None, None
    if retain is None:
        retain = options.kept_for(bool(tags) or track is not None)
    if not retain and not tags and track is None:
        return None
    return Marks(tags, track, retain, options.completed_limit)


def _tags(given: Any) -> tuple[str, ...]:
    try:
        return checks.tags(given or ())
    except InvalidArgument as error:
        raise InvalidMessage(f'{TAGS}: {error}') from None


def _track(given: Any, task: Any) -> str | None:
    if given is None or given is False:
        return None
    if given is not True and given != 1:
        raise InvalidMessage(f'{TRACK} {given!r:.100} is neither true nor false')
    return task if isinstance(task, str) else ''


def _retention(seconds: Any) -> int | None:
    if seconds is None:
        return None
    valid = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if not valid or not math.isfinite(seconds) or not 0 <= seconds * 1000 <= LONGEST_RETENTION:
        raise InvalidMessage(f'{RETENTION} {seconds!r:.100} is not a number of seconds, 0 or more')
    return math.ceil(float(seconds) * 1000)
