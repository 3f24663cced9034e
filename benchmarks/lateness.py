"""How late delayed tasks start on an idle worker.

    python -m benchmarks.lateness [--tasks 200] [--check]

One part of ``benchmarks.worker``, by itself: a server and a Celery worker (prefork) of its own,
and tasks that are due one by one and tell when they began.  ``--check`` ends with an error if
the 99th percentile is beyond the promise, or if a task began early.
"""

from __future__ import annotations

import argparse
import json
import sys

from benchmarks.contenders import OURS, contenders
from benchmarks.harness import Bench
from benchmarks.measures import Sizes, lateness
from benchmarks.report import BARS

#: The promise, in milliseconds.
BAR = next(bar.limit for bar in BARS if bar.figure == 'lateness_p99')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tasks', type=int, default=200, help='delayed tasks (default: 200)')
    parser.add_argument('--server', choices=('valkey', 'redis'), default='valkey')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--check', action='store_true', help=f'fail if p99 > {BAR:g} ms')
    options = parser.parse_args()
    with Bench.start(options.server) as bench:
        ours = next(one for one in contenders(bench.server.port, []) if one.name == OURS)
        figures = lateness(bench, ours, Sizes(delayed=options.tasks))
    if options.json:
        print(json.dumps(figures))
    else:
        print(', '.join(f'{name} {value:.4g} ms' for name, value in figures.items()))
    if options.check and (figures['lateness_p99'] > BAR or figures['lateness_min'] < 0):
        sys.exit(f'p99 is beyond {BAR:g} ms, or tasks began early')


if __name__ == '__main__':
    main()
