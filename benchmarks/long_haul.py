"""Memory, file descriptors and threads of a worker and its server over many tasks.

    python -m benchmarks.long_haul [--tasks 200000] [--check]

One worker with the extension (prefork, two processes) runs tasks of many kinds: plain ones, ones
with retries, delays, dependencies, throttles and unique keys, and Celery's chains.  Twenty times
on the way everything is let run empty, and then it is measured: the main process of the worker,
the larger of its pool processes, and the server, which keeps no log on the disk here.

The first quarter is warm-up: Python fills its caches and free lists, allocators keep what they
have once had, hash tables and sorted sets grow to the size that the work needs.  A process of
Celery's pool grows by some 110 MB in its first 700 retries, on any broker: each leaves a cycle of
objects, and Python collects those late.  So memory goes up and down, and peaks are compared: the
largest value of the last quarter with that of the second.  Flat means that it has grown by less
than 5 % and by less than 5 MB, and by not more than two file descriptors or threads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from celery import Celery

import celery_ext
from benchmarks.chaos.crew import ROOT, Crew, Member, Place, worker_place
from benchmarks.chaos.ledger import Ledger, Tail
from benchmarks.chaos.settings import QUEUES, Settings
from benchmarks.harness import progress
from tests.support.servers import Server

__all__ = ('Row', 'Sample', 'rows', 'spark')

SAMPLES = 20
#: How much a process may grow after the warm-up.
SHARE, MEGABYTES, MORE = 0.05, 5.0, 2

#: Everything has ended within so long after the last publish, in seconds.
PATIENCE = 120.0

#: Tasks that may wait at the same time: memory for more is not what is measured.
BRAKE = 1_000

MEMORY = ('main_rss', 'pool_rss', 'server_rss', 'server_used')

BARS = '▁▂▃▄▅▆▇█'


@dataclass(frozen=True)
class Sample:
    """What was measured when everything had run empty; memory in MB."""

    tasks: int
    main_rss: float
    pool_rss: float
    server_rss: float
    server_used: float
    main_files: int
    pool_files: int
    server_files: int
    main_threads: int
    pool_threads: int
    server_threads: int


@dataclass(frozen=True)
class Row:
    """One figure over the time.

    Args:
        name: of it.
        values: each sample's.
        early: the largest of the second quarter.
        late: the largest of the last quarter.
        flat: whether that is nearly the same.
    """

    name: str
    values: list[float]
    early: float
    late: float
    flat: bool


def rows(samples: list[Sample]) -> list[Row]:
    """The figures, and which of them are flat."""
    quarter = max(1, len(samples) // 4)
    found = []
    for name in list(asdict(samples[0]))[1:]:
        values = [float(getattr(sample, name)) for sample in samples]
        early, late = max(values[quarter : 2 * quarter]), max(values[-quarter:])
        growth = late - early
        allowed = min(MEGABYTES, SHARE * early) if name in MEMORY else MORE
        flat = growth <= allowed
        found.append(Row(name, values, early, late, flat))
    return found


def spark(values: list[float]) -> str:
    """A line of small bars from the smallest value to the largest.

    Example:
        >>> spark([1, 2, 3])
        '▁▄█'
    """
    low, span = min(values), max(values) - min(values)
    top = len(BARS) - 1
    return ''.join(BARS[int((value - low) / span * top) if span else 0] for value in values)


def table(found: list[Row]) -> str:
    lines = [f'{"":<16}{"first":>9}{"2nd quarter":>13}{"4th quarter":>13}']
    for row in found:
        digits = 1 if row.name in MEMORY else 0
        shown = f'{row.values[0]:>9.{digits}f}{row.early:>13.{digits}f}{row.late:>13.{digits}f}'
        lines.append(f'{row.name:<16}{shown}  {spark(row.values)}{"" if row.flat else "  GROWS"}')
    return '\n'.join(lines)


class Haul:
    """A server, a worker and two producers.

    Args:
        server: runs.
        crew: starts them.
        directory: of the ledger.
    """

    def __init__(self, server: Server, crew: Crew, directory: Path, worker: Member) -> None:
        self._server = server
        self._worker = worker
        self._brake = directory / 'brake'
        ledger = Ledger(directory)
        self._tails = {b'"stored"': Tail(ledger.submitted), b'"how": "done"': Tail(ledger.ran)}
        self._counts = dict.fromkeys(self._tails, 0)
        app = Celery('long haul', broker=Settings().url(server.port))
        self._ext = celery_ext.install(app)

    def look(self) -> tuple[int, int]:
        """Tasks that were stored, and those that have ended."""
        for word, tail in self._tails.items():
            self._counts[word] += tail.new().count(word)
        stored, done = self._counts.values()
        return stored, done

    def run(self, tasks: int, samples: int) -> Iterator[Sample]:
        for number in range(samples):
            goal = tasks * (number + 1) // samples
            self._brake.unlink(missing_ok=True)
            while (seen := self.look())[1] < goal:
                if seen[0] - seen[1] > BRAKE:
                    self._brake.touch()
                else:
                    self._brake.unlink(missing_ok=True)
                if self._worker.process.poll() is not None:
                    sys.exit(f'the worker has ended:\n{self._worker.log.read_text()[-2000:]}')
                time.sleep(0.1)
            self._brake.touch()
            self._run_empty()
            yield self._measure()

    def _run_empty(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while any(map(self._held, QUEUES)):
            if time.monotonic() > deadline:
                sys.exit('the queues do not run empty')
            time.sleep(0.2)
        time.sleep(0.5)  # the last settlements are on their way

    def _held(self, queue: str) -> int:
        counts = self._ext.queues[queue].counts()
        return counts.ready + counts.delayed + counts.leased + counts.throttled + counts.waiting

    def _measure(self) -> Sample:
        main = psutil.Process(self._worker.process.pid)
        pool, server = main.children(), psutil.Process(self._server.pid)
        with self._server.client() as client:
            info: Any = client.info('memory')
        return Sample(
            tasks=self.look()[1],
            main_rss=_rss(main), pool_rss=max(map(_rss, pool)), server_rss=_rss(server),
            server_used=info['used_memory'] / 1e6,
            main_files=main.num_fds(), pool_files=max(one.num_fds() for one in pool),
            server_files=server.num_fds(), main_threads=main.num_threads(),
            pool_threads=max(one.num_threads() for one in pool),
            server_threads=server.num_threads(),
        )  # fmt: skip


def _rss(process: psutil.Process) -> float:
    return float(process.memory_info().rss / 1e6)


@contextmanager
def haul() -> Iterator[Haul]:
    """Everything that runs, on a server of its own."""
    with ExitStack() as stack:
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix='haul-', dir='/tmp'))
        )
        server = stack.enter_context(Server('valkey'))
        settings = Settings()
        environment = {
            **os.environ, 'CHAOS_LEDGER': str(directory), 'CHAOS_EXTENSION': '1',
            'CHAOS_OPTIONS': json.dumps({'fanout_life': 10}), 'PYTHONPATH': str(ROOT),
        }  # fmt: skip
        broker = settings.url(server.port)
        crew = Crew(directory, environment, (broker, broker), random.Random(1))
        stack.callback(crew.close)
        worker = crew.start(worker_place('w', 'prefork', 2))
        for number in range(2):
            crew.start(Place(f'p{number}', ('-m', 'benchmarks.chaos.producers', '--calm')))
        yield Haul(server, crew, directory, worker)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.long_haul', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--tasks', type=int, default=200_000, help='(default: 200,000)')
    parser.add_argument('--samples', type=int, default=SAMPLES, help=f'(default: {SAMPLES})')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--check', action='store_true', help='exit 1 if anything is not flat')
    options = parser.parse_args()
    samples, begun = [], time.monotonic()
    with haul() as running:
        for sample in running.run(options.tasks, options.samples):
            samples.append(sample)
            passed = time.monotonic() - begun
            left = passed / len(samples) * (options.samples - len(samples))
            progress(
                f'[{passed:5.0f} s] {sample.tasks:,} tasks: main {sample.main_rss:.1f} MB, pool '
                f'{sample.pool_rss:.1f} MB, server {sample.server_rss:.1f} MB; '
                f'about {left:.0f} s left'
            )
    found = rows(samples)
    if options.json:
        print(json.dumps({'samples': [asdict(one) for one in samples],
                          'rows': [asdict(one) for one in found]}))  # fmt: skip
    else:
        print(table(found))
    if options.check and not all(row.flat for row in found):
        sys.exit('not flat: ' + ', '.join(row.name for row in found if not row.flat))


if __name__ == '__main__':
    main()
