"""Chaos: workers, producers, the server and the network fail at random while tasks run.

    python -m benchmarks.chaos --seconds 60
    python -m benchmarks.chaos --tasks 200000 --kills 100 --server-kills 5 --check
    python -m benchmarks.chaos --appendfsync everysec
    python -m benchmarks.chaos --peer kombu

Several workers (prefork, one with threads, one whose clock is set again and again, one behind a
proxy) run tasks of many kinds: short ones, ones longer than a lease, with retries, delays,
dependencies, throttles, unique keys, failures, and ones that kill their process.  Meanwhile
workers, single processes, producers and the server are killed or frozen, connections cut, the
server's memory filled.  Producers and tasks write down what they do in plain files, which no
broker ever sees.  From these follows what was lost, repeated, too early or too much at once.

A run that was repeated needs a reason: what befell the worker that had it.  ``--check`` exits
with 1 unless nothing was lost, every repetition has its reason, no dependency, throttle or
unique key was violated, everything drained, and nothing was left in the server.

The seed chooses tasks and troubles.  What becomes of them depends on the machine as well, so the
same seed is never quite the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.chaos.report import plain, table, text
from benchmarks.chaos.settings import KOMBU, Settings
from benchmarks.chaos.storm import Outcome, run
from benchmarks.harness import progress


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.chaos', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add('--seconds', type=float, default=0.0, help='of troubles (default: 60, or as --tasks needs)')
    add('--tasks', type=int, default=0, help='to store before it ends')
    add('--kills', type=int, default=0, help='of workers before it ends')
    add('--server-kills', type=int, default=0, help='of the server before it ends')
    add('--seed', type=int, default=1, help='(default: 1)')
    add('--workers', type=int, default=4, help='(default: 4)')
    add('--producers', type=int, default=2, help='(default: 2)')
    add('--rate', type=float, default=0.0, help='tasks a second (default: as fast as they run)')
    add('--lease', type=float, default=4.0, help='in seconds (default: 4)')
    add('--pace', type=float, default=2.0, help='seconds between troubles (default: 2)')
    add('--appendfsync', choices=('always', 'everysec'), default='always',
        help='how the server writes to its disk (default: always)')  # fmt: skip
    add('--server', choices=('valkey', 'redis'), default='valkey')
    add('--peer', choices=('kombu',), help="also kombu's redis transport, for comparison")
    add('--keep', type=Path, metavar='DIR', help='keep the ledger and the logs there')
    add('--json', action='store_true', help='print one JSON object')
    add('--check', action='store_true', help='exit 1 if anything is not as it should be')
    options = parser.parse_args(argv)
    if not (options.seconds or options.tasks or options.kills or options.server_kills):
        options.seconds = 60.0
    return options


def main() -> None:
    options = arguments()
    names = set(Settings.__dataclass_fields__) - {'transport'}
    settings = Settings(**{name: getattr(options, name) for name in names})
    outcomes = [_run(settings, options.keep)]
    if options.peer:
        progress("the same with kombu's redis transport")
        outcomes.append(_run(replace(settings, transport=KOMBU), options.keep))
    ours = outcomes[0]
    if options.json:
        print(json.dumps([plain(one) for one in outcomes]))
    else:
        print(table(outcomes))
        for one in outcomes:
            print(f'\n{one.settings.transport}:\n{text(one)}')
    if options.check and not ours.good:
        bad = ', '.join(f'{count} {what}' for what, count in ours.faults.items() if count)
        sys.exit(f'not as it should be: {bad}')


def _run(settings: Settings, keep: Path | None) -> Outcome:
    with ExitStack() as stack:
        if keep is None:
            made = tempfile.TemporaryDirectory(prefix='chaos-', dir='/tmp')
            directory = Path(stack.enter_context(made))
        else:
            directory = keep / settings.transport
            directory.mkdir(parents=True)
        return run(settings, directory, progress)


if __name__ == '__main__':
    main()
