"""Idle costs next to nothing: what waiting workers send over the wire."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.consumers import CLAIMS_BAR, measure
from kombu_reliable.keys import Keys
from kombu_reliable.scripts import all_scripts
from tests.support.proxy import Command, Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import fleet, task

NAMES = {script.sha: script.name for script in all_scripts()}

#: After the start, some commands come once: the loading of scripts, the first claims.
SETTLING = 3.0


def names(commands: list[Command]) -> Counter[str]:
    """Commands by name, scripts by that of their operation."""
    return Counter(NAMES.get(command.sha or '', command.name) for command in commands)


def next_alarm(client: redis.Redis, database: int) -> float:
    first: Any = client.zrange(Keys(database).alarms, 0, 0, withscores=True)
    return first[0][1] / 1000 if first else math.inf


@pytest.mark.parametrize('seconds', [10, pytest.param(30, marks=pytest.mark.matrix)])
@pytest.mark.parametrize('pool', ['prefork', pytest.param('threads', marks=pytest.mark.matrix)])
def test_idle_workers(
    server: Server, database: int, url: str, tmp_path: Path, seconds: float, pool: str
) -> None:
    """One worker as bare as it gets, and one with Celery's defaults beside it."""
    upstream = ('127.0.0.1', server.port)
    # Results go past the proxies, and the lease is the default.
    with (
        Proxy(upstream) as bare,
        Proxy(upstream) as full,
        fleet(tmp_path, url, options={'lease': 30}) as crew,
    ):
        crew.start(
            '--without-heartbeat', '--without-gossip', pool=pool, ready=False,
            broker=f'reliable+{bare.url(database)}',
        )  # fmt: skip
        crew.start(pool=pool, broker=f'reliable+{full.url(database)}')
        crew.workers[0].wait_for_log(' ready.')
        app = crew.app()
        for number in range(20):
            task(app, 'run', number).apply_async(ignore_result=True)
        crew.ledger.wait(20, 'ran')
        # One of the few sleeps of these tests: the silence itself is what is measured.
        time.sleep(SETTLING)
        with server.client(db=database) as client:
            # Without what the start and the work have left to look after.
            wait_for(lambda: next_alarm(client, database) > time.time() + seconds, 90, 'no alarm')
        for proxy in (bare, full):
            proxy.clear()
        time.sleep(seconds)
        for proxy, limit in ((bare, 0.3), (full, 1.5)):
            sent = names(proxy.seen())
            print(f'{pool}, at most {limit}/s: {sent.total() / seconds:.2f}/s {dict(sent)}')
            # In a short time the slow clocks (10 s, 25 s) may tick once more than their share.
            assert sent.total() <= limit * seconds + (4 if seconds < 30 else 0), sent
        for number in range(20):
            task(app, 'run', f'awake {number}').apply_async(ignore_result=True)
        crew.ledger.wait(40, 'ran')


@pytest.mark.parametrize('messages', [100, pytest.param(200, marks=pytest.mark.matrix)])
def test_delayed_messages_of_many_idle_consumers(url: str, messages: int) -> None:
    """A due message wakes those who watch the clock, not everybody."""
    figures = measure(url, consumers=30, messages=messages)
    print(
        f'{figures.claims_per_message:.2f} claims per message, '
        f'lateness p50 {figures.late[messages // 2]:.1f} ms, p99 {figures.p99:.1f} ms'
    )
    assert len(figures.late) == messages
    assert figures.claims_per_message <= CLAIMS_BAR
    assert figures.late[0] > -1, 'early'
    # The bar for p99 is 10 ms, on a machine that does nothing else.
    assert figures.late[messages // 2] < 2000
    assert figures.p99 < 9000, 'whom nobody wakes looks after 10 s'
