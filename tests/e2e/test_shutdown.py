"""A worker that is told to stop gives back at once what it has not started."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kombu_reliable.envelope import pack_id
from tests.support.faults import counts, database_of, keys_of, wait_for_counts
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task


def test_warm_shutdown_gives_back_what_was_prefetched(
    workers: Fleet, server: Server, tmp_path: Path
) -> None:
    app = workers.app()
    with server.client() as client:
        client.script_flush()  # a worker that stops reads no answer that says so
    worker = workers.start('--prefetch-multiplier', '21', concurrency=1)
    door = tmp_path / 'door'
    number = int(workers.broker.rpartition('/')[2])
    prefix = f'{{kr:{number}:0}}'
    with server.client(db=number) as client:
        running = task(app, 'wait_for_file', str(door), value='running').apply_async()
        workers.ledger.wait(1, 'started')
        waiting = [task(app, 'run', value=i).apply_async(priority=i % 3) for i in range(20)]
        wait_for(lambda: client.hlen(f'{prefix}:own') == 21, 10, 'all are leased')
        places = {
            job: owner.split(b';')[1] for job, owner in client.hgetall(f'{prefix}:own').items()
        }
        worker.terminate()
        told_at = time.monotonic()
        wait_for(lambda: client.zcard(f'{prefix}:r:celery') == 20, 10, 'twenty are back')
        print(f'given back after {1e3 * (time.monotonic() - told_at):.0f} ms')
        ready = dict(client.zrange(f'{prefix}:r:celery', 0, -1, withscores=True))
        assert {job: float(place) for job, place in places.items() if job in ready} == ready
        assert not client.keys(f'{prefix}:x:*'), 'no delivery was counted'
        # What runs on is still leased, and its end counts.
        assert client.hlen(f'{prefix}:own') == 1
        assert worker.process.poll() is None
        door.touch()
        assert worker.wait() == 0
        assert running.get(10) == 'running'
        wait_for(lambda: not client.hlen(f'{prefix}:own'), 5, 'the running one was settled')
        assert not workers.ledger.lines('ran')
    # They run elsewhere in their old order: by priority, and by arrival inside one.
    workers.start(concurrency=1)
    for result in waiting:
        result.get(20)
    order = sorted(range(20), key=lambda i: (-(i % 3), i))
    assert workers.ledger.values('ran') == order
    assert {entry['redelivered'] for entry in workers.ledger.lines('ran')} == {False}


def test_a_worker_under_load_stops_without_running_anything_twice(workers: Fleet) -> None:
    app = workers.app()
    first = workers.start('--prefetch-multiplier', '8', concurrency=2)
    results = [task(app, 'add', i, i).apply_async() for i in range(600)]
    workers.ledger.wait(100, 'ran')
    workers.start('--prefetch-multiplier', '8', concurrency=2)
    first.terminate()
    assert first.wait() == 0
    assert [result.get(30) for result in results] == [2 * i for i in range(600)]
    assert len(workers.ledger.lines('ran')) == 600


class Scene:
    """A worker in whose two slots run a task that will end and one that will not, while two
    others wait in its prefetch; and what became of them."""

    def __init__(self, fleet: Fleet, server: Server, directory: Path, **start: Any) -> None:
        self.fleet, self.server = fleet, server
        self.app = fleet.app()
        self.short, self.long = directory / 'short', directory / 'long'
        self.worker = fleet.start('--prefetch-multiplier', '2', concurrency=2, **start)
        doors = {'short': self.short, 'long': self.long, 'third': self.long, 'fourth': self.long}
        self.results = {
            name: task(self.app, 'wait_for_file', str(door), value=name).apply_async()
            for name, door in doors.items()
        }
        fleet.ledger.wait(2, 'started')
        wait_for(lambda: counts(fleet, server).leased == 4, 10, 'all are leased')
        wait_for(lambda: fleet.runs(2), 20, 'the worker has heard of both')

    def leases(self, name: str) -> bool:
        """Whether the server knows an owner of a task."""
        keys = keys_of(self.fleet)
        with self.server.client(db=database_of(self.fleet)) as client:
            return client.hexists(keys.owners, pack_id(self.results[name].id))

    def end_short_one(self) -> None:
        """Its end must be known to the server before anybody kills the worker."""
        self.short.touch()
        assert self.results['short'].get(10) == 'short'
        wait_for(lambda: not self.leases('short'), 20, 'it is settled')

    def finish_elsewhere(self, **started: int) -> None:
        """A second worker does the rest; ``started`` says how often which task began."""
        self.long.touch()
        self.fleet.start(concurrency=2)
        assert {name: result.get(20) for name, result in self.results.items()} == {
            name: name for name in self.results
        }
        wait_for_counts(self.fleet, self.server)
        expected = {name: 1 for name in self.results} | started
        assert Counter(self.fleet.ledger.values('started')) == expected


@pytest.mark.parametrize('pool', ['prefork', 'threads'])
def test_a_warm_shutdown_that_is_cut_short_loses_no_settlement(
    workers: Fleet, server: Server, tmp_path: Path, pool: str
) -> None:
    scene = Scene(workers, server, tmp_path, pool=pool)
    scene.worker.terminate()
    scene.worker.wait_for_log('Warm shutdown')
    # Until then a thread that has nothing to do would begin the next.
    wait_for(lambda: counts(workers, server).ready == 2, 20, 'what has not begun is back')
    scene.end_short_one()
    # The grace period is over.
    scene.worker.kill()
    scene.finish_elsewhere(long=2)


def test_threads_give_back_what_they_never_began(
    make_fleet: Callable[..., Fleet], server: Server, tmp_path: Path
) -> None:
    """Celery's pool drops it when it ends; nobody has to wait for a lease to end."""
    scene = Scene(make_fleet(options={'lease': 30}), server, tmp_path, pool='threads')
    scene.worker.terminate()
    scene.worker.wait_for_log('Warm shutdown')
    scene.short.touch()
    scene.long.touch()
    scene.worker.wait()
    after = counts(scene.fleet, server)
    assert after.leased == 0
    assert after.ready == 4 - len(scene.fleet.ledger.lines('ended'))
    scene.finish_elsewhere()


@pytest.mark.parametrize('how', ['remapped', pytest.param('quit', marks=pytest.mark.matrix)])
def test_a_soft_shutdown_settles_what_ends_in_time(
    make_fleet: Callable[..., Fleet], server: Server, tmp_path: Path, how: str
) -> None:
    fleet = make_fleet(config={'worker_soft_shutdown_timeout': 4})
    remap = {'REMAP_SIGTERM': 'SIGQUIT'} if how == 'remapped' else {}
    scene = Scene(fleet, server, tmp_path, **remap)
    if how == 'remapped':
        scene.worker.terminate()
    else:
        scene.worker.quit()
    scene.worker.wait_for_log('Initiating Soft Shutdown')
    # Celery sleeps in its signal handler now: only the keeper can say what ended.
    scene.end_short_one()
    scene.worker.wait(20)
    scene.finish_elsewhere(long=2, third=scene.fleet.ledger.values('started').count('third') + 1)


@pytest.mark.matrix
def test_a_soft_shutdown_of_an_idle_worker(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(
        config={'worker_soft_shutdown_timeout': 1, 'worker_enable_soft_shutdown_on_idle': True}
    )
    worker = fleet.start(concurrency=1)
    worker.quit()
    worker.wait_for_log('Initiating Soft Shutdown')
    worker.wait(10)
    assert 'Traceback' not in worker.text()


@pytest.mark.matrix
@pytest.mark.parametrize('first', ['quit', 'terminate'])
def test_a_cold_shutdown_gives_back_what_it_ends(
    workers: Fleet, server: Server, tmp_path: Path, first: str
) -> None:
    scene = Scene(workers, server, tmp_path)
    scene.end_short_one()
    workers.ledger.wait(3, 'started')
    if first == 'terminate':
        scene.worker.terminate()
        scene.worker.wait_for_log('Warm shutdown')
    scene.worker.quit()
    scene.worker.wait_for_log('Cold shutdown')
    scene.worker.wait(20)
    scene.finish_elsewhere(long=2, third=2)


@pytest.mark.matrix
@pytest.mark.parametrize('away', ['hangs', 'is down'])
def test_a_shutdown_without_a_server_ends_and_says_what_it_could_not_send(
    make_fleet: Callable[..., Fleet], server: Server, tmp_path: Path, away: str
) -> None:
    with Server(server.binary, appendfsync='always') as own:
        fleet = make_fleet(
            broker=f'reliable+{own.url()}',
            options={'socket_timeout': 1},
            config={'task_ignore_result': True},
        )
        app = fleet.app()
        worker = fleet.start('--prefetch-multiplier', '2', concurrency=1)
        door = tmp_path / 'door'
        task(app, 'wait_for_file', str(door), value='running').apply_async()
        task(app, 'run', value='waiting').apply_async()
        fleet.ledger.wait(1, 'started')
        wait_for(lambda: counts(fleet, own).leased == 2, 10, 'both are leased')
        if away == 'hangs':
            own.pause()
        else:
            own.stop()
        door.touch()
        fleet.ledger.wait(1, 'ran', value='waiting')
        worker.terminate()
        told_at = time.monotonic()
        worker.wait(40)
        print(f'{away}: ended after {time.monotonic() - told_at:.1f} s')
        assert 'could not be sent' in worker.text()
        assert 'Traceback' not in worker.text()
        if away == 'hangs':
            own.resume()
        else:
            own.start()
        # Nothing is left behind.  What the server never heard of runs once more; a server that
        # hung finds the settlements in its sockets.
        fleet.start(concurrency=1)
        wait_for_counts(fleet, own)
        times = Counter(fleet.ledger.values('ended') + fleet.ledger.values('ran'))
        assert set(times) == {'running', 'waiting'}
        assert set(times.values()) <= ({2} if away == 'is down' else {1, 2})
        fleet.close()


def test_a_restart_by_sighup_loses_and_doubles_nothing(workers: Fleet, server: Server) -> None:
    """Celery ends the worker warmly and starts it anew in the same process."""
    app = workers.app()
    # Celery cannot restart what ``python -m`` has started.
    program = [str(Path(sys.executable).with_name('celery'))]
    worker = workers.start('--prefetch-multiplier', '8', concurrency=2, program=program)
    results = [task(app, 'add', i, i).apply_async() for i in range(300)]
    workers.ledger.wait(80, 'ran')
    worker.process.send_signal(signal.SIGHUP)
    wait_for(lambda: worker.text().count(' ready.') == 2, 20, 'restart')
    assert [result.get(30) for result in results] == [2 * i for i in range(300)]
    assert len(workers.ledger.lines('ran')) == 300
    wait_for_counts(workers, server)


@pytest.mark.parametrize(
    'recycling',
    [
        ('--max-tasks-per-child', '7'),
        pytest.param(('--max-memory-per-child', '1000'), marks=pytest.mark.matrix),
    ],
)
def test_recycled_pool_processes_run_each_task_once(
    workers: Fleet, server: Server, recycling: tuple[str, str]
) -> None:
    app = workers.app()
    worker = workers.start('--prefetch-multiplier', '8', *recycling, concurrency=2)
    results = [task(app, 'add', i, i).apply_async() for i in range(150)]
    assert [result.get(60) for result in results] == [2 * i for i in range(150)]
    ran = workers.ledger.lines('ran')
    assert len(ran) == 150
    assert len({entry['pid'] for entry in ran}) > 20
    wait_for_counts(workers, server)
    assert 'lease was lost' not in worker.text()


@pytest.mark.parametrize(
    'number', [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.matrix)]
)
def test_the_end_of_a_worker_outlasts_a_short_outage(
    make_fleet: Callable[..., Fleet],
    server: Server,
    database: int,
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        fleet = make_fleet(
            broker=f'reliable+{proxy.url(database)}', backend=f'reliable+{server.url(database)}'
        )
        door = tmp_path / 'door'
        program = [str(Path(sys.executable).with_name('celery'))]
        worker = fleet.start(concurrency=1, program=program)
        app = fleet.app(broker=f'reliable+{server.url(database)}')
        result = task(app, 'wait_for_file', str(door), value='x').apply_async()
        fleet.ledger.wait(1, 'started')
        worker.process.send_signal(number)
        proxy.refuse()
        proxy.cut()
        door.touch()
        assert result.get(20) == 'x'
        # The worker has nothing left to do but to say so.
        back_at = time.monotonic() + 1
        wait_for(lambda: time.monotonic() > back_at, 20)
        proxy.refuse(False)
        wait_for_counts(fleet, server, timeout=20)
        assert len(fleet.ledger.lines('started')) == 1
        fleet.close()
