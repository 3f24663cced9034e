"""Wait for conditions, never for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar('T')

FIRST_PAUSE = 0.002
LONGEST_PAUSE = 0.05


def wait_for(condition: Callable[[], T], timeout: float = 10.0, what: str = '') -> T:
    """Poll *condition* until it is truthy and return its value."""
    deadline = time.monotonic() + timeout
    pause = FIRST_PAUSE
    while not (value := condition()):
        left = deadline - time.monotonic()
        if left <= 0:
            waited = what or getattr(condition, '__name__', 'the condition')
            raise AssertionError(f'no {waited} within {timeout:g} s, last value: {value!r}')
        # Never sleep past the deadline, and always look once more after the last sleep.
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, LONGEST_PAUSE)
    return value
