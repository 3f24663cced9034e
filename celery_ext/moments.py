"""Times as people write them, and as the store counts them."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from kombu_reliable import InvalidArgument

__all__ = ('due_time', 'moment')


def moment(milliseconds: int | None) -> datetime | None:
    """A time of the store's, in UTC."""
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def due_time(app: Any, when: datetime | None, countdown: float | timedelta | None) -> float:
    """A due time in milliseconds since the epoch.

    Raises:
        InvalidArgument: neither or both are given, or they make no sense.
    """
    if (when is None) == (countdown is None):
        raise InvalidArgument('give either a time or a countdown')
    if isinstance(when, datetime):
        aware = when if when.tzinfo is not None else when.replace(tzinfo=app.timezone)
        return aware.timestamp() * 1000
    if when is not None:
        raise InvalidArgument(f'{when!r} is no datetime; use countdown=... for seconds')
    if isinstance(countdown, timedelta):
        countdown = countdown.total_seconds()
    if isinstance(countdown, bool) or not isinstance(countdown, int | float):
        raise InvalidArgument(f'countdown {countdown!r} is not a number of seconds')
    if not (math.isfinite(countdown) and countdown >= 0):
        raise InvalidArgument(f'countdown {countdown!r} is not a number of seconds, 0 or more')
    return (time.time() + countdown) * 1000
