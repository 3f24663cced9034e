"""A real worker behind a proxy on which faults befall random calls while it works."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.calls import same_kind
from tests.faults.kinds import AT_A_CALL, Kindred
from tests.support.faults import NEVER, assert_quiet, wait_for_counts
from tests.support.proxy import Fault, Kind, Proxy
from tests.support.servers import Server
from tests.support.workers import Fleet, Worker, task

LEASE = 5.0
TIMEOUT = 0.7

#: What a worker's connections say, again and again.
USUAL = ('claim', 'settle', 'BZPOPMIN', 'renew')

#: What the short run is made of; the long one takes all.
CHOSEN = (
    Kind.TORN_REQUEST, Kind.SILENT_REQUESTS, Kind.LATE_REQUEST, Kind.CLOSED_TO_CLIENT,
    Kind.RESET_REPLY, Kind.TORN_REPLY, Kind.SILENT_REPLIES,
)  # fmt: skip

#: Tasks that wait at most.
BACKLOG = 40

#: How many faults befall a worker in the long run.
MANY = 30

#: A call of such a kind comes within this time, in seconds, or the fault is for the next one.
PATIENCE = 6.0


class Load:
    """Publishes tasks of all sorts past the faults, and knows what each must have done."""

    def __init__(self, fleet: Fleet, broker: str, rng: random.Random) -> None:
        self.fleet = fleet
        self.app = fleet.app(broker)
        self.rng = rng
        self.wanted: Counter[tuple[str, int]] = Counter()
        self.begun: Counter[tuple[str, int]] = Counter()
        self.read = 0
        fleet.ledger.path.touch()
        self.numbers = itertools.count()

    def publish(self) -> None:
        """One more, unless the worker is far behind."""
        if len(self.wanted) - len(self.ran()) > BACKLOG:
            return
        number = next(self.numbers)
        sort = self.rng.random()
        if sort < 0.7:
            self._one('run', number)
        elif sort < 0.8:
            self._one('sleep', 1.1 * LEASE / 3, value=number)
        elif sort < 0.9:
            self._one('run', number, countdown=self.rng.uniform(0.05, 0.5))
        else:
            self._one('retry_once', runs=2)

    def _one(self, name: str, *args: Any, runs: int = 1, value: Any = None, **options: Any) -> None:
        keywords = {} if value is None else {'value': value}
        sent = task(self.app, name, *args, **keywords).apply_async(**options)
        for run in range(runs):
            self.wanted[sent.id, run] += 1

    def ran(self) -> Counter[tuple[str, int]]:
        """How often each run of each task has begun."""
        with self.fleet.ledger.path.open() as ledger:
            ledger.seek(self.read)
            for text in ledger:
                if not text.endswith('\n'):
                    break  # somebody is writing it
                self.read += len(text)
                line = json.loads(text)
                if line['event'] in ('ran', 'started'):
                    self.begun[line['id'], line['retries']] += 1
        return self.begun

    def pause(self) -> None:
        time.sleep(self.rng.uniform(0.0, 0.03))


def befall(proxy: Proxy, load: Load, fault: Kindred, kind: str | None) -> Fault:
    """Has a fault befall one of the next calls, while tasks are published."""
    match = None if kind is None else same_kind(kind)
    # What is late for a worker comes after its timeout.
    seconds = 1.5 * TIMEOUT if fault.seconds > TIMEOUT else fault.seconds
    made = proxy.fault(fault.kind, load.rng.randint(1, 4), match, seconds)
    deadline = time.monotonic() + PATIENCE
    while made.fired is None and time.monotonic() < deadline:
        load.publish()
        load.pause()
    made.over.wait(5)
    return made


def storm(proxy: Proxy, load: Load, faults: Iterator[tuple[Kindred, str | None]]) -> Counter[str]:
    """One fault after the other; returns how often each befell a call."""
    befallen: Counter[str] = Counter()
    for fault, kind in faults:
        if befall(proxy, load, fault, kind).fired is not None:
            befallen[fault.name] += 1
        proxy.heal()
        # It goes on: what is published now runs, although old connections may be silent.
        before = len(load.ran())
        deadline = time.monotonic() + 20
        load.publish()
        while len(load.ran()) == before:
            assert time.monotonic() < deadline, f'no task runs after: {fault} at {kind}'
            load.publish()
            time.sleep(0.05)
    return befallen


@pytest.fixture
def proxied(
    make_fleet: Callable[..., Fleet], server: Server, database: int
) -> Iterator[tuple[Fleet, Proxy, str]]:
    """A fleet whose workers reach the server through a proxy, and the way around it."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        direct = f'reliable+{server.url(database)}'
        fleet = make_fleet(
            broker=f'reliable+{proxy.url(database)}', backend=direct,
            module='tests.support.installed',
            options={'lease': LEASE, 'socket_timeout': TIMEOUT, 'socket_connect_timeout': TIMEOUT},
            config={'task_ignore_result': True},
        )  # fmt: skip
        yield fleet, proxy, direct
        fleet.close()


def check(fleet: Fleet, server: Server, worker: Worker, load: Load, befallen: Counter[str]) -> None:
    """Everything ran once, and neither worker nor consumer was started anew."""
    wait_for_counts(fleet, server, timeout=60)
    assert load.ran() == load.wanted
    assert worker.process.poll() is None
    if 'pidbox: Connected to ' in worker.text():
        # Green pools have a connection for remote control, which says so of itself.
        for words in NEVER:
            assert words not in worker.text()
        assert worker.text().count(' ready.') == 1
    else:
        # A warning for each lost connection and each new one, but nobody loses a lease.
        assert_quiet(worker, warnings=10 * sum(befallen.values()) + 20)
    print(f'{len(load.wanted)} tasks, {sum(befallen.values())} faults: {dict(befallen)}')


def everything(kinds: tuple[str | None, ...]) -> list[tuple[Kindred, str | None]]:
    return [(fault, kind) for fault in AT_A_CALL for kind in kinds]


def test_each_kind_of_fault_under_a_worker(
    proxied: tuple[Fleet, Proxy, str], server: Server
) -> None:
    fleet, proxy, direct = proxied
    rng = random.Random(7)
    load = Load(fleet, direct, rng)
    worker = fleet.start('--without-mingle', '--without-gossip', concurrency=2)
    kinds = itertools.cycle(USUAL)
    faults = [(fault, next(kinds)) for fault in AT_A_CALL if fault.kind in CHOSEN]
    befallen = storm(proxy, load, iter(faults))
    check(fleet, server, worker, load, befallen)
    assert sum(befallen.values()) >= len(CHOSEN) - 2


@pytest.mark.matrix
@pytest.mark.timeout(900)
@pytest.mark.parametrize('pool', ['prefork', 'threads', 'gevent', 'eventlet', 'solo'])
@pytest.mark.parametrize('seed', [1, 2])
def test_many_faults_under_a_worker(
    proxied: tuple[Fleet, Proxy, str], server: Server, pool: str, seed: int
) -> None:
    """Faults at usual calls, and at any call at all; others with each seed."""
    fleet, proxy, direct = proxied
    rng = random.Random(seed)
    load = Load(fleet, direct, rng)
    worker = fleet.start(pool=pool, concurrency=1 if pool == 'solo' else 2)
    faults = rng.sample(everything((*USUAL, None)), MANY)
    befallen = storm(proxy, load, iter(faults))
    check(fleet, server, worker, load, befallen)
    assert sum(befallen.values()) >= 0.8 * len(faults)
