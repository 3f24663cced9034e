"""What a script costs when a queue is long.

    python -m benchmarks.scale                    a million queued, a million delayed: minutes
    python -m benchmarks.scale --size 100000      less memory (a million takes about 0.7 GB)
    python -m benchmarks.scale --check            exit 1 if the length of a queue costs too much

It measures publish, claim and settle on three queues: ``small``, a thousand tasks alone on a
server; ``large``, a million on another server; ``control``, a thousand on that same server.
``large / control`` is what the length of the queue costs, and what the bar is about.
``large / small`` has in it, besides, that a server with more memory in use misses its caches more
often, whatever one asks it: a short queue beside a long one pays for that as well.

Times are those that the server takes for a call of the script (INFO commandstats), neither the
network nor the client.  A repetition publishes 200 tasks one by one, claims them four at a time
and settles them four at a time, on each queue in turn; shown is the median of the repetitions,
each the mean of its calls.  Delayed tasks are published 20 ms ahead, so that claims promote them.
"""

from __future__ import annotations

import argparse
import json
import secrets
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from operator import truediv
from typing import Any

from kombu.serialization import dumps

from benchmarks.app import app
from benchmarks.harness import progress
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.operations import PUBLISH_LIMIT
from kombu_reliable.transport.messages import outgoing
from kombu_reliable.types import Delivery, Outgoing, Settlement, Verdict
from tests.support.servers import Server

BAR = 1.5
SMALL = 1_000
#: What a repetition publishes, and what a claim takes: the prefetch of a worker with two processes.
TASKS, CREDIT = 200, 4
#: Published in one round trip while a queue is filled.
CALLS = 20
AHEAD = 0.02
SCRIPTS = ('publish', 'claim', 'settle')


def typical_message(number: int) -> Outgoing:
    """What Celery publishes for an ordinary task."""
    task = app.amqp.as_task_v2(
        f'{secrets.token_hex(4)}-aaaa-4aaa-8aaa-{secrets.token_hex(6)}',
        'shop.orders.confirm', (480_000 + number, 'jane.doe@example.com'), {'notify': True},
    )  # fmt: skip
    content_type, content_encoding, body = dumps(task.body, 'json')
    message = {
        'body': body, 'content-type': content_type, 'content-encoding': content_encoding,
        'headers': task.headers,
        'properties': {**task.properties, 'delivery_mode': 2, 'priority': 0},
    }  # fmt: skip
    return outgoing(message, 'celery', '', 'celery', Options())


@dataclass
class Filler:
    """Publishes many messages quickly: typical ones, each under an id of its own."""

    store: Store
    queue: str
    delayed: bool
    lane: str = ''
    sent: int = 0

    def messages(self, count: int) -> Iterator[Outgoing]:
        models = [typical_message(n)._replace(queue=self.queue) for n in range(PUBLISH_LIMIT)]
        for number in range(count):
            due = f'+{3_600_000 + number}' if self.delayed else '0'
            model = models[number % len(models)]
            yield model._replace(id=secrets.token_urlsafe(16), due=due)

    def fill(self, count: int) -> None:
        self.lane = secrets.token_urlsafe(9)
        source = self.messages(count)
        begun, shown = time.monotonic(), 0.0
        publish = self.store.operations.publish
        while self.sent < count:
            calls = []
            for _ in range(CALLS):
                size = min(PUBLISH_LIMIT, count - self.sent)
                if size:
                    some = [next(source) for _ in range(size)]
                    calls.append(publish(self.lane, self.sent + 1, some))
                    self.sent += size
            self.store.run_all(calls)
            if count > SMALL and time.monotonic() - shown > 5:
                shown = time.monotonic()
                progress(f'  filling: {self.sent:,} of {count:,} in {shown - begun:.0f} s')
        if count > SMALL:
            took = time.monotonic() - begun
            progress(f'  filled: {count:,} in {took:.1f} s, {count / took:,.0f} a second')


@dataclass
class Probe:
    """Measures the scripts on one queue."""

    store: Store
    queue: str
    delayed: bool

    def _spent(self) -> float:
        """Microseconds per call since the last reset."""
        stats: Any = self.store.client.info('commandstats')
        return float(stats['cmdstat_evalsha']['usec_per_call'])

    def _reset(self) -> None:
        self.store.client.config_resetstat()

    def repetition(self) -> dict[str, float]:
        store, lane = self.store, secrets.token_urlsafe(9)
        operations = store.operations
        due = f'+{AHEAD * 1000:.0f}' if self.delayed else '0'
        models = [typical_message(n)._replace(queue=self.queue, due=due) for n in range(TASKS)]
        figures = {}
        self._reset()
        for number, message in enumerate(models, 1):
            store.run(operations.publish(lane, number, [message]))
        figures['publish'] = self._spent()
        if self.delayed:
            time.sleep(2 * AHEAD)
        claimed: list[list[Delivery]] = []
        self._reset()
        while sum(map(len, claimed)) < TASKS:
            token = secrets.token_urlsafe(9)
            got = store.run(operations.claim('probe', token, CREDIT, [self.queue])).deliveries
            if not got:
                sys.exit(f'{self.queue}: tasks are missing')
            claimed.append(list(got))
        figures['claim'] = self._spent()
        self._reset()
        for some in claimed:
            store.run(
                operations.settle(
                    [Settlement(Verdict.ACK, one.queue, one.id, one.token) for one in some]
                )
            )
        figures['settle'] = self._spent()
        return figures


@dataclass(frozen=True)
class Row:
    """Microseconds per call of one script, and the ratios."""

    kind: str
    script: str
    small: float
    large: float
    control: float
    #: large / small and large / control
    ratio: float
    structure: float

    @classmethod
    def of(cls, kind: str, script: str, taken: dict[str, list[float]]) -> Row:
        """Ratios are taken repetition by repetition: what loads the machine loads all three."""
        large = taken['large']
        return cls(
            kind,
            script,
            **{name: statistics.median(values) for name, values in taken.items()},
            ratio=statistics.median(map(truediv, large, taken['small'])),
            structure=statistics.median(map(truediv, large, taken['control'])),
        )


def measure(kind: str, size: int, repeat: int, server_kind: Any) -> list[Row]:
    """Fills the queues of one kind and measures on them in turn."""
    delayed = kind == 'delayed'
    with ExitStack() as stack:

        def store() -> Store:
            # No snapshots, no append-only file: a rewrite would fork in the middle.
            server = stack.enter_context(Server(server_kind))
            client = stack.enter_context(server.client())
            return Store(client, Operations(Keys(), Options()))

        alone, shared = store(), store()
        probes = {
            'small': Probe(alone, 'small', delayed),
            'large': Probe(shared, 'large', delayed),
            'control': Probe(shared, 'control', delayed),
        }
        for name, probe in probes.items():
            progress(f'{kind}: {name}')
            Filler(probe.store, probe.queue, delayed).fill(size if name == 'large' else SMALL)
        memory: Any = shared.client.info('memory')
        progress(f'  the server uses {memory["used_memory_human"]}')
        taken: dict[str, dict[str, list[float]]] = {
            script: {name: [] for name in probes} for script in SCRIPTS
        }
        for number in range(repeat + 1):
            first = number % len(probes)
            for name in (*list(probes)[first:], *list(probes)[:first]):
                for script, value in probes[name].repetition().items():
                    if number:  # the first one warms up
                        taken[script][name].append(value)
            if number == repeat or number % 5 == 0:
                progress(f'{kind}: repetition {number}/{repeat}')
    return [Row.of(kind, script, values) for script, values in taken.items()]


def show(rows: list[Row]) -> None:
    print(f'{"us per call":<18}{"small":>8}{"large":>8}{"control":>9}'
          f'{"large/small":>13}{"large/control":>15}')  # fmt: skip
    for row in rows:
        print(f'{row.kind + " " + row.script:<18}{row.small:>8.1f}{row.large:>8.1f}'
              f'{row.control:>9.1f}{row.ratio:>13.2f}{row.structure:>15.2f}')  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--size', type=int, default=1_000_000, help='tasks in the long queue')
    parser.add_argument('--repeat', type=int, default=20, help='repetitions (default: 20)')
    parser.add_argument('--server', choices=('valkey', 'redis'), default='valkey')
    parser.add_argument('--json', action='store_true', help='print one JSON list')
    parser.add_argument('--check', action='store_true', help=f'exit 1 beyond {BAR:g} times')
    options = parser.parse_args()
    rows: list[Row] = []
    for kind in ('queued', 'delayed'):
        rows += measure(kind, options.size, options.repeat, options.server)
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    else:
        show(rows)
    missed = [row for row in rows if row.structure > BAR]
    if options.check and missed:
        names = ', '.join(
            f'{row.kind} {row.script} {row.structure:.2f} (of the small: {row.ratio:.2f})'
            for row in missed
        )
        sys.exit(f'beyond {BAR:g} times the cost of a queue of {SMALL:,} beside it: {names}')


if __name__ == '__main__':
    main()
