"""The app of :mod:`tests.support.installed` on a machine whose clock jumps to and fro by hours."""

from __future__ import annotations

import itertools
import time

_real, _jumps = time.time, itertools.cycle((7_200.0, -3_600.0, 40_000.0, 0.0))
time.time = lambda: _real() + next(_jumps)

from tests.support.installed import app, ext  # noqa: E402

__all__ = ('app', 'ext')
