"""The measurements: each takes a contender and returns figures by name."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.contenders import Contender
from benchmarks.harness import QUIET, Bench, PublisherInTurns, RunningWorker, Wire, percentile
from tests.support.servers import Server

__all__ = ('MEASURES', 'ONCE', 'QUICK', 'TOGETHER', 'Figures', 'Sizes', 'drain', 'lateness')

Figures = dict[str, float]

#: The share of a drain that is not measured: pools and caches are cold.
COLD = 0.05
STALLED = 60.0

#: Publishes in one turn.
BLOCK = 100


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    drain: int = 4_000
    publish: int = 12_000
    batch: int = 1_000
    queued: int = 20_000
    latency: int = 300
    delayed: int = 200
    counted: int = 2_000
    idle: float = 30.0
    settling: float = 5.0


QUICK = Sizes(300, 300, 200, 1_000, 30, 30, 200, 3.0, 1.0)


def publish(
    bench: Bench, entrants: list[Contender], sizes: Sizes
) -> Iterator[tuple[Contender, Figures]]:
    """``delay()`` in a loop, in short blocks in turn: what else loads the machine for a moment
    loads all."""
    for contender in entrants:
        bench.empty(contender)
    with ExitStack() as stack:
        publishers = [
            (one, stack.enter_context(PublisherInTurns(bench, one, BLOCK))) for one in entrants
        ]
        for number in range(sizes.publish // BLOCK):
            first = number % len(publishers)
            for contender, publisher in publishers[first:] + publishers[:first]:
                cost = publisher.publish()
                yield (
                    contender,
                    {
                        'publish_rate': BLOCK / cost['wall'],
                        'publish_cpu': 1e6 * cost['cpu'] / BLOCK,
                    },
                )
    for contender in entrants:
        bench.empty(contender)


def batch(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """``Producer.publish`` without Celery, one by one and in one ``Producer.batch()``."""
    figures = {}
    for how in ('single', 'batch'):
        bench.empty(contender)
        cost = bench.publish(contender, how, sizes.batch)
        if how == 'single' or cost['batch']:
            figures[f'{how}_rate'] = sizes.batch / cost['wall']
            figures[f'{how}_cpu'] = 1e6 * cost['cpu'] / sizes.batch
    bench.empty(contender)
    return figures


@dataclass(frozen=True)
class _Moment:
    at: float
    left: int
    worker: float
    pool: float
    server: float


def _watch(look: Callable[[], _Moment], total: int) -> tuple[_Moment, _Moment]:
    """The moment at which the drain is warm, and that at which nothing waits any more."""
    begin = end = look()
    changed = time.monotonic()
    while end.left:
        # Samples are rare enough to cost nothing, and frequent enough for one percent.
        time.sleep(0.02)
        now = look()
        if begin.left > total * (1 - COLD):
            begin = now
        if now.left < end.left:
            changed = time.monotonic()
        elif time.monotonic() - changed > STALLED:
            raise TimeoutError(f'the worker stopped with {now.left} tasks left')
        end = now
    return begin, end


def drain(bench: Bench, contender: Contender, sizes: Sizes, profile: Path | None = None) -> Figures:
    """A worker works off a full queue; costs are taken from samples while it runs."""
    bench.empty(contender)
    with bench.client() as client, bench.size(contender) as size:
        before = bench.server_cpu(client)
        cost = bench.publish(contender, 'delay', sizes.drain)
        published = sizes.drain + cost['extra']
        filling = (bench.server_cpu(client) - before) / published
        worker = RunningWorker(bench, contender, *QUIET, profile=profile)

        def look() -> _Moment:
            at, left, server = time.perf_counter(), size(), bench.server_cpu(client)
            return _Moment(at, left, worker.cpu(), worker.pool_cpu(), server)

        with worker:
            try:
                begin, end = _watch(look, published)
                time.sleep(0.5)  # a worker that is stopped gives back what it has not begun
            except TimeoutError as error:
                sys.exit(f'{contender.name}: {error}:\n{worker.log.read_text()[-3000:]}')
        if size():
            sys.exit(f'{contender.name}: {size()} tasks came back after the drain')
    done = max(1, begin.left - end.left)
    figures = {
        'drain_rate': done / (end.at - begin.at),
        'main_cpu': 1e6 * (end.worker - begin.worker) / done,
        'pool_cpu': 1e6 * (end.pool - begin.pool) / done,
    }
    if contender.on_redis:
        draining = (end.server - begin.server) / done
        figures['server_publish_cpu'] = 1e6 * filling
        figures['server_drain_cpu'] = 1e6 * draining
        figures['server_cpu'] = 1e6 * (filling + draining)
    return figures


@contextmanager
def _sender(contender: Contender) -> Iterator[Callable[..., Any]]:
    """``apply_async`` of the task that tells when it began, in this process."""
    app = Celery('sender', broker=contender.url, set_as_current=False)
    app.conf.update(task_ignore_result=True, broker_transport_options=contender.options)
    with app.connection_for_write() as connection, app.amqp.Producer(connection) as producer:

        def send(expected: float, **options: Any) -> None:
            app.send_task('shop.orders.remind', (expected,), producer=producer, **options)

        yield send


def latency(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """From just before the call to the start of the task, one at a time on an idle worker."""
    bench.empty(contender)
    rng, late = random.Random(1), []
    with RunningWorker(bench, contender, *QUIET) as worker, _sender(contender) as send:
        for number in range(-20, sizes.latency):
            send(time.time())
            begun = worker.inbox.receive(30)
            if number >= 0:
                late.append(1000 * begun['late'])
            time.sleep(rng.uniform(0.005, 0.015))  # it is idle again, and in no fixed rhythm
    return {'latency_p50': percentile(late, 50), 'latency_p99': percentile(late, 99)}


def lateness(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """How late tasks with an ``eta`` begin, due one by one on an idle worker."""
    bench.empty(contender)
    rng, late = random.Random(1), []
    with RunningWorker(bench, contender, *QUIET) as worker, _sender(contender) as send:
        first = datetime.now(UTC) + timedelta(seconds=2)
        for number in range(sizes.delayed):
            due = first + timedelta(seconds=0.02 * number + rng.uniform(0, 0.01))
            send(due.timestamp(), eta=due)
        for _ in range(sizes.delayed):
            late.append(1000 * worker.inbox.receive(60)['late'])
    return {
        'lateness_p50': percentile(late, 50),
        'lateness_p99': percentile(late, 99),
        'lateness_min': min(late),
    }


def size_in_memory(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """What a waiting task adds to the server's memory."""
    if not contender.on_redis:
        return {}
    bench.empty(contender)
    with bench.client() as client:
        others = len(client.client_list())
        before = client.info('memory')['used_memory']
        cost = bench.publish(contender, 'delay', sizes.queued)
        while len(client.client_list()) > others:  # buffers of connections are no tasks
            time.sleep(0.05)
        after = client.info('memory')['used_memory']
    bench.empty(contender)
    return {'bytes': (after - before) / (sizes.queued + cost['extra'])}


def commands(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """Commands over the wire per task, publish and drain, with the few that connecting takes."""
    if not contender.on_redis:
        return {}
    bench.empty(contender)
    with bench.size(contender) as size:
        size()  # connected before the count begins
        with Wire(bench.server) as wire:
            done = sizes.counted + bench.publish(contender, 'delay', sizes.counted)['extra']
            published = wire.count
            with RunningWorker(bench, contender, *QUIET):
                while size():
                    time.sleep(0.02)
        drained = wire.count - published
    return {'publish_commands': published / done, 'drain_commands': drained / done}


def idle(bench: Bench, contender: Contender, sizes: Sizes) -> Figures:
    """Commands a second of a worker without work, each on a server of its own."""
    if not contender.on_redis:
        return {}
    modes = {'idle_quiet': ('--without-heartbeat', '--without-gossip'), 'idle_default': ()}
    with ExitStack() as stack:
        servers = []
        for flags in modes.values():
            server = stack.enter_context(Server(bench.server.binary))
            url = contender.url.replace(f':{bench.server.port}/', f':{server.port}/')
            stack.enter_context(RunningWorker(bench, replace(contender, url=url), *flags))
            servers.append(server)
        time.sleep(sizes.settling)
        wires = [stack.enter_context(Wire(server, everybody=True)) for server in servers]
        time.sleep(sizes.idle)
        counts = [wire.count for wire in wires]
    return {name: count / sizes.idle for name, count in zip(modes, counts, strict=True)}


#: Measured for all contenders at once.
TOGETHER: dict[
    str, Callable[[Bench, list[Contender], Sizes], Iterator[tuple[Contender, Figures]]]
] = {'publish': publish}

#: Measured for one contender after the other.
MEASURES: dict[str, Callable[[Bench, Contender, Sizes], Figures]] = {
    'batch': batch,
    'drain': drain,
    'latency': latency,
    'lateness': lateness,
    'bytes': size_in_memory,
    'commands': commands,
    'idle': idle,
}

#: What does not depend on the load of the machine is measured in the first round only.
ONCE = frozenset({'bytes', 'commands', 'idle'})
