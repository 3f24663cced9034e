"""The ways in which workers are run and watched: credit, neighbours, remote control, commands."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

WAIT = 20

matrix = pytest.mark.matrix


class Gauge:
    """Watches how many messages of a database are leased."""

    def __init__(self, server: Server, number: int) -> None:
        self._client = server.client(db=number)
        self._key = f'{{kr:{number}:0}}:own'
        self._stop = threading.Event()
        self.peak = 0

    def now(self) -> int:
        return int(self._client.hlen(self._key))

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.peak = max(self.peak, self.now())


@pytest.fixture
def gauge(server: Server, database: int) -> Iterator[Gauge]:
    made = Gauge(server, database)
    with made.watching():
        yield made
    made._client.close()


# -- credit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ('pool', 'arguments', 'credit'),
    [
        pytest.param('prefork', ('--autoscale=4,1', '--prefetch-multiplier=1'), 4, id='autoscale'),
        pytest.param('prefork', ('--disable-prefetch',), 2, id='disable-prefetch'),
        pytest.param(
            'prefork', ('-O', 'fair', '--prefetch-multiplier=2'), 4, id='fair', marks=matrix
        ),
        *(
            pytest.param(
                pool, (argument, '--prefetch-multiplier=1'), credit, id=f'{pool}{argument}',
                marks=matrix,
            )
            for pool, argument, credit in (
                ('threads', '--disable-prefetch', 2),
                ('gevent', '--disable-prefetch', 2),
                ('eventlet', '--disable-prefetch', 2),
                ('gevent', '--autoscale=4,1', 4),
                ('eventlet', '--autoscale=4,1', 4),
                ('threads', '-Ofair', 2),
                ('gevent', '-Ofair', 2),
            )
        ),
    ],
)  # fmt: skip
def test_no_more_is_claimed_than_the_credit(
    workers: Fleet, gauge: Gauge, pool: str, arguments: tuple[str, ...], credit: int
) -> None:
    app = workers.app()
    workers.start(*arguments, pool=pool)
    results = [task(app, 'sleep', 0.1, value=i).apply_async() for i in range(12)]
    # What is due later is counted when it is claimed, not when it was published.
    results += [task(app, 'sleep', 0.1, value=i).apply_async(countdown=0.5) for i in range(12, 20)]
    assert [result.get(WAIT) for result in results] == list(range(20))
    wait_for(lambda: not gauge.now(), WAIT, 'all are settled')
    assert gauge.peak == credit
    assert len(workers.ledger.lines('started')) == 20


def test_a_prefetch_of_zero_is_no_limit(
    make_fleet: Callable[..., Fleet], gauge: Gauge, tmp_path: Path
) -> None:
    # Celery takes a zero on its command line for no answer.
    workers = make_fleet(config={'worker_prefetch_multiplier': 0})
    app = workers.app()
    door = tmp_path / 'door'
    results = [task(app, 'wait_for_file', str(door), value=i).apply_async() for i in range(130)]
    workers.start()
    # More than one claim takes at once.
    wait_for(lambda: gauge.now() == 130, WAIT, 'all are leased')
    door.touch()
    assert [result.get(WAIT) for result in results] == list(range(130))
    assert len(workers.ledger.lines('started')) == 130


@pytest.mark.parametrize(
    'argument',
    ['--max-tasks-per-child=3', pytest.param('--max-memory-per-child=1', marks=matrix)],
)
def test_pool_processes_are_replaced_without_a_loss(workers: Fleet, argument: str) -> None:
    app = workers.app()
    workers.start(argument)
    results = [task(app, 'run', value=i).apply_async() for i in range(12)]
    assert [result.get(30) for result in results] == list(range(12))
    runs = Counter(entry['pid'] for entry in workers.ledger.lines('ran'))
    assert sum(runs.values()) == 12
    assert max(runs.values()) <= 3


# -- neighbours ------------------------------------------------------------------


def test_workers_find_each_other_and_share_what_is_revoked(workers: Fleet) -> None:
    app = workers.app()
    workers.start('-E', pool='threads')
    app.control.revoke('revoked-before', reply=True, timeout=WAIT, limit=1)
    second = workers.start('-E', pool='gevent')
    for _ in range(4):
        # Celery waits for a second for its neighbours, and a busy machine may need longer.
        found = wait_for(lambda: re.search('sync complete|all alone', second.text()), WAIT)  # noqa: B023
        if found[0] == 'sync complete':
            break
        second.terminate()
        second.wait()
        second = workers.start('-E', pool='gevent')
    name = f'{second.name}@test'

    def ask(question: str) -> Any:
        """Under greenlets a worker is ready before it listens."""
        inspect = app.control.inspect(['w1@test', name], timeout=2)
        return wait_for(
            lambda: found if len(found := getattr(inspect, question)() or {}) == 2 else None, WAIT
        )

    assert ask('revoked')[name] == ['revoked-before']
    assert ask('ping') == {'w1@test': {'ok': 'pong'}, name: {'ok': 'pong'}}


@matrix
def test_workers_notice_that_a_neighbour_is_silent(workers: Fleet) -> None:
    first = workers.start('-E', pool='threads')
    second = workers.start('-E', pool='threads')
    # Each hears the other's heartbeats, until they end.
    second.wait_for_log('sync complete')
    second.kill()
    first.wait_for_log('missed heartbeat from w2@test', timeout=30)


# -- remote control --------------------------------------------------------------

#: What Celery's pools can do while they run.
GROWING = ('prefork', 'gevent', 'eventlet')


@matrix
@pytest.mark.parametrize('pool', ['prefork', 'threads', 'gevent', 'eventlet'])
def test_remote_control(workers: Fleet, tmp_path: Path, pool: str) -> None:
    app = workers.app()
    worker = workers.start('--prefetch-multiplier=2', pool=pool, concurrency=1)
    control, name = app.control, 'w1@test'

    def ask(question: str, *arguments: Any) -> Any:
        inspect = control.inspect(timeout=10, limit=1)
        return getattr(inspect, question)(*arguments)[name]

    def tell(command: str, *arguments: Any, **options: Any) -> Any:
        options |= {'reply': True, 'timeout': 10, 'limit': 1}
        [reply] = getattr(control, command)(*arguments, **options)
        return reply[name]

    def queues() -> set[str]:
        return {queue['name'] for queue in ask('active_queues')}

    door = tmp_path / 'door'
    first = task(app, 'wait_for_file', str(door), value='x').apply_async()
    workers.ledger.wait(1, 'started')
    assert [entry['id'] for entry in ask('active')] == [first.id]
    assert ask('stats')['broker']['transport'] == 'reliable'
    assert 'tests.support.app.run' in ask('registered')
    assert queues() == {'celery'}
    assert ask('query_task', first.id)[first.id][0] == 'active'
    assert 'ok' in tell('rate_limit', 'tests.support.app.run', '100/s')
    assert 'ok' in tell('add_consumer', 'more')
    if pool in GROWING:
        second = task(app, 'run', 'grown').apply_async()
        assert 'ok' in tell('pool_grow', 1)
        assert second.get(WAIT) == 'grown'
        assert 'ok' in tell('pool_shrink', 1)
    door.touch()
    assert first.get(WAIT) == 'x'
    assert task(app, 'run', 'y').apply_async(queue='more').get(WAIT) == 'y'
    assert 'ok' in tell('cancel_consumer', 'more')
    # Under greenlets Celery does so in its next turn.
    wait_for(lambda: queues() == {'celery'}, WAIT, 'one queue')
    parked = task(app, 'run', 'z').apply_async(queue='more')
    assert task(app, 'run', 'passed').apply_async().get(WAIT) == 'passed'
    assert not workers.ledger.lines('ran', id=parked.id)
    control.shutdown()
    assert worker.wait() == 0


# -- commands --------------------------------------------------------------------


@pytest.fixture
def celery(workers: Fleet) -> Callable[..., str]:
    """Runs a command and returns what it says."""

    def run(*arguments: str, code: int = 0) -> str:
        done = workers.run('celery', '-A', 'tests.support.app', *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def test_commands_about_messages(workers: Fleet, celery: Callable[..., str]) -> None:
    app = workers.app()
    for value in range(5):
        task(app, 'run', value).apply_async()
    task(app, 'run', 'later').apply_async(countdown=60)
    assert 'Purged 6 messages' in celery('purge', '-f')
    workers.start(concurrency=1)
    id = celery('call', 'tests.support.app.add', '--args', '[2, 3]').strip()
    assert app.AsyncResult(id).get(WAIT) == 5
    assert celery('result', id).strip() == '5'


@matrix
def test_commands_about_workers(workers: Fleet, celery: Callable[..., str]) -> None:
    celery('status', code=69)
    workers.start(concurrency=1)
    assert 'w1@test: OK' in celery('status', '-t', '5')
    assert 'pong' in celery('inspect', 'ping', '-t', '5')
    assert 'transport:reliable' in celery('report')
    # Nobody answers this one.
    celery('control', 'shutdown', code=69)
    assert workers.workers[0].wait() == 0


@matrix
def test_multi_starts_and_stops_workers(workers: Fleet, tmp_path: Path) -> None:
    app = workers.app()

    def multi(command: str) -> None:
        done = workers.run(
            'celery', 'multi', command, '2', '-A', 'tests.support.app', '-c', '1', '-l', 'INFO',
            f'--pidfile={tmp_path}/%n.pid', f'--logfile={tmp_path}/%n.log',
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    multi('start')
    pids = []
    try:
        wait_for(lambda: len(list(tmp_path.glob('*.pid'))) == 2, WAIT, 'two workers')
        pids = [path.read_text() for path in tmp_path.glob('*.pid')]
        results = [task(app, 'sleep', 0.05, value=i).apply_async() for i in range(20)]
        assert [result.get(WAIT) for result in results] == list(range(20))
    finally:
        multi('stopwait')
    assert len(set(pids)) == 2
    assert not list(tmp_path.glob('*.pid'))
    assert len(workers.ledger.lines('started')) == 20
