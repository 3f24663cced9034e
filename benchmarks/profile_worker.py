"""Where the time goes: profiles of a draining worker and of a publisher, and script times.

    python -m benchmarks.profile_worker [--tasks 5000] [--top 25] [--only reliable]

Prints for kombu's redis transport and for ours the functions of the worker's main process
during a drain and of a loop of ``delay()``, by own time and by cumulative time, and for ours the
microseconds in Redis of each script.  A profiler makes small functions look dearer than they
are: compare, and measure again without it (``python -m benchmarks.worker``).
"""

from __future__ import annotations

import argparse
import pstats
import statistics
from pathlib import Path
from typing import Any

from benchmarks.contenders import OURS, Contender, contenders
from benchmarks.harness import Bench, progress
from benchmarks.measures import Sizes, drain
from benchmarks.publisher import WARM_UP
from kombu_reliable.scripts import all_scripts

#: Microseconds; see :func:`script_times`.
ABOVE_COMMANDS = 12


def show(title: str, profile: Path, tasks: int, top: int) -> None:
    print(f'\n===== {title}: {tasks} tasks')
    for order in ('tottime', 'cumulative'):
        print(f'--- by {order}')
        pstats.Stats(str(profile)).sort_stats(order).print_stats(top)


def script_times(bench: Bench, contender: Contender, tasks: int) -> None:
    """The slow log knows the time of each call and the script it ran; nothing else does.

    Some servers log the commands inside a script as well, which would lengthen the script:
    the threshold lies above them and below any script.
    """
    with bench.client() as client:
        client.config_set('slowlog-max-len', 10 * tasks)
        client.slowlog_reset()
        client.config_set('slowlog-log-slower-than', ABOVE_COMMANDS)
        drain(bench, contender, Sizes(drain=tasks))
        client.config_set('slowlog-log-slower-than', -1)
        entries: Any = client.slowlog_get(-1)
        client.slowlog_reset()
    done = tasks + WARM_UP
    names = {script.sha: script.name for script in all_scripts()}
    spent: dict[str, list[int]] = {}
    for entry in entries:
        words = entry['command'].decode(errors='replace').split(' ')
        if words[0] == 'EVALSHA' and words[1] in names:
            spent.setdefault(names[words[1]], []).append(entry['duration'])
    print(f'\n===== {contender.name}: microseconds in the server, {done} published and drained')
    print(
        f'{"script":<10}{"calls":>7}{"calls/task":>12}{"mean us":>9}{"median us":>11}{"us/task":>9}'
    )
    for name, times in sorted(spent.items(), key=lambda pair: -sum(pair[1])):
        calls, total = len(times), sum(times)
        print(
            f'{name:<10}{calls:>7}{calls / done:>12.2f}{total / calls:>9.1f}'
            f'{statistics.median(times):>11.1f}{total / done:>9.2f}'
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--tasks', type=int, default=5_000, help='(default: 5000)')
    parser.add_argument('--top', type=int, default=25, help='functions to list (default: 25)')
    parser.add_argument('--only', help=f'one contender, for example {OURS!r}')
    parser.add_argument('--server', choices=('valkey', 'redis'), default='valkey')
    options = parser.parse_args()
    with Bench.start(options.server) as bench:
        for contender in contenders(bench.server.port, []):
            if options.only not in (None, contender.name):
                continue
            progress(f'{contender.name}: drain')
            profile = bench.unique('drain.prof')
            drain(bench, contender, Sizes(drain=options.tasks), profile=profile)
            show(
                f'{contender.name}: worker, main process, drain',
                profile,
                options.tasks,
                options.top,
            )
            progress(f'{contender.name}: publish')
            profile = bench.unique('publish.prof')
            bench.empty(contender)
            bench.publish(contender, 'delay', options.tasks, profile)
            show(f'{contender.name}: delay()', profile, options.tasks, options.top)
            if contender.name == OURS:
                progress(f'{contender.name}: scripts')
                script_times(bench, contender, options.tasks)


if __name__ == '__main__':
    main()
