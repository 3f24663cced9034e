"""After the work the keyspace is what it was, but for the constants of docs/redis-keys.md."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.utils import uuid
from kombu import Connection

from kombu_reliable.keys import Keys
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet, task

#: Longest expiry of what a listener or a client that has gone leaves behind, in seconds.
LIFE = 3.0

KEYS = Keys()


@pytest.fixture(scope='module')
def own(server: Server) -> Iterator[Server]:
    """A server of which database 0 is for messages and 1 for results."""
    with Server(server.binary) as started:
        yield started


@pytest.fixture
def crew(own: Server, tmp_path: Path) -> Iterator[Fleet]:
    url = f'reliable+redis://127.0.0.1:{own.port}'
    config = {'control_queue_expires': LIFE, 'event_queue_expires': LIFE}
    options = {'fanout_life': LIFE}
    with fleet(tmp_path, f'{url}/0', backend=f'{url}/1', config=config, options=options) as made:
        yield made


def names(client: redis.Redis) -> set[str]:
    """Every key, though some may end by themselves the next moment."""
    return {key.decode() for key in client.scan_iter(count=1000)}


def contents(client: redis.Redis) -> dict[str, Any]:
    """Every key, and how much is in it."""
    sizes: dict[bytes, Callable[[str], Any]] = {
        b'string': client.strlen, b'hash': client.hkeys, b'zset': client.zcard,
        b'set': client.smembers, b'stream': client.xlen,
    }  # fmt: skip
    return {name: sizes[client.type(name)](name) for name in names(client)}


def follow_events(app: Celery, done: threading.Event, seen: list[str]) -> None:
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={'*': lambda e: seen.append(e['type'])})
        while not done.is_set():
            try:
                receiver.capture(limit=None, timeout=0.2, wakeup=False)
            except TimeoutError:
                continue


def work(app: Celery, count: int) -> None:
    """Tasks in every form, and remote control."""
    results = [task(app, 'run', number).delay() for number in range(count)]
    extras: list[Any] = [
        group(task(app, 'add', n, 1) for n in range(20)).delay(),
        chain(task(app, 'add', 1, 1), task(app, 'add', 1), task(app, 'add', 1)).delay(),
        *(
            chord([task(app, 'add', n, n) for n in range(5)], task(app, 'total')).delay()
            for _ in range(5)
        ),
        *(task(app, 'flaky', 2).delay() for _ in range(5)),
        *(task(app, 'run', n).apply_async(countdown=0.2) for n in range(20)),
        *(task(app, 'run', n).apply_async(priority=n) for n in range(10)),
        *(task(app, 'run', n).apply_async(queue=f'other{n % 3}') for n in range(30)),
        task(app, 'replaced', 1).delay(),
    ]
    # Workers remember it; afterwards they might be too late.
    id = uuid()
    app.control.revoke(id, reply=True, timeout=2, limit=2)
    revoked = task(app, 'run', 0).apply_async(task_id=id, countdown=0.5)
    for _ in range(3):
        wait_for(lambda: app.control.inspect(timeout=2, limit=2).stats(), 20)
    wait_for(lambda: app.control.ping(timeout=2, limit=2), 20)
    app.control.rate_limit('tests.support.app.limited', '20/s')
    for result in (*results, *extras):
        result.get(timeout=120, propagate=True)
    with pytest.raises(Exception, match='revoked'):
        revoked.get(timeout=20)


#: What docs/redis-keys.md says stays behind: bindings of queues that were declared for good,
#: the memory of publishers, and an alarm until the first claim after its time.
QUEUES = ('celery', 'other0', 'other1', 'other2')
NAMED = ('meta', 'pub', 'alarm', 'queues', 'fenced', 'noticed')
CONSTANTS = {KEYS.meta.removesuffix('meta') + name for name in NAMED}
CONSTANTS |= {KEYS.bindings(queue) for queue in QUEUES}
FIELDS = set(b'v seq seen hold keeper deputy expired fenced trimmed routes'.split())
LANES = 100


@pytest.mark.parametrize(
    'count', [800, pytest.param(10_000, marks=[pytest.mark.matrix, pytest.mark.timeout(900)])]
)
def test_the_keyspace_is_what_it_was(own: Server, crew: Fleet, count: int) -> None:
    with own.client() as client:
        client.flushall()
        workers = [crew.start('-E', '-Q', ','.join(QUEUES)) for _ in range(2)]
        app = crew.app()
        seen: list[str] = []
        done = threading.Event()
        listener = threading.Thread(target=follow_events, args=(app, done, seen))
        listener.start()
        try:
            work(app, count)
            for command in (
                'inspect -t 20 -d w1@test active',
                'control -t 20 -d w1@test pool_grow 1',
            ):
                ended = crew.run('celery', '-A', 'tests.support.app', *command.split())
                assert 'w1@test: OK' in ended.stdout, ended.stdout + ended.stderr
        finally:
            done.set()
            listener.join(10)
        assert 'task-succeeded' in seen
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        crew.close()
        # The memory of deleted reply queues ends by itself 40 s later if nobody claims any more.
        wait_for(lambda: names(client) <= CONSTANTS, 60, 'keyspace as it was')
        left = contents(client)
        assert set(left[KEYS.meta]) <= FIELDS
        assert left[KEYS.producers] <= LANES
        assert {name.decode() for name in client.smembers(KEYS.queues)} == set(QUEUES)
        for queue in QUEUES:
            assert len(left[KEYS.bindings(queue)]) == 1
        # The next claim after their time clears the alarms away, too.
        with Connection(crew.broker, transport_options=crew.options) as connection:
            channel = connection.default_channel
            wait_for(
                lambda: channel.basic_get('celery') or not client.exists(KEYS.alarms),
                15, 'claim without alarms',
            )  # fmt: skip
