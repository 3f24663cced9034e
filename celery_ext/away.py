"""What tells that the server cannot be reached; waiting may help."""

from __future__ import annotations

import redis.exceptions
from kombu.exceptions import OperationalError

__all__ = ('AWAY',)

#: As redis-py, sockets, this project and kombu put it.
AWAY = (
    redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError, OperationalError,
)  # fmt: skip
