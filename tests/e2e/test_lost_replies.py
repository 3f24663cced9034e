"""The reply of any one script call is lost, each in turn: nothing else is."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from celery import chord
from kombu import Connection, Consumer, Queue
from kombu.exceptions import OperationalError

from kombu_reliable import open_store
from kombu_reliable.scripts import all_scripts
from tests.support.proxy import Command, Proxy
from tests.support.servers import Server
from tests.support.workers import Fleet, task

LEASE = 0.6
MESSAGES = 4


def is_script(command: Command) -> bool:
    return command.sha is not None


def calls(name: str) -> Callable[[Command], bool]:
    """Matches the calls of one script."""
    sha = next(script.sha for script in all_scripts() if script.name == name)
    return lambda command: command.sha == sha


def publish(connection: Connection, numbers: range) -> None:
    with connection.Producer() as producer:
        for number in numbers:
            producer.publish(
                number,
                routing_key='q',
                headers={'x-delay': 50} if number % 2 else {},
                retry=True,
                retry_policy={'max_retries': 3, 'interval_start': 0.01},
            )


def consume(connection: Connection, expected: int) -> list[Any]:
    """Settles messages until the expected ones, and no others, have come for a while."""
    seen: list[Any] = []

    def on_message(message: Any) -> None:
        seen.append((message.payload, message.headers['x-delivery-count']))
        message.ack()

    channel = connection.channel()
    with Consumer(channel, [Queue('q')], on_message=on_message, accept=['json']) as consumer:
        consumer.qos(prefetch_count=2)
        deadline = time.monotonic() + 20
        while len({number for number, _ in seen}) < expected:
            assert time.monotonic() < deadline, f'only {seen} came'
            try:
                connection.drain_events(timeout=0.2)
            except TimeoutError:
                continue
        # Whatever is doubled comes within a lease.
        with pytest.raises(TimeoutError):
            while True:
                connection.drain_events(timeout=2 * LEASE)
    channel.close()
    return seen


def test_any_one_lost_reply_in_plain_kombu(server: Server, database: int) -> None:
    fired = 0
    for n in range(1, 60):
        with (
            Proxy(('127.0.0.1', server.port)) as proxy,
            Connection(
                f'reliable+{proxy.url(database)}', transport_options={'lease': LEASE}
            ) as connection,
            server.client(db=database) as client,
        ):
            connection.connect()
            fault = proxy.drop_reply(n, is_script)
            publish(connection, range(MESSAGES))
            prefix = f'{{kr:{database}:0}}'
            jobs = client.keys(f'{prefix}:j:*')
            assert len(jobs) == MESSAGES, 'each publish is one job'
            seen = consume(connection, MESSAGES)
            assert {number for number, _ in seen} == set(range(MESSAGES))
            times = Counter(number for number, _ in seen)
            # A message whose claim was lost comes again; one that was handed out does not.
            assert max(times.values()) == 1, f'{times} with reply {n} lost'
            assert not client.keys(f'{prefix}:j:*'), f'all are settled with reply {n} lost'
            assert not client.exists(f'{prefix}:own')
            client.flushdb()
        if fault.fired is None:
            break
        fired += 1
    print(f'{fired} replies were lost, one after the other')
    assert fired >= 8, 'publishes, claims and settlements were hit'


@pytest.mark.parametrize('name', ['publish', 'claim', 'settle', 'renew'])
def test_a_lost_reply_under_a_real_worker(
    make_fleet: Callable[..., Fleet], server: Server, database: int, name: str
) -> None:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        workers = make_fleet(
            broker=f'reliable+{proxy.url(database)}',
            backend=f'reliable+{server.url(database)}',
            options={'lease': 1.5},
        )
        workers.start('--without-mingle', concurrency=2)
        app = workers.app()
        assert task(app, 'add', 1, 1).apply_async().get(20) == 2
        fault = proxy.drop_reply(1, calls(name))
        results = [task(app, 'add', i, i).apply_async() for i in range(20)]
        long = task(app, 'sleep', 3, value='long').apply_async()
        assert [result.get(20) for result in results] == [2 * i for i in range(20)]
        assert long.get(20) == 'long'
        assert fault.fired is not None
        assert len(workers.ledger.lines('started')) == 1, 'the long one ran once'
        ran = Counter(entry['id'] for entry in workers.ledger.lines('ran'))
        assert max(ran.values()) == 1, 'each of the others ran once'
        workers.close()


@pytest.mark.parametrize('kind', ['link', 'chain', 'chord'])
def test_what_a_worker_publishes_behind_a_task_is_published_once(
    make_fleet: Callable[..., Fleet], server: Server, database: int, kind: str
) -> None:
    """kombu repeats it; or Celery does, as for a link, and kombu knows nothing of that."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        direct = f'reliable+{server.url(database)}'
        workers = make_fleet(
            broker=f'reliable+{proxy.url(database)}', backend=direct, options={'lease': 1.5}
        )
        workers.start('--without-mingle', concurrency=1)
        app = workers.app()
        with Connection(direct) as connection, connection.Producer() as producer:
            first, behind = task(app, 'run', 1), task(app, 'run', 'behind').set(immutable=True)
            fault = proxy.drop_reply(1, calls('publish'))
            if kind == 'link':
                first.apply_async(producer=producer, link=behind)
            elif kind == 'chain':
                (first | behind).apply_async(producer=producer)
            else:
                chord([first, task(app, 'run', 2)])(behind, producer=producer)
            workers.ledger.wait(1, 'ran', value='behind')
            assert fault.fired is not None
            # In order: if it had been stored twice, the second one would run before this.
            task(app, 'run', 'last').apply_async(producer=producer)
            workers.ledger.wait(1, 'ran', value='last')
            assert len(workers.ledger.lines('ran', value='behind')) == 1
        workers.close()


def test_a_program_that_repeats_a_publish_itself(
    make_fleet: Callable[..., Fleet], server: Server, database: int
) -> None:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        app = make_fleet(broker=f'reliable+{proxy.url(database)}').app()

        def send(*args: int) -> Any:
            return task(app, 'add', *args).apply_async(task_id='the same', retry=False)

        send(1, 1)
        store = open_store(app.connection_for_write())
        proxy.drop_reply(1, calls('publish'))
        with pytest.raises(OperationalError):
            send(1, 2)
        assert store.counts('celery').ready == 2
        send(1, 2)
        assert store.counts('celery').ready == 2, 'it was stored'
        send(1, 2)
        assert store.counts('celery').ready == 3, 'on purpose'
        proxy.drop_reply(1, calls('publish'))
        with pytest.raises(OperationalError):
            send(1, 3)
        send(1, 4)
        assert store.counts('celery').ready == 5, 'another one'
