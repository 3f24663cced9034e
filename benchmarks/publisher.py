"""Publishes in a process of its own, and prints what it cost as one JSON object.

    python -m benchmarks.publisher delay|single|batch|turns COUNT [--profile FILE]

``delay`` calls Celery's ``delay()``, ``single`` and ``batch`` kombu's ``Producer.publish``
without Celery.  ``turns`` calls ``delay()`` COUNT times for each line that it reads, and prints an
object for each: several publishers can then be measured in turn.  The broker comes from the
environment, see :mod:`benchmarks.harness`.  A process of its own, because whatever ran before in
it would count.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

from kombu import Connection, Producer, Queue

from benchmarks.app import confirm_one

#: Publishes before the clock starts: connections, caches, scripts.
WARM_UP = 100

#: Runs without Celery are short.
RUNS = 5

QUEUE = 'celery'
BODY = {'order': 480_000, 'customer': 'jane.doe@example.com', 'notify': True}


def delay(count: int) -> None:
    for number in range(count):
        confirm_one(number)


def single(count: int, producer: Producer) -> None:
    for number in range(count):
        producer.publish(BODY | {'order': number}, routing_key=QUEUE)


def batch(count: int, producer: Producer) -> None:
    with producer.batch(max_size=count):
        single(count, producer)


def timed(work: Callable[[int], None], count: int) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work(count)
    return time.perf_counter() - wall, time.process_time() - cpu


def without_celery(how: str, count: int) -> tuple[float, float, bool]:
    """The medians of a few runs, and whether the transport knows batches at all."""
    options = json.loads(os.environ['BENCH_OPTIONS'])
    with Connection(os.environ['BENCH_BROKER'], transport_options=options) as connection:
        producer = connection.Producer()
        Queue(QUEUE)(connection.default_channel).declare()
        work = {'single': single, 'batch': batch}[how]
        single(WARM_UP, producer)
        runs = [timed(lambda count: work(count, producer), count) for _ in range(RUNS)]
        walls, cpus = zip(*runs, strict=True)
        supported = bool(getattr(producer, 'supports_batch_publish', False))
        return statistics.median(walls), statistics.median(cpus), supported


def turns(count: int) -> None:
    """Publishes whenever it is told to."""
    report(0, 0)
    for _ in sys.stdin:
        report(*timed(delay, count))


def report(wall: float, cpu: float, batch: bool = False) -> None:
    print(json.dumps({'wall': wall, 'cpu': cpu, 'batch': batch, 'extra': WARM_UP}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('how', choices=('delay', 'single', 'batch', 'turns'))
    parser.add_argument('count', type=int)
    parser.add_argument('--profile')
    options = parser.parse_args()
    if options.how in ('single', 'batch'):
        report(*without_celery(options.how, options.count))
        return
    delay(WARM_UP)
    if options.how == 'turns':
        turns(options.count)
    elif options.profile:
        with cProfile.Profile() as profiler:
            cost = timed(delay, options.count)
        profiler.dump_stats(options.profile)
        report(*cost)
    else:
        report(*timed(delay, options.count))


if __name__ == '__main__':
    main()
