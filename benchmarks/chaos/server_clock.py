"""The clock of the server, which can be set while it runs.

A machine has one clock, and all its processes share it; so the server alone is given a library
that stands between it and the clock.  It is compiled for the run: where there is no C compiler,
or no Linux, the server's clock is left alone.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ('ServerClock',)

SOURCE = Path(__file__).with_name('clock.c')


class ServerClock:
    """What to start a server with, and how to set its clock then.

    Args:
        directory: for the library, and the file in which the offset stands.
    """

    def __init__(self, directory: Path) -> None:
        self._library = directory / 'clock.so'
        self._offset = directory / 'offset'
        self.available = self._compile()
        self.set(0.0)

    def _compile(self) -> bool:
        compiler = shutil.which('cc') if sys.platform == 'linux' else None
        if compiler is None:
            return False
        command = [compiler, '-O2', '-shared', '-fPIC', '-o', str(self._library), str(SOURCE)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def set(self, seconds: float) -> None:
        """So much ahead of the machine's clock, at once."""
        # In place: the server has this very file in its memory.
        with self._offset.open('r+b' if self._offset.exists() else 'wb') as file:
            file.write(struct.pack('l', int(seconds * 1000)))

    @contextmanager
    def worn(self) -> Iterator[None]:
        """Whatever this process starts meanwhile has this clock."""
        if not self.available:
            yield
            return
        os.environ |= {'LD_PRELOAD': str(self._library), 'CHAOS_OFFSET': str(self._offset)}
        try:
            yield
        finally:
            del os.environ['LD_PRELOAD'], os.environ['CHAOS_OFFSET']
