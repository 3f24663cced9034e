"""The measurements: each takes a contender and returns figures by name."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.harness import QUIET, Bench, RunningWorker

__all__ = ('Sizes', 'drain', 'publish')

Figures = dict[str, float]

#: The share of a drain that is not measured: pools and caches are cold.
COLD = 0.05
STALLED = 60.0


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    drain: int = 5_000
    publish: int = 5_000
    batch: int = 1_000
    queued: int = 20_000
    latency: int = 300
    delayed: int = 200
    counted: int = 400
    idle: float = 30.0


def publish(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """``delay()`` in a loop."""
    bench.empty(contender)
    cost = bench.publish(contender, 'delay', sizes.publish)
    bench.empty(contender)
    return {
        'publish_rate': sizes.publish / cost['wall'],
        'publish_cpu': 1e6 * cost['cpu'] / sizes.publish,
    }


@dataclass(frozen=True)
class _Moment:
    at: float
    left: int
    worker: float
    server: float


def drain(bench: Bench, contender: Contender, sizes: Sizes, profile: Path | None = None) -> Figures:
    """A worker works off a full queue; costs are taken from samples while it runs."""
    bench.empty(contender)
    with bench.client() as client, bench.size(contender) as size:
        before = bench.server_cpu(client)
        cost = bench.publish(contender, 'delay', sizes.drain)
        published = sizes.drain + cost['extra']
        filling = bench.server_cpu(client) - before
        started = RunningWorker(bench, contender, *QUIET, profile=profile)

        def look() -> _Moment:
            return _Moment(time.perf_counter(), size(), started.cpu(), bench.server_cpu(client))

        with started as worker:
            # Samples are rare enough to cost nothing, and frequent enough for one percent.
            begin = end = look()
            changed = time.monotonic()
            while end.left:
                time.sleep(0.02)
                now = look()
                if begin.left > published * (1 - COLD):
                    begin = now
                if now.left < end.left:
                    changed = time.monotonic()
                elif time.monotonic() - changed > STALLED:
                    sys.exit(f'the worker stopped at {now.left}:\n{worker.log.read_text()[-3000:]}')
                end = now
        if size():
            sys.exit(f'{contender.name}: {size()} tasks came back after the drain')
    done = begin.left - end.left
    figures = {
        'drain_rate': done / (end.at - begin.at),
        'main_cpu': 1e6 * (end.worker - begin.worker) / done,
    }
    if contender.on_redis:
        draining = (end.server - begin.server) / done
        figures['server_cpu'] = 1e6 * (filling / published + draining)
    return figures
