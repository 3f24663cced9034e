"""A worker whose clock is wrong: set differently, or set again and again.

``time.time`` of the process is replaced, before anything has taken hold of it, so this is the
wall clock as Python code sees it.  The monotonic clock is left alone, as it is by whoever sets
the clock of a machine.
"""

from __future__ import annotations

import time

__all__ = ('CLOCKS', 'unsettle')

#: What somebody who sets the clock does, by turns, in seconds.
STEPS = (0.0, 37.0, -20.0, 7_200.0, -3_600.0)
#: How long he leaves it alone.
PAUSE = 5.0

CLOCKS = ('', 'ahead', 'steps')


def unsettle(how: str) -> None:
    """Makes the clock of this process wrong.

    Args:
        how: ``''``: leaves it alone; ``ahead``: two hours fast; ``steps``: steps every 5 s.
    """
    real = time.time
    if how == 'ahead':
        time.time = lambda: real() + 7_200.0
    elif how == 'steps':
        time.time = lambda: real() + STEPS[int(time.monotonic() / PAUSE) % len(STEPS)]
    elif how:
        raise ValueError(f'{how!r}: choose from {CLOCKS}')
