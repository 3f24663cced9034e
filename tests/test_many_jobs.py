"""A hundred thousand jobs: what looks at them answers at once, and nothing holds the server up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_reliable.client import connect_client
from kombu_reliable.envelope import pack_id
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.operations import PUBLISH_LIMIT
from kombu_reliable.types import Outgoing, Settlement, Verdict
from kombu_reliable.urls import parse_url
from tests.support.servers import Server, busy

JOBS = 100_000
DEAD = 10_000
AT_ONCE = 0.050  # s
TOO_LONG = 10_000  # us, for one call of a script
GROUP = '{"reason": "failed", "type": "ValueError", "message": "no", "group": "shop.pay"}'

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def task_id(number: int) -> str:
    return f'00000000-0000-4000-8000-{number:012}'


@pytest.fixture
def store(server: Server, database: int) -> Iterator[Store]:
    """A queue of very many jobs, and another one of dead letters."""
    options = Options()
    url = parse_url(f'reliable+redis://127.0.0.1:{server.port}/{database}')
    store = Store(connect_client(url, options), Operations(Keys(database), options))
    envelope = b'x' * 150
    fill(store, 'dead', [Outgoing(pack_id(f'd{n}'), 'dead', 0, '0', envelope) for n in range(DEAD)])
    kill(store)
    due = [('0', 0), ('0', 5), ('+3600000', 0), ('0', 9)]
    fill(store, 'q', [
        Outgoing(pack_id(task_id(n)), 'q', due[n % 4][1], due[n % 4][0], envelope)
        for n in range(JOBS)
    ])  # fmt: skip
    yield store
    store.client.close()


def fill(store: Store, lane: str, messages: list[Outgoing]) -> None:
    steps = range(0, len(messages), PUBLISH_LIMIT)
    calls = [
        store.operations.publish(lane, at + 1, messages[at : at + PUBLISH_LIMIT]) for at in steps
    ]
    for at in range(0, len(calls), 10):
        store.run_all(calls[at : at + 10])


def kill(store: Store) -> None:
    number = 0
    while True:
        number += 1
        claimed = store.run(store.operations.claim('w', f't{number}', 100, ['dead']))
        if not claimed.deliveries:
            return
        store.run(store.operations.settle([
            Settlement(Verdict.FAIL, one.queue, one.id, one.token, GROUP)
            for one in claimed.deliveries
        ]))  # fmt: skip


LOOKS: dict[str, Callable[[Store], Any]] = {
    'by id': lambda store: store.jobs.get(task_id(77_777)),
    'all by id': lambda store: store.jobs.all(task_id(5)),
    'unknown': lambda store: store.jobs.get('unknown') is None,
    'counts': lambda store: store.jobs.counts('q').ready == 75_000,
    'first page': lambda store: store.jobs.in_state('q', 'ready'),
    'a page': lambda store: store.jobs.in_state('q', 'ready', 40_000, 100),
    'last page': lambda store: store.jobs.in_state('q', 'ready', 74_900, 100),
    'delayed': lambda store: store.jobs.in_state('q', 'delayed', 12_345, 100),
    'failed': lambda store: store.jobs.failed('dead', offset=5_000),
    'failed of a group': lambda store: store.jobs.failed(group='shop.pay', limit=50),
    'failed anywhere': lambda store: store.jobs.failed(limit=50),
    'groups': lambda store: store.jobs.groups()[0].count == DEAD,
    'queues': lambda store: store.jobs.queues(),
}


class SlowLog:
    """Looks after each step for calls that took too long.

    Others use this machine: what took long only because the server had to wait for a processor
    does not count, where the system says how long it ran.
    """

    def __init__(self, store: Store, server: Server) -> None:
        self._client = store.client
        self._server = server
        self.slow: list[Any] = []
        self.steps = 0
        self._begin()

    def _begin(self) -> None:
        self._client.slowlog_reset()
        self._since = self._server.ran

    def too_many(self) -> bool:
        """More than one step in a hundred: a virtual machine may lose its processor, untold.

        What is slow by itself is slow each time: each kind of step comes here hundreds of times.
        """
        return len(self.slow) > 1 + self.steps // 100

    def look(self, _: Any = None) -> None:
        ran = self._server.ran
        found = self._client.slowlog_get(10)
        if found and (ran is None or self._since is None or (ran - self._since) * 1e6 > TOO_LONG):
            self.slow += found
        self.steps += 1
        self._begin()


@pytest.fixture(autouse=True)
def slow_log(server: Server) -> Iterator[None]:
    with server.client() as client:
        before = client.config_get('slowlog-log-slower-than')
        client.config_set('slowlog-log-slower-than', TOO_LONG)
        yield
        for name, value in before.items():
            client.config_set(name, value)


def test_a_long_queue_is_looked_at_at_once(store: Store, server: Server) -> None:
    log = SlowLog(store, server)
    for name, look in LOOKS.items():
        assert look(store), name
        log.look()
        times = []
        for _ in range(5):
            times.append(busy(server, look, store))
            log.look()
        print(f'{name}: {min(times) * 1000:.1f} ms')
        assert min(times) < AT_ONCE, f'{name}: {times}'
    assert not log.too_many(), log.slow


def test_acting_on_a_long_queue_holds_nobody_up(store: Store, server: Server) -> None:
    jobs, log = store.jobs, SlowLog(store, server)
    numbers = iter(range(0, JOBS, 4))
    actions: list[Callable[[str], Any]] = [
        jobs.cancel,
        lambda id: jobs.move(id, 'r'),
        lambda id: jobs.set_priority(id, 7),
        lambda id: jobs.reschedule(id, store.now() + 10_000_000),
        lambda id: jobs.pause('q'),
        lambda id: jobs.resume('q'),
    ]
    for act in 100 * actions:
        act(task_id(next(numbers)))
        log.look()
    assert jobs.replay_group('shop.pay', log.look) == DEAD
    left = jobs.counts('q')
    assert jobs.purge('q', progress=log.look) == left.ready + left.delayed
    assert jobs.purge('dead', progress=log.look) == DEAD
    assert log.steps > 1_500
    assert not log.too_many(), log.slow
