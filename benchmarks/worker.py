"""Speed of Celery on this transport beside kombu's own redis transport.

    python -m benchmarks.worker                          everything, about ten minutes
    python -m benchmarks.worker --quick                  does it run? (no figures to trust)
    python -m benchmarks.worker --only drain,publish     a part
    python -m benchmarks.worker --check                  exit 1 if a bar is missed
    python -m benchmarks.worker --peer redis-plus --peer rabbitmq

It starts a server of its own and measures the transports in turn, round after round.  The table
shows the median of the rounds, in brackets the smallest and the largest.  A ratio compares values
of the same round: what else loads the machine loads both.  Trust ratios more than absolute
figures, and CPU time more than rates, on a machine that is not idle.

What is measured:

  publish   delay() of a task with three arguments in a loop: rate, and CPU of the publisher;
            a publisher each, in turn, 100 tasks at a time
  batch     1,000 Producer.publish without Celery: one by one, and in one Producer.batch()
  drain     a worker (prefork, two processes, acks late, prefetch 4, results ignored, no
            heartbeat, gossip, mingle) works off a full queue of tasks that do nothing: rate,
            CPU of its main process, CPU of the server for the publish and for the drain
  latency   idle worker, one task at a time: from just before the call to the task's first line
  lateness  idle worker, 200 tasks due one by one: how late each begins
  bytes     growth of used_memory by 20,000 waiting tasks
  commands  commands per task on the wire, as MONITOR shows them; not those inside scripts
  idle      commands per second of a worker without work during 30 s

bytes, commands and idle do not depend on load and are measured in the first round only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator

from benchmarks.contenders import PEERS, Contender, Missing, contenders
from benchmarks.harness import Bench, progress
from benchmarks.measures import MEASURES, ONCE, QUICK, TOGETHER, Figures, Sizes
from benchmarks.report import BARS, Results, table, verdicts

NAMES = (*TOGETHER, *MEASURES)


def measure(
    bench: Bench, entrants: list[Contender], chosen: list[str], rounds: int, sizes: Sizes
) -> Results:
    """Runs the rounds; each begins with another contender."""
    results: dict[str, dict[str, list[float]]] = {one.name: {} for one in entrants}
    begun = time.monotonic()
    for number in range(rounds):
        first = number % len(entrants)
        order = entrants[first:] + entrants[:first]
        for name in chosen:
            if number and name in ONCE:
                continue
            for contender, figures in _measured(name, bench, order, sizes):
                for figure, value in figures.items():
                    results[contender.name].setdefault(figure, []).append(value)
                shown = ', '.join(f'{figure} {value:.4g}' for figure, value in figures.items())
                progress(
                    f'[{time.monotonic() - begun:4.0f} s] round {number + 1}/{rounds} '
                    f'{name:<9}{contender.name:<12} {shown or "n/a"}'
                )
    return results


def _measured(
    name: str, bench: Bench, order: list[Contender], sizes: Sizes
) -> Iterator[tuple[Contender, Figures]]:
    if name in TOGETHER:
        yield from TOGETHER[name](bench, order, sizes)
    else:
        for contender in order:
            yield contender, MEASURES[name](bench, contender, sizes)


def _names(text: str) -> list[str]:
    names = text.split(',')
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise argparse.ArgumentTypeError(f'{", ".join(unknown)}: choose from {", ".join(NAMES)}')
    return names


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.worker', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='bars of --check:\n' + '\n'.join(f'  {bar.text}' for bar in BARS),
    )  # fmt: skip
    parser.add_argument('--check', action='store_true', help='exit 1 if a bar is missed')
    parser.add_argument('--quick', action='store_true', help='few tasks, one round, no bars')
    parser.add_argument('--json', action='store_true', help='print one JSON object, no table')
    parser.add_argument('--only', type=_names, metavar='NAME,...', help=', '.join(NAMES))
    parser.add_argument('--rounds', type=int, metavar='N', help='(default: 5; --quick: 1)')
    parser.add_argument('--server', choices=('valkey', 'redis'), default='valkey')
    parser.add_argument('--peer', choices=tuple(PEERS), action='append', default=[],
                        help='another transport to compare with; may be repeated')  # fmt: skip
    options = parser.parse_args(argv)
    if options.check and options.quick:
        parser.error('--quick measures too little for --check')
    if options.check and options.only:
        progress('--check with --only: bars of what was not measured are skipped')
    return options


def main() -> None:
    options = arguments()
    rounds = options.rounds or (1 if options.quick else 5)
    with Bench.start(options.server) as bench:
        try:
            entrants = contenders(bench.server.port, options.peer)
        except Missing as error:
            sys.exit(str(error))
        chosen = options.only or list(NAMES)
        results = measure(bench, entrants, chosen, rounds, QUICK if options.quick else Sizes())
    found = verdicts(results)
    if options.only:
        found = [verdict for verdict in found if verdict[1] is not None]
    if options.json:
        bars = [{'bar': bar, 'value': value, 'cleared': ok} for bar, value, ok in found]
        print(json.dumps({'rounds': rounds, 'figures': results, 'bars': bars}))
    else:
        print(table(results))
    if not options.check:
        return
    missed = 0
    for bar, value, cleared in found:
        missed += not cleared
        measured = 'not measured' if value is None else f'{value:.3g}'
        progress(f'{"ok    " if cleared else "MISSED"}  {bar}: {measured}')
    if missed:
        sys.exit(f'{missed} of {len(found)} bars missed')


if __name__ == '__main__':
    main()
