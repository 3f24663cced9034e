"""Runs ``celery`` with its main process profiled from the moment the worker is ready.

    python -m benchmarks.profiled FILE worker -A benchmarks.app ...

Only the main thread is seen, and no pool process: a profiler switched on before a fork would
follow into the child.
"""

from __future__ import annotations

import cProfile
import os
import sys
from typing import Any

from celery.bin.celery import main as celery
from celery.signals import worker_ready, worker_shutting_down


def main() -> None:
    target = sys.argv.pop(1)
    profiler = cProfile.Profile()
    owner = os.getpid()

    @worker_ready.connect(weak=False)
    def start(**kwargs: Any) -> None:
        profiler.enable()

    @worker_shutting_down.connect(weak=False)
    def stop(**kwargs: Any) -> None:
        if os.getpid() == owner:
            profiler.disable()
            profiler.dump_stats(target)

    os.register_at_fork(after_in_child=profiler.disable)
    celery()


if __name__ == '__main__':
    main()
