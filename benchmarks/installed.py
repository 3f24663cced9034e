"""What celery_ext costs an app that has installed it and uses nothing of it.

    python -m benchmarks.installed             seven pairs, about three minutes
    python -m benchmarks.installed --quick     does it run? (no figures to trust)
    python -m benchmarks.installed --check     exit 1 if the bar is missed

It starts a server of its own and lets a worker (prefork, two processes, acks late) work off a full
queue of tasks that do nothing, in turn without and with the extension.  The cost is the CPU time
per task of the worker, its pool and the server together.  The bar is the median of the ratios of
the pairs: what else loads the machine loads both members of a pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace

from benchmarks.contenders import OURS, Contender, contenders
from benchmarks.harness import Bench, progress
from benchmarks.measures import QUICK, Sizes, drain

__all__ = ('BAR', 'measure')

#: The largest median of the ratios.
BAR = 1.05

PARTS = ('main_cpu', 'pool_cpu', 'server_drain_cpu')


def cost(bench: Bench, contender: Contender, sizes: Sizes) -> float:
    """CPU time per task, in microseconds."""
    figures = drain(bench, contender, sizes)
    parts = ', '.join(f'{name} {figures[name]:.0f}' for name in PARTS)
    progress(f'  {contender.name:<10} {parts}, {figures["drain_rate"]:.0f} tasks/s')
    return sum(figures[name] for name in PARTS)


def measure(bench: Bench, pairs: int, sizes: Sizes) -> list[tuple[float, float]]:
    """Cost without and with the extension, pair by pair; each begins with the other one."""
    [plain] = (one for one in contenders(bench.server.port, []) if one.name == OURS)
    plain = replace(plain, name='without')
    installed = replace(plain, name='installed', extension=True)
    found = []
    for number in range(pairs):
        turns = (plain, installed) if number % 2 == 0 else (installed, plain)
        costs = {one.name: cost(bench, one, sizes) for one in turns}
        found.append((costs['without'], costs['installed']))
        progress(f'pair {number + 1}/{pairs}: {found[-1][1] / found[-1][0]:.3f}')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.installed', description=__doc__,
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
    with Bench.start(options.server) as bench:
        found = measure(bench, pairs, QUICK if options.quick else Sizes(drain=8_000))
    ratio = statistics.median(installed / plain for plain, installed in found)
    if options.json:
        print(json.dumps({'pairs': found, 'ratio': ratio, 'bar': BAR}))
    else:
        plain, installed = (statistics.median(side) for side in zip(*found, strict=True))
        print(f'CPU time per task, median of {pairs}: {plain:.0f} us without, {installed:.0f} us '
              f'with celery_ext; median of the ratios {ratio:.3f}')  # fmt: skip
    if options.check and ratio > BAR:
        sys.exit(f'{ratio:.3f} is above {BAR}')


if __name__ == '__main__':
    main()
