"""A machine that loses its power.

A server that is killed leaves to the kernel what it has written, and the kernel writes it to the
disk: ``appendfsync everysec`` loses next to nothing by a kill.  A machine that loses its power
takes along what was not on the disk yet, which is what was written since the last fsync: a
second, or two.  That is made here by cutting the end off the append-only file.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path

__all__ = ('PowerMeter',)

#: What is not on the disk yet, in seconds.
UNSAVED = 1.0


class PowerMeter:
    """Remembers how long the append-only file was a moment ago.

    Args:
        directory: of the server.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory / 'appendonlydir'
        self._seen: deque[tuple[float, Path, int]] = deque(maxlen=1000)

    def look(self) -> None:
        """To be called several times a second."""
        newest = self._newest()
        if newest is not None:
            self._seen.append((time.monotonic(), newest, newest.stat().st_size))

    def fail(self) -> int:
        """Cuts off what was written in the last second, and returns how much that was; the
        server must not run."""
        newest = self._newest()
        if newest is None:
            return 0
        until = time.monotonic() - UNSAVED
        sizes = [size for at, path, size in self._seen if path == newest and at <= until]
        kept = sizes[-1] if sizes else 0
        size = newest.stat().st_size
        os.truncate(newest, min(kept, size))
        self._seen.clear()
        return size - min(kept, size)

    def _newest(self) -> Path | None:
        found = list(self._directory.glob('*.incr.aof'))
        return max(found, key=_number, default=None)


def _number(path: Path) -> int:
    return int(path.name.split('.')[-3])
