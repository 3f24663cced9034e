"""What it costs to track every task and to give it two tags.

    python -m benchmarks.tracked             seven pairs, about three minutes
    python -m benchmarks.tracked --quick     does it run? (no figures to trust)
    python -m benchmarks.tracked --check     exit 1 if the bar is missed

A worker with the extension (prefork, two processes, acks late) works off a full queue of tasks
that do nothing: of plain ones, and of ones that are tracked, have two tags, and are kept when they
have completed, as such tasks are.  The cost is the CPU time per task of the worker, its pool and
the server together, publishing included as far as the server is concerned.  Both members of a
pair run at the same time, each on a server of its own; the bar is the median of the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.contenders import OURS, contenders
from benchmarks.harness import Bench, progress
from benchmarks.measures import QUICK, Sizes, drain

__all__ = ('BAR', 'measure')

#: The largest median of the ratios.
BAR = 1.30

PARTS = ('main_cpu', 'pool_cpu', 'server_cpu')
SIZES = Sizes(drain=8_000)


def cost(bench: Bench, marked: bool, sizes: Sizes) -> float:
    """CPU time per task, in microseconds."""
    [ours] = (one for one in contenders(bench.server.port, []) if one.name == OURS)
    name = 'tracked' if marked else 'plain'
    figures = drain(bench, replace(ours, name=name, extension=True, marked=marked), sizes)
    parts = ', '.join(f'{part} {figures[part]:.0f}' for part in PARTS)
    progress(f'  {name:<8} {parts}')
    return sum(figures[part] for part in PARTS)


def measure(
    benches: tuple[Bench, Bench], pairs: int, sizes: Sizes = SIZES
) -> list[tuple[float, float]]:
    """Cost of plain and of tracked tasks, pair by pair; they take turns on the servers."""
    found = []
    with ThreadPoolExecutor(2) as both:
        for number in range(pairs):
            one, other = benches if number % 2 == 0 else reversed(benches)
            plain = both.submit(cost, one, False, sizes)
            tracked = both.submit(cost, other, True, sizes)
            found.append((plain.result(), tracked.result()))
            progress(f'pair {number + 1}/{pairs}: {found[-1][1] / found[-1][0]:.3f}')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.tracked', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--check', action='store_true', help=f'exit 1 above {BAR}')
    parser.add_argument('--quick', action='store_true', help='few tasks, one pair, no bar')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--pairs', type=int, metavar='N', help='(default: 7; --quick: 1)')
    parser.add_argument('--server', choices=('valkey', 'redis'), default='valkey')
    options = parser.parse_args()
    if options.check and options.quick:
        parser.error('--quick measures too little for --check')
    pairs = options.pairs or (1 if options.quick else 7)
    with Bench.start(options.server) as one, Bench.start(options.server) as other:
        found = measure((one, other), pairs, QUICK if options.quick else SIZES)
    ratio = statistics.median(tracked / plain for plain, tracked in found)
    if options.json:
        print(json.dumps({'pairs': found, 'ratio': ratio, 'bar': BAR}))
    else:
        plain, tracked = (statistics.median(side) for side in zip(*found, strict=True))
        print(f'CPU time per task, median of {pairs}: {plain:.0f} us plain, {tracked:.0f} us '
              f'tracked and with two tags; median of the ratios {ratio:.3f}')  # fmt: skip
    if options.check and ratio > BAR:
        sys.exit(f'{ratio:.3f} is above {BAR}')


if __name__ == '__main__':
    main()
