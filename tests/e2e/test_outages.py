"""Lost connections and lost servers: tasks run once, acks count, Celery notices nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from kombu_reliable.scripts import script
from tests.support.faults import (
    assert_each_ran_once,
    assert_quiet,
    counts,
    cut_all,
    keys_of,
    wait_for_counts,
)
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

LEASE = 3


def until(moment: float) -> None:
    wait_for(lambda: time.monotonic() >= moment, 60, 'the moment')


def three_leases() -> float:
    return time.monotonic() + 3 * LEASE


def kill_clients(proxy: Proxy, server: Server) -> None:
    """The server throws out all its clients, again and again."""
    for _ in range(6):
        cut_all(server)
        until(time.monotonic() + LEASE / 4)


def go_silent_and_resume(proxy: Proxy, server: Server) -> None:
    """A black hole shorter than a lease, after which everything arrives late."""
    proxy.stop_forwarding()
    until(time.monotonic() + LEASE / 3)
    proxy.resume_forwarding()


def go_silent_and_end(proxy: Proxy, server: Server) -> None:
    """Old connections end in a black hole, then by force; new ones work."""
    proxy.stop_forwarding()
    until(time.monotonic() + LEASE / 4)
    proxy.cut()
    proxy.resume_forwarding()


def leave_for_dead(proxy: Proxy, server: Server) -> None:
    """Old connections go silent and are never closed; new ones work."""
    proxy.strand()
    until(time.monotonic() + LEASE)


def refuse_for_a_while(proxy: Proxy, server: Server) -> None:
    proxy.refuse()
    proxy.cut()
    until(time.monotonic() + LEASE / 3)
    proxy.refuse(False)


FAULTS = (
    kill_clients,
    go_silent_and_resume,
    go_silent_and_end,
    leave_for_dead,
    refuse_for_a_while,
)


@pytest.fixture
def proxied(
    make_fleet: Callable[..., Fleet], server: Server, database: int
) -> Iterator[tuple[Fleet, Proxy]]:
    """A fleet whose first worker reaches the server through a proxy."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        fleet = make_fleet(
            broker=f'reliable+{proxy.url(database)}',
            backend=f'reliable+{server.url(database)}',
            options={'lease': LEASE},
        )
        yield fleet, proxy
        fleet.close()


@pytest.mark.parametrize(
    'pool',
    [
        'prefork',
        pytest.param('threads', marks=pytest.mark.matrix),
        pytest.param('solo', marks=pytest.mark.matrix),
    ],
)
def test_a_long_task_outlives_its_connections(
    proxied: tuple[Fleet, Proxy], server: Server, database: int, tmp_path: Path, pool: str
) -> None:
    fleet, proxy = proxied
    direct = f'reliable+{server.url(database)}'
    app = fleet.app(broker=direct)
    door = tmp_path / 'door'
    worker = fleet.start(pool=pool, concurrency=1)
    result = task(app, 'wait_for_file', str(door), value='long').apply_async()
    fleet.ledger.wait(1, 'started')
    # Somebody who would take the task at once if its lease ended.
    fleet.start(concurrency=1, broker=direct)
    end = three_leases()
    for fault in FAULTS:
        fault(proxy, server)
        # One fault at a time: after each the lease is renewed anew.
        until(time.monotonic() + LEASE / 2)
        assert counts(fleet, server).leased == 1, fault.__doc__
    until(end)
    door.touch()
    assert result.get(20) == 'long'
    wait_for_counts(fleet, server)
    assert_each_ran_once(fleet, ['long'])
    # What lived for some seconds and is lost is told anew.
    assert_quiet(worker, warnings=25)
    # It works on.
    fleet.workers[1].kill()
    assert task(app, 'run', value='next').apply_async().get(20) == 'next'


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    """A server that this test may stop, of the same kind."""
    with Server(server.binary, appendfsync='always') as own:
        yield own


def cut_off(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


def stand_still(server: Server, proxy: Proxy, door: Path) -> None:
    server.pause()
    door.touch()
    until(three_leases())
    cut_off(proxy)
    server.resume()


def come_back_with_its_data(server: Server, proxy: Proxy, door: Path) -> None:
    server.stop()
    door.touch()
    until(three_leases())
    cut_off(proxy)
    server.start()


def last_heard(fleet: Fleet, server: Server) -> int:
    """When a claim or renewal last reached the server."""
    with server.client() as client:
        return int(client.hget(keys_of(fleet).meta, 'seen') or 0)


@pytest.mark.parametrize(
    'outage', [pytest.param(stand_still, marks=pytest.mark.matrix), come_back_with_its_data]
)
def test_an_outage_of_three_leases_costs_nothing(
    make_fleet: Callable[..., Fleet],
    own_server: Server,
    tmp_path: Path,
    outage: Callable[[Server, Proxy, Path], None],
) -> None:
    """Two workers with running and prefetched tasks; an idle one, which is back before them,
    does not take them away."""
    with Proxy(('127.0.0.1', own_server.port)) as proxy:
        direct = f'reliable+{own_server.url()}'
        fleet = make_fleet(
            broker=f'reliable+{proxy.url()}', backend=direct, options={'lease': LEASE},
            # Or Celery gives up a result that it cannot store at once.
            config={'result_backend_always_retry': True},
        )  # fmt: skip
        app = fleet.app(broker=direct)
        during, after = tmp_path / 'during', tmp_path / 'after'
        results = {}
        for pool in ('prefork', 'threads'):
            fleet.start('--prefetch-multiplier', '2', pool=pool, concurrency=2)
            for number, door in enumerate((during, after, after, after)):
                name = f'{pool} {number}'
                sent = task(app, 'wait_for_file', str(door), value=name)
                # Celery itself would wait for the server to keep a result.
                results[name] = sent.apply_async(ignore_result=door is during)
            wait_for(lambda: counts(fleet, own_server).leased == len(results), 10, 'leases')
            fleet.ledger.wait(len(results) // 2, 'started')
        fleet.start(concurrency=2, broker=direct)
        seen = last_heard(fleet, own_server)
        # One task of each worker ends meanwhile.
        outage(own_server, proxy, during)
        wait_for(lambda: last_heard(fleet, own_server) > seen, 10, 'the idle one is back')
        until(time.monotonic() + LEASE / 6)
        proxy.refuse(False)
        after.touch()
        kept = {name: result for name, result in results.items() if not result.ignored}
        # get() may miss a result that is stored while it subscribes anew: celery's affair.
        wait_for(lambda: all(result.ready() for result in kept.values()), 30, 'the results')
        assert all(result.result == name for name, result in kept.items())
        wait_for_counts(fleet, own_server)
        assert_each_ran_once(fleet, [*results])
        for worker in fleet.workers:
            assert_quiet(worker)
        fleet.close()


@pytest.mark.parametrize(
    ('away', 'pool'),
    [
        ('hangs', 'prefork'),
        pytest.param('hangs', 'threads', marks=pytest.mark.matrix),
        pytest.param('is down', 'prefork', marks=pytest.mark.matrix),
        pytest.param('is down', 'threads', marks=pytest.mark.matrix),
    ],
)
def test_prefetched_tasks_run_on_while_the_server_is_away(
    make_fleet: Callable[..., Fleet], own_server: Server, tmp_path: Path, away: str, pool: str
) -> None:
    """Nothing in a worker's event loop waits for the server for long, Celery's heartbeat least
    of all."""
    fleet = make_fleet(
        broker=f'reliable+{own_server.url(1)}',
        options={'lease': LEASE, 'socket_timeout': 1},
        config={'task_ignore_result': True},
    )
    app = fleet.app()
    worker = fleet.start('--prefetch-multiplier', '12', pool=pool, concurrency=1)
    door = tmp_path / 'door'
    task(app, 'wait_for_file', str(door), value='door').apply_async()
    for number in range(10):
        task(app, 'sleep', 0.3, value=number).apply_async()
    wait_for(lambda: counts(fleet, own_server).leased == 11, 10, 'all are leased')
    if away == 'hangs':
        own_server.pause()
    else:
        own_server.stop()
    # Longer than the interval of heartbeats.
    until(time.monotonic() + 2.5)
    door.touch()
    fleet.ledger.wait(11, 'ended', timeout=15)
    if away == 'hangs':
        own_server.resume()
    else:
        own_server.start()
    wait_for_counts(fleet, own_server)
    assert_each_ran_once(fleet, ['door', *range(10)])
    assert_quiet(worker)
    fleet.close()


@pytest.mark.matrix
def test_a_worker_that_is_frozen_for_less_than_a_lease_keeps_its_tasks(
    make_fleet: Callable[..., Fleet], server: Server, tmp_path: Path
) -> None:
    fleet = make_fleet(options={'lease': 2 * LEASE})
    app = fleet.app()
    worker = fleet.start(concurrency=1)
    door = tmp_path / 'door'
    results = [task(app, 'wait_for_file', str(door), value=i).apply_async() for i in range(2)]
    fleet.ledger.wait(1, 'started')
    fleet.start(concurrency=2)
    worker.pause()
    until(time.monotonic() + LEASE)
    worker.resume()
    # By now the lease that the worker had when it was frozen would be over.
    until(time.monotonic() + 1.5 * LEASE)
    door.touch()
    assert [result.get(20) for result in results] == [0, 1]
    wait_for_counts(fleet, server)
    assert_each_ran_once(fleet, [0, 1])
    assert_quiet(worker)


@pytest.mark.matrix
def test_a_worker_waits_for_its_first_connection(
    make_fleet: Callable[..., Fleet], own_server: Server
) -> None:
    """As with any broker, with a clear message and without the password."""
    secret = 'pa%3A55word'
    port = own_server.port
    own_server.password = 'pa:55word'
    own_server.stop()
    fleet = make_fleet(
        broker=f'reliable+redis://:{secret}@127.0.0.1:{port}/0', config={'task_ignore_result': True}
    )
    nowhere = f'reliable+redis://:{secret}@no-such-host.invalid:{port}/0'
    worker = fleet.start(concurrency=1, ready=False)
    lost = fleet.start(concurrency=1, ready=False, broker=nowhere)
    worker.wait_for_log('Cannot connect to reliable+redis://')
    worker.wait_for_log('Trying again in')
    lost.wait_for_log('Cannot connect to reliable+redis://')
    own_server.start()
    worker.wait_for_log(' ready.', 30)
    task(fleet.app(), 'run', value='x').delay()
    fleet.ledger.wait(1, 'ran')
    lost.terminate()
    lost.wait()
    for one in fleet.workers:
        assert '55word' not in one.text()
        assert 'Traceback' not in one.text()
    fleet.close()


def test_a_publish_outlasts_a_short_outage_and_gives_up_after_a_long_one(
    make_fleet: Callable[..., Fleet], own_server: Server
) -> None:
    fleet = make_fleet(
        broker=f'reliable+{own_server.url()}',
        options={'socket_timeout': 1},
    )
    app = fleet.app()
    policy = {'max_retries': 3, 'interval_start': 0.1, 'interval_step': 0.1, 'interval_max': 0.3}
    # Without a result: Celery would wait for the result backend, the same server, at each call.
    send = partial(task(app, 'run', value='x').apply_async, ignore_result=True)
    send()
    own_server.stop()
    began = time.monotonic()
    with pytest.raises(OperationalError) as caught:
        send(retry=True, retry_policy=policy)
    assert time.monotonic() - began < 15
    assert 'refused' in str(caught.value)
    with pytest.raises(OperationalError):
        send(retry=False)
    # The server comes back between two attempts.
    came_back = threading.Timer(0.5, own_server.start)
    came_back.start()
    send(retry=True, retry_policy={**policy, 'max_retries': 50})
    came_back.join()
    assert counts(fleet, own_server).ready == 2
    # It hangs and answers late: the publish that nobody confirmed is made again, and known.
    own_server.pause()
    wakes_up = threading.Timer(1.5, own_server.resume)
    wakes_up.start()
    send(retry=True, retry_policy={**policy, 'max_retries': 50})
    wakes_up.join()
    wait_for(lambda: counts(fleet, own_server).ready >= 3, 5, 'the third')
    assert counts(fleet, own_server).ready == 3
    fleet.close()


def test_a_worker_whose_server_goes_away_while_it_starts_tries_again(
    proxied: tuple[Fleet, Proxy],
) -> None:
    """Its broadcasts for other workers come from the thread of the event loop, where no publish
    may wait for a server: they fail, and the worker must not end of it."""
    fleet, proxy = proxied
    digest = script('fanout').sha
    for number in (1, 2):
        proxy.drop_request(number, lambda command: command.sha == digest)
    worker = fleet.start(concurrency=1, ready=False)
    worker.wait_for_log(' ready.')
    assert 'Connection to broker lost' in worker.text(), 'it was lost at another moment'
    assert task(fleet.app(), 'run', value='x').apply_async().get(20) == 'x'


def test_a_retry_that_could_not_be_published_is_run_once_more(
    make_fleet: Callable[..., Fleet], server: Server, database: int, tmp_path: Path
) -> None:
    """Celery rejects its task, for which a dead letter would be a hard fate."""
    door = tmp_path / 'door'
    direct = f'reliable+{server.url(database)}'
    with Proxy(('127.0.0.1', server.port)) as proxy:
        fleet = make_fleet(
            broker=f'reliable+{proxy.url(database)}', backend=direct,
            options={'lease': 30}, module='tests.support.installed',
        )  # fmt: skip
        worker = fleet.start(concurrency=1)
        app = fleet.app(broker=direct)
        result = task(app, 'retry_after', str(door)).apply_async()
        fleet.ledger.wait(1, 'started')
        proxy.refuse()
        proxy.cut()
        door.touch()
        worker.wait_for_log('reject requeue=True')
        proxy.heal()
        assert result.get(20) == 'done'
        assert [entry['deliveries'] for entry in fleet.ledger.lines('started')] == [1, 2]
        fleet.close()
