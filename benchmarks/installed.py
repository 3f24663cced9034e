"""What celery_ext costs an app that has installed it and uses nothing of it.  Its workers count.

    python -m benchmarks.installed             seven pairs, about three minutes
    python -m benchmarks.installed --quick     does it run? (no figures to trust)
    python -m benchmarks.installed --check     exit 1 if the bar is missed

A worker (prefork, two processes, acks late) works off a full queue of tasks that do nothing, one
without and one with the extension.  The cost is the CPU time per task of the worker, its pool and
the server together.  Both members of a pair run at the same time, each on a server of its own, so
that what else loads the machine loads both; the bar is the median of the ratios of the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from benchmarks.contenders import OURS, contenders
from benchmarks.harness import Bench, progress
from benchmarks.measures import QUICK, Sizes, drain

__all__ = ('BAR', 'Side', 'compare', 'measure')

#: The largest median of the ratios.
BAR = 1.05

PARTS = ('main_cpu', 'pool_cpu', 'server_drain_cpu')
SIZES = Sizes(drain=8_000)


class Side(NamedTuple):
    """One of the two that are compared."""

    name: str
    extension: bool
    stats: bool = True


SIDES = Side('without', False), Side('installed', True)


def cost(bench: Bench, side: Side, sizes: Sizes) -> float:
    """CPU time per task, in microseconds."""
    [plain] = (one for one in contenders(bench.server.port, []) if one.name == OURS)
    entrant = replace(plain, name=side.name, extension=side.extension, stats=side.stats)
    figures = drain(bench, entrant, sizes)
    parts = ', '.join(f'{part} {figures[part]:.0f}' for part in PARTS)
    progress(f'  {side.name:<10} {parts}')
    return sum(figures[part] for part in PARTS)


def measure(
    benches: tuple[Bench, Bench],
    pairs: int,
    sizes: Sizes = SIZES,
    sides: tuple[Side, Side] = SIDES,
) -> list[tuple[float, float]]:
    """Cost of both sides, pair by pair; they take turns on the servers."""
    found = []
    with ThreadPoolExecutor(2) as both:
        for number in range(pairs):
            one, other = benches if number % 2 == 0 else reversed(benches)
            first = both.submit(cost, one, sides[0], sizes)
            second = both.submit(cost, other, sides[1], sizes)
            found.append((first.result(), second.result()))
            progress(f'pair {number + 1}/{pairs}: {found[-1][1] / found[-1][0]:.3f}')
    return found


def main() -> None:
    compare('installed', __doc__ or '', SIDES, BAR)


def compare(module: str, text: str, sides: tuple[Side, Side], bar: float) -> None:
    """The command line of a benchmark that compares two sides."""
    parser = argparse.ArgumentParser(
        prog=f'python -m benchmarks.{module}', description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument('--check', action='store_true', help=f'exit 1 above {bar}')
    parser.add_argument('--quick', action='store_true', help='few tasks, one pair, no bar')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument('--pairs', type=int, metavar='N', help='(default: 7; --quick: 1)')
    parser.add_argument('--server', choices=('valkey', 'redis'), default='valkey')
    options = parser.parse_args()
    if options.check and options.quick:
        parser.error('--quick measures too little for --check')
    pairs = options.pairs or (1 if options.quick else 7)
    with Bench.start(options.server) as one, Bench.start(options.server) as other:
        found = measure((one, other), pairs, QUICK if options.quick else SIZES, sides)
    ratio = statistics.median(second / first for first, second in found)
    if options.json:
        print(json.dumps({'pairs': found, 'ratio': ratio, 'bar': bar}))
    else:
        medians = (statistics.median(costs) for costs in zip(*found, strict=True))
        told = ', '.join(
            f'{side.name} {cost:.0f} us' for side, cost in zip(sides, medians, strict=True)
        )
        print(f'CPU time per task, median of {pairs}: {told}; median of the ratios {ratio:.3f}')
    if options.check and ratio > bar:
        sys.exit(f'{ratio:.3f} is above {bar}')


if __name__ == '__main__':
    main()
