"""Tasks of a plain Celery app that wait for others: headers, queues and workers, no results."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.result import AsyncResult

from kombu_reliable.errors import DependencyCycle, InvalidMessage
from kombu_reliable.keys import Keys
from kombu_reliable.scripts import all_scripts
from kombu_reliable.store import Store
from tests.support.faults import database_of, keys_of, store_of
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, Worker, fleet, task

QUEUES = ('one', 'two', 'three')
MANY = 10_000

#: For tests that kill workers; any other could lose one on a busy machine.
short_lease = pytest.mark.parametrize('lease', [1])

NAMES = {script.sha: script.name for script in all_scripts()}


@pytest.fixture
def lease() -> int:
    return 30


@pytest.fixture
def crew(make_fleet: Callable[..., Fleet], lease: int) -> Fleet:
    """Nobody keeps results: dependencies need none."""
    return make_fleet(options={'lease': lease}, config={'task_ignore_result': True})


@pytest.fixture
def app(crew: Fleet) -> Celery:
    return crew.app()


@pytest.fixture
def store(crew: Fleet, server: Server) -> Iterator[Store]:
    store = store_of(crew, server)
    yield store
    store.client.close()


def after(
    app: Celery, on: Sequence[AsyncResult | str | dict[str, Any]], name: str, *args: Any,
    policy: str | None = None, queue: str = 'one', **options: Any,
) -> AsyncResult:  # fmt: skip
    """Publishes a task that depends on others."""
    ids = [one if isinstance(one, str | dict) else one.id for one in on]
    headers: dict[str, Any] = {'x-depends-on': ids} if ids else {}
    if policy is not None:
        headers['x-dependency-policy'] = policy
    signature = task(app, name, *args)
    return signature.apply_async(queue=queue, headers=headers, **options)


def start(crew: Fleet, *queues: str, concurrency: int = 2, **options: Any) -> Worker:
    return crew.start('-Q', ','.join(queues or QUEUES), concurrency=concurrency, **options)


def edges_left(store: Store) -> list[str]:
    """What only dependencies leave in Redis."""
    keys = store.keys
    families = [keys.wanted, keys.releases, keys.expected, keys.dependents('*'), keys.unmet('*')]
    families += [keys.waiting('*')]
    return [key.decode() for family in families for key in store.client.keys(family)]


def is_over(store: Store, result: AsyncResult) -> bool:
    return store.jobs.get(result.id) is None


# -- order ----------------------------------------------------------------------------------


@short_lease
def test_a_diamond_whose_worker_is_killed_at_every_step(
    crew: Fleet, app: Celery, store: Store, tmp_path: Path
) -> None:
    """While a task runs, and between its end and the next start; each ends once, in order."""
    doors = {name: tmp_path / name for name in 'abcd'}

    def add(name: str, *on: AsyncResult, **options: Any) -> AsyncResult:
        return after(app, on, 'wait_for_file', str(doors[name]), name, **options)

    a = add('a', queue='one')
    b = add('b', a, queue='two', countdown=4)
    c = add('c', a, queue='three')
    d = add('d', b, c, queue='one')
    published = time.time()
    for name, result in zip('acbd', (a, c, b, d), strict=True):
        victim = start(crew)
        crew.ledger.wait(1, 'started', 30, value=name)
        victim.kill()
        survivor = start(crew)
        crew.ledger.wait(2, 'started', 30, value=name)
        assert name not in crew.ledger.values('ended')
        doors[name].touch()
        wait_for(lambda result=result: is_over(store, result), 30, f'{name} is over')
        survivor.kill()
    assert crew.ledger.values('ended') == ['a', 'c', 'b', 'd']
    first = {name: crew.ledger.lines('started', value=name)[0]['at'] for name in 'abcd'}
    ends = {name: crew.ledger.lines('ended', value=name)[0]['at'] for name in 'abcd'}
    assert ends['a'] <= min(first['b'], first['c'])
    assert max(ends['b'], ends['c']) <= first['d']
    assert first['b'] >= published + 4 - 0.1, 'its own delay'
    # Each was started by the worker that was killed, and by the next one.
    assert min(Counter(crew.ledger.values('started')).values()) >= 2
    assert not edges_left(store)


@short_lease
def test_a_worker_that_dies_after_the_work_and_before_the_ack(
    crew: Fleet, app: Celery, store: Store
) -> None:
    """The dependency runs again, the dependent once."""
    p = after(app, [], 'run', 'p')
    d = after(app, [p], 'run', 'd', queue='two')
    crew.kill_next_worker('after-run')
    start(crew)
    crew.ledger.wait(1, 'ran', value='p')
    start(crew)
    wait_for(lambda: is_over(store, d), 30, 'the dependent is over')
    assert crew.ledger.values('ran') == ['p', 'p', 'd']
    assert not edges_left(store)


def test_what_is_done_already_and_what_is_still_to_come(
    crew: Fleet, app: Celery, store: Store
) -> None:
    start(crew)
    done = after(app, [], 'run', 'done')
    wait_for(lambda: is_over(store, done), 20, 'the first is over')
    after(app, [done], 'run', 'after done')
    crew.ledger.wait(1, 'ran', value='after done')

    coming = 'an-id-that-is-chosen-beforehand'
    after(app, [{'id': coming, 'expected': 600}, done], 'run', 'after coming')
    late = 'one-that-never-comes'
    lost = after(app, [{'id': late, 'expected': 0.5}], 'run', 'after late')
    wait_for(lambda: store.counts('one').dead == 1, 20, 'one has failed')
    job = store.jobs.get(lost.id)
    assert job is not None and job.failure is not None
    assert job.failure.reason == 'dependency-timeout'
    assert 'after coming' not in crew.ledger.values('ran')
    after(app, [], 'run', 'coming', task_id=coming, queue='two', countdown=0.5)
    crew.ledger.wait(1, 'ran', value='after coming')
    assert crew.ledger.values('ran')[-2:] == ['coming', 'after coming']
    wait_for(lambda: not edges_left(store), 20, 'nothing is left')


def test_a_dependency_that_is_delayed_or_retried(crew: Fleet, app: Celery, store: Store) -> None:
    start(crew)
    delayed = after(app, [], 'run', 'delayed', countdown=1.0)
    flaky = after(app, [], 'flaky', 2, 0.3, queue='two')
    d = after(app, [delayed, flaky], 'run', 'd', queue='three')
    wait_for(lambda: is_over(store, d), 30, 'the dependent is over')
    assert [entry['task'] for entry in crew.ledger.lines('ran')].count('flaky') == 3
    assert crew.ledger.lines('ran')[-1]['value'] == 'd'


def test_a_dependent_that_is_retried_does_not_wait_again(
    crew: Fleet, app: Celery, store: Store
) -> None:
    """Its headers are copied to the next run, but not these."""
    p = after(app, [], 'run', 'p')
    d = after(app, [p], 'flaky', 2)
    start(crew)
    wait_for(lambda: is_over(store, d), 30, 'the dependent is over')
    assert [entry['task'] for entry in crew.ledger.lines('ran')] == ['run'] + 3 * ['flaky']


# -- failure --------------------------------------------------------------------------------


def test_dependents_of_a_failed_task_wait_until_it_was_replayed(
    crew: Fleet, app: Celery, store: Store, tmp_path: Path
) -> None:
    door = tmp_path / 'door'
    start(crew)
    p = after(app, [], 'reject_until', str(door), 'p')
    d = after(app, [p], 'run', 'd', queue='two')
    e = after(app, [d], 'run', 'e', queue='three')
    wait_for(lambda: store.counts('one').dead == 1, 20, 'the first has failed')
    later = after(app, [p], 'run', 'later')
    assert store.counts('two').waiting == 1
    door.touch()
    store.jobs.replay(p.id)
    wait_for(lambda: is_over(store, e) and is_over(store, later), 20, 'all is over')
    ran = crew.ledger.values('ran')
    assert ran[:2] == ['p', 'p'] and set(ran[2:]) == {'d', 'e', 'later'}
    assert not edges_left(store)


def test_a_chain_that_fails_with_its_first_task(crew: Fleet, app: Celery, store: Store) -> None:
    start(crew)
    chain = [after(app, [], 'reject', False)]
    for number, queue in enumerate(QUEUES):
        chain.append(after(app, chain[-1:], 'run', number, policy='fail', queue=queue))
    wait_for(lambda: sum(store.counts(queue).dead for queue in QUEUES) == 4, 20, 'all have failed')
    for before, result in itertools.pairwise(chain):
        job = store.jobs.get(result.id)
        assert job is not None and job.failure is not None
        assert job.failure.reason == 'dependency'
        cause: Any = store.client.hget(store.keys.extra(job.key), 'cause')
        first = store.jobs.get(before.id)
        assert first is not None and cause.decode() == first.key
    assert [entry['task'] for entry in crew.ledger.lines('ran')] == ['reject']
    assert not edges_left(store)


def test_a_failure_that_is_ignored(crew: Fleet, app: Celery, store: Store) -> None:
    start(crew)
    p = after(app, [], 'reject', False)
    d = after(app, [p], 'run', 'd', policy='ignore', queue='two')
    wait_for(lambda: is_over(store, d), 20, 'the dependent is over')
    e = after(app, [p], 'run', 'e', policy='ignore', queue='two')
    wait_for(lambda: is_over(store, e), 20, 'the next one as well')
    assert store.counts('one').dead == 1
    assert not edges_left(store)


# -- bad input ------------------------------------------------------------------------------

ONESELF = 'oneself'


@pytest.mark.parametrize(
    'headers',
    [
        {'x-depends-on': 'abc'},
        {'x-depends-on': 7},
        {'x-depends-on': [7]},
        {'x-depends-on': [None]},
        {'x-depends-on': ['']},
        {'x-depends-on': ['\ud800']},
        {'x-depends-on': [object()]},
        {'x-depends-on': [{'expected': 3}]},
        {'x-depends-on': [{'id': 'a', 'timeout': 3}]},
        *({'x-depends-on': [{'id': 'a', 'expected': n}]} for n in (-1, 0, True, 'x', 1e300)),
        *({'x-depends-on': [{'id': 'a', 'expected': float(n)}]} for n in ('nan', 'inf')),
        {'x-depends-on': ['a'], 'x-dependency-policy': 'retry'},
        {'x-depends-on': ['a'], 'x-dependency-policy': 1},
        {'x-depends-on': ['a'], 'x-dependency-policy': ['wait']},
    ],
)
def test_nonsense_is_refused_when_it_is_published(
    app: Celery, store: Store, headers: dict[str, Any]
) -> None:
    with pytest.raises(InvalidMessage, match='x-depend'):
        task(app, 'run').apply_async(task_id=ONESELF, headers=headers)
    assert not store.client.keys(store.keys.job('*'))


@pytest.mark.parametrize('dependency', [ONESELF, {'id': ONESELF, 'expected': 3}])
def test_nothing_depends_on_itself(app: Celery, store: Store, dependency: Any) -> None:
    with pytest.raises(DependencyCycle, match='x-depend'):
        task(app, 'run').apply_async(task_id=ONESELF, headers={'x-depends-on': [dependency]})
    assert not store.client.keys(store.keys.job('*'))


def test_a_cycle_is_refused_when_it_is_published(app: Celery, store: Store) -> None:
    after(app, [{'id': 'b', 'expected': 60}], 'run', task_id='a')
    after(app, ['a'], 'run', task_id='c')
    with pytest.raises(DependencyCycle, match='wait for itself'):
        after(app, ['c'], 'run', task_id='b')
    assert store.jobs.get('b') is None
    assert store.counts('one').waiting == 2


# -- many, and none -------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_many_dependents_of_one_task(crew: Fleet, app: Celery, store: Store) -> None:
    p = after(app, [], 'run', 'p')
    for number in range(MANY):
        after(app, [p], 'run', number, queue='two')
    assert store.counts('two').waiting == MANY
    first, second = start(crew), start(crew)
    wait_for(lambda: store.counts('two').waiting == 0, 60, 'all are released')
    released = time.time()
    ended = crew.ledger.lines('ran', value='p')[0]['at']
    print(f'{MANY} dependents released within {released - ended:.2f} s')
    crew.ledger.wait(MANY + 1, 'ran', 120)
    wait_for(lambda: store.counts('two').leased == 0, 20, 'all are settled')
    assert Counter(crew.ledger.values('ran')) == dict.fromkeys(['p', *range(MANY)], 1)
    assert crew.ledger.values('ran')[0] == 'p'
    assert not edges_left(store)
    for worker in (first, second):
        assert 'Traceback' not in worker.text()


@pytest.mark.timeout(240)
def test_one_task_with_many_dependencies(crew: Fleet, app: Celery, store: Store) -> None:
    some = [after(app, [], 'run', number, queue='two') for number in range(MANY // 5)]
    missing = [f'finished-long-ago-{number}' for number in range(MANY - len(some))]
    d = after(app, [*some, *missing], 'run', 'd')
    job = store.jobs.get(d.id)
    assert job is not None
    assert len(store.edges.unmet(job.key)) == len(some)
    start(crew)
    wait_for(lambda: is_over(store, d), 120, 'it is over')
    ran = crew.ledger.values('ran')
    assert len(ran) == len(set(map(str, ran))) == len(some) + 1
    assert ran[-1] == 'd'
    assert not edges_left(store)


def wait_for_silence(proxy: Proxy, seconds: float = 2) -> None:
    """Until nothing has been sent for a while."""
    sent, since = -1, time.monotonic()

    def is_silent() -> bool:
        nonlocal sent, since
        now = len(proxy.seen())
        if now != sent:
            sent, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    wait_for(is_silent, 30, 'silence')


def test_nobody_polls_while_tasks_wait(
    server: Server, database: int, url: str, tmp_path: Path
) -> None:
    """A worker with hundreds of waiting tasks sends what an idle one sends; then it is quick."""
    with (
        Proxy(('127.0.0.1', server.port)) as proxy,
        fleet(tmp_path, url, options={'lease': 30}, config={'task_ignore_result': True}) as crew,
    ):
        app = crew.app()
        door = tmp_path / 'door'
        p = after(app, [], 'wait_for_file', str(door), 'p', queue='elsewhere')
        for number in range(300):
            after(app, [p], 'run', number)
        after(app, [{'id': 'coming', 'expected': 3600}], 'run', 'never')
        crew.start('-Q', 'elsewhere', concurrency=1)
        crew.ledger.wait(1, 'started')
        crew.start(
            '--without-heartbeat', '--without-gossip', '--without-mingle', '-Q', 'one',
            concurrency=1, ready=False, broker=f'reliable+{proxy.url(database)}',
        )  # fmt: skip
        crew.workers[1].wait_for_log(' ready.')
        wait_for_silence(proxy)  # what comes once after the start
        proxy.clear()
        time.sleep(6)  # the silence itself is what is measured
        sent = Counter(NAMES.get(command.sha or '', command.name) for command in proxy.seen())
        print(f'an idle worker, 300 tasks wait: {sent.total()} commands in 6 s: {dict(sent)}')
        assert sent.total() <= 5, sent
        door.touch()
        crew.ledger.wait(300, 'ran', 30)
        ended = crew.ledger.lines('ended')[0]['at']
        first = crew.ledger.lines('ran')[0]['at']
        print(f'the first dependent started {1000 * (first - ended):.1f} ms after the end')
        assert first - ended < 5, 'a sleeping worker looks by itself every 10 s'


def test_the_latency_of_a_release(crew: Fleet, app: Celery) -> None:
    """From the end of a task in one worker to the start of its dependent in another."""
    start(crew, 'one', concurrency=1)
    start(crew, 'two', concurrency=1)
    late = []
    for number in range(20):
        p = after(app, [], 'sleep', 0.05, f'p{number}')
        after(app, [p], 'run', number, queue='two')
        ran = crew.ledger.wait(1, 'ran', value=number)[0]['at']
        late.append(ran - crew.ledger.lines('ended', value=f'p{number}')[0]['at'])
    late.sort()
    print(f'latency p50 {1000 * late[10]:.1f} ms, longest {1000 * late[-1]:.1f} ms')
    assert late[10] < 2, 'a sleeping worker looks by itself every 10 s'


def test_apps_without_dependencies_leave_no_trace(crew: Fleet, app: Celery, store: Store) -> None:
    start(crew)
    for number in range(50):
        after(app, [], 'run', number)
    crew.ledger.wait(50, 'ran')
    wait_for(lambda: store.counts('one').leased == 0, 20, 'all are settled')
    assert not edges_left(store)
    assert keys_of(crew) == Keys(database_of(crew))
