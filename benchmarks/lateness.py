"""How late delayed tasks start on an idle worker.

    python -m benchmarks.lateness [--tasks 200] [--url reliable+redis://...] [--check]

Starts a Celery worker (prefork) in a process of its own, on an embedded server unless told
otherwise, publishes tasks that are due one by one, and lets each task note when it began.
``--check`` ends with an error if the 99th percentile is beyond the promise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import Celery

#: The promise, in milliseconds.
BAR = 5.0

NOTES = os.environ.get('LATENESS_NOTES', '')
app = Celery('lateness', broker=os.environ.get('LATENESS_URL', 'reliable://'))
app.conf.update(task_acks_late=True, task_ignore_result=True)


# Named, because this module is __main__ here and benchmarks.lateness in the worker.
@app.task(name='lateness.begin')
def begin(due: float) -> None:
    late = time.time() - due
    with open(NOTES, 'a') as notes:
        notes.write(f'{late}\n')


def measure(url: str, count: int, directory: Path) -> list[float]:
    """Returns the lateness of each task in milliseconds, sorted."""
    notes, log = directory / 'notes', directory / 'worker.log'
    environment = {**os.environ, 'LATENESS_URL': url, 'LATENESS_NOTES': str(notes)}
    worker = subprocess.Popen(
        [sys.executable, '-m', 'celery', '-A', 'benchmarks.lateness', 'worker', '-c', '2',
         '--loglevel', 'INFO', '--without-mingle'],
        cwd=Path(__file__).parents[1], env=environment,
        stdout=log.open('wb'), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while b' ready.' not in log.read_bytes():
            if worker.poll() is not None or time.monotonic() > deadline:
                sys.exit(f'the worker did not start:\n{log.read_text()}')
            time.sleep(0.05)
        app.conf.broker_url = url
        rng, now = random.Random(1), datetime.now(UTC)
        for i in range(count):
            due = now + timedelta(seconds=2 + i * 0.02 + rng.random() * 0.01)
            begin.apply_async((due.timestamp(),), eta=due)
        deadline = time.monotonic() + 60 + count * 0.02
        done = 0
        while done < count:
            if time.monotonic() > deadline:
                sys.exit(f'only {done} of {count} tasks began:\n{log.read_text()[-2000:]}')
            time.sleep(0.5)
            done = len(notes.read_text().splitlines()) if notes.exists() else 0
            print(f'\r{done}/{count} tasks', end='', file=sys.stderr, flush=True)
        print(file=sys.stderr)
    finally:
        worker.terminate()
        worker.wait(30)
    return sorted(1000 * float(line) for line in notes.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--tasks', type=int, default=200, help='delayed tasks (default: 200)')
    parser.add_argument('--url', help='broker URL (default: an embedded server of its own)')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--check', action='store_true', help=f'fail if p99 > {BAR:g} ms')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix='lateness-', ignore_cleanup_errors=True) as directory:
        url = options.url or f'reliable+embedded://{directory}/data'
        late = measure(url, options.tasks, Path(directory))
    p99 = statistics.quantiles(late, n=100)[98]
    figures = {'tasks': len(late), 'p50_ms': statistics.median(late), 'p99_ms': p99,
               'max_ms': late[-1], 'early': sum(value < 0 for value in late)}  # fmt: skip
    if options.json:
        print(json.dumps(figures))
    else:
        print('lateness: ' + ', '.join(f'{name} {value:.4g}' for name, value in figures.items()))
    if options.check and (p99 > BAR or figures['early']):
        sys.exit(f'p99 {p99:.1f} ms is beyond {BAR:g} ms, or tasks began early')


if __name__ == '__main__':
    main()
