"""From kombu's redis transport to ours and back, with real workers, producers and kills."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.bin.celery import celery
from click.testing import CliRunner
from kombu import Connection, Exchange, Queue

import celery_ext
from celery_ext.migrate import Migration
from celery_ext.migrate_back import Back
from celery_ext.migrate_forward import Forward
from celery_ext.ticks import TICKS
from kombu_reliable import Store, WrongState, open_store
from tests.support import sentinels
from tests.support.servers import Server, available
from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet, fleet, task

PRIORITIES = (0, 3, 6, 9)

#: Where kombu's redis transport keeps the messages of a queue.
LISTS = ('celery', *(f'celery\x06\x16{step}' for step in (3, 6, 9)))


class Crash(BaseException):
    """Stands for SIGKILL in a test that wants it at a certain line."""


@pytest.fixture
def stock_url(server: Server, database: int) -> str:
    return f'redis://127.0.0.1:{server.port}/{database}'


@pytest.fixture
def old(tmp_path: Path, stock_url: str) -> Iterator[Fleet]:
    """A fleet on kombu's redis transport; it shares the ledger with the new one."""
    with fleet(tmp_path, stock_url, options={'visibility_timeout': 3600}) as made:
        yield made


@pytest.fixture
def new(tmp_path: Path, url: str, old: Fleet) -> Iterator[Fleet]:
    """A fleet on ours, with an own place for its logs."""
    (tmp_path / 'new').mkdir()
    with fleet(tmp_path / 'new', url, module='tests.support.installed') as made:
        made.ledger = old.ledger
        yield made


def publish(app: Celery, values: Any, **options: Any) -> None:
    with app.connection_for_write() as connection, connection.Producer() as producer:
        for value in values:
            task(app, 'run', value).apply_async(producer=producer, **options)


def migrate(app: Celery, source: str | None = None, target: str | None = None, **how: Any) -> Any:
    with Migration(app, source, target, **how) as migration:
        migration.run()
        migration.end()
        return migration.report()


def values_of(store: Store, queue: str = 'celery', state: Any = 'ready') -> list[Any]:
    """The first arguments of jobs, in the order in which they will be claimed."""
    found: list[Any] = []
    while page := store.jobs.in_state(queue, state, len(found), 500):
        found += [body_of(job.envelope) for job in page]
    return found


def body_of(envelope: bytes) -> Any:
    from kombu_reliable.envelope import unseal

    return json.loads(unseal(envelope)[1])[0][0]


def stock_values(client: redis.Redis, key: str) -> list[Any]:
    """The first arguments of the messages in a list, in the order in which they will be popped."""
    import base64

    raw: Any = client.lrange(key, 0, -1)
    messages = [json.loads(one) for one in raw[::-1]]
    return [json.loads(base64.b64decode(one['body']))[0][0] for one in messages]


@pytest.fixture
def store(new: Fleet) -> Store:
    return open_store(new.app().connection_for_write())


@pytest.fixture
def client(server: Server, database: int) -> Iterator[redis.Redis]:
    with server.client(db=database) as client:
        yield client


# -- what moves ------------------------------------------------------------------


def test_priorities_are_turned_round_and_the_order_is_kept(
    old: Fleet, new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:
    app = old.app()
    for priority in (6, 0, 9, 3):
        publish(app, [[priority, n] for n in range(3)], priority=priority)
    report = migrate(new.app(), stock_url)
    assert report['moved'] == 12
    expected = [[priority, n] for priority in PRIORITIES for n in range(3)]
    assert values_of(store) == expected
    assert [job.priority for job in store.jobs.in_state('celery', 'ready')][::3] == [9, 6, 3, 0]
    assert not client.exists(*LISTS)

    back = migrate(new.app(), target=stock_url)
    assert back['moved'] == 12
    for priority, key in zip(PRIORITIES, LISTS, strict=True):
        assert stock_values(client, key) == [[priority, n] for n in range(3)]
    assert not store.jobs.counts('celery').ready
    assert not [key for key in list(client.scan_iter()) if b'migrate' in key]


def test_lowest_first_keeps_the_numbers(
    old: Fleet, new: Fleet, url: str, stock_url: str
) -> None:  # fmt: skip
    publish(old.app(), ['later'], priority=9)
    publish(old.app(), ['first'], priority=0)
    new.options['priority_order'] = 'lowest-first'
    app = new.app()
    migrate(app, stock_url)
    store = open_store(app.connection_for_write())
    assert values_of(store) == ['first', 'later']
    assert [job.priority for job in store.jobs.in_state('celery', 'ready')] == [0, 9]


def test_prefixes_steps_and_separator_of_both_sides(
    new: Fleet, server: Server, url: str, stock_url: str
) -> None:
    options = {'global_keyprefix': 'old.', 'sep': ':', 'priority_steps': [0, 5]}
    app = Celery(broker=stock_url)
    app.conf.broker_transport_options = options
    publish(app, ['first'], priority=0)
    publish(app, ['later'], priority=7)
    new.options['global_keyprefix'] = 'new.'
    app = new.app()
    report = migrate(app, stock_url, options=options)
    assert report['moved'] == 2
    assert values_of(open_store(app.connection_for_write())) == ['first', 'later']
    with server.client(db=int(url.rpartition('/')[2])) as client:
        own = [key for key in list(client.scan_iter()) if b'{kr:' in key]
    assert own and all(key.startswith(b'new.') for key in own)


def test_another_server_and_named_exchanges(
    new: Fleet, url: str, store: Store, tmp_path: Path
) -> None:
    with Server('valkey') as other:
        source = f'redis://127.0.0.1:{other.port}/3'
        with Connection(source) as connection, connection.Producer() as producer:
            orders = Queue('orders', Exchange('shop', 'topic'), 'order.#')
            producer.publish(
                [['an order'], {}, {}], exchange=orders.exchange, routing_key='order.paid',
                declare=[orders], headers={'task': 'tests.support.app.run', 'id': 'order-1'},
                priority=3,
            )  # fmt: skip
        report = migrate(new.app(), source)
        assert report['queues'] == [{'queue': 'orders', 'ready': 1, 'unacked': 0}]
        job = store.jobs.get('order-1')
        assert job is not None and job.queue == 'orders'
        back = migrate(new.app(), target=source)
        assert back['moved'] == 1
        with other.client(db=3) as client:
            raw: Any = client.lindex('orders\x06\x163', 0)
        sent = json.loads(raw)['properties']['delivery_info']
        assert sent == {'exchange': 'shop', 'routing_key': 'order.paid'}


@pytest.fixture(params=['TLS', 'sentinels'])
def guarded(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A source that is reached in another way, and the options for it."""
    if request.param == 'sentinels':
        with Server('valkey') as server, sentinels.watched(server) as url:
            yield url, {'master_name': sentinels.MASTER}
    elif 'redis' not in available():
        pytest.skip('no server that knows TLS')
    else:
        with Server('redis', tls=True, password='secret') as server:
            yield f'{server.url()}?ssl_cert_reqs=required&ssl_ca_certs={server.ca_file}', {}


def test_over_tls_and_through_sentinels(
    new: Fleet, store: Store, guarded: tuple[str, dict[str, Any]]
) -> None:
    source, options = guarded
    with Connection(source, transport_options=options) as connection:
        for value in range(5):
            connection.Producer().publish(
                [[value], {}, {}], routing_key='celery', declare=[Queue('celery')],
                headers={'task': 'tests.support.app.run', 'id': f'job-{value}'},
            )  # fmt: skip
    there = [text for name, value in options.items() for text in ('--option', f'{name}={value}')]
    moved = done(command(new, '--from', source, *there))
    assert '5 messages moved' in moved and 'secret' not in moved
    assert values_of(store) == [0, 1, 2, 3, 4]
    assert '5 messages moved' in done(command(new, '--to', source, *there))
    assert migrate(new.app(), source, options=options)['moved'] == 5


def test_messages_that_cannot_be_read_are_put_aside(
    old: Fleet, new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:
    publish(old.app(), range(2))
    client.lpush('celery', b'no message', b'{"headers": {"eta": "soon"}}')
    report = migrate(new.app(), stock_url)
    assert (report['moved'], report['unreadable']) == (2, 2)
    assert client.llen(report['unreadable_key']) == 2
    assert values_of(store) == [0, 1]


def test_lists_of_others_stay(
    old: Fleet, new: Fleet, stock_url: str, client: redis.Redis
) -> None:  # fmt: skip
    publish(old.app(), range(1))
    raw: Any = client.lindex('celery', 0)
    client.lpush('foreign:celery', raw)
    client.lpush('shopping', 'milk')
    report = migrate(new.app(), stock_url)
    assert report['unknown_queues'] == ['foreign:celery']
    assert client.llen('foreign:celery') == client.llen('shopping') == 1


def test_what_wakes_those_who_fire_schedules_stays(
    new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:
    app = new.app()
    ext = celery_ext.install(app)
    ext.schedules.create('hourly', 'tests.support.app.run', 3600)
    sent = task(app, 'run', 'moved').apply_async()
    ext.jobs[sent].move('not declared')
    report = migrate(app, target=stock_url)
    assert report['queues'] == [{'queue': 'not declared', 'ready': 1, 'delayed': 0}]
    assert stock_values(client, 'not declared\x06\x169') == ['moved']
    assert store.jobs.counts(TICKS).delayed == 1


def test_without_what_kombus_transport_needs(new: Fleet, stock_url: str) -> None:
    # Others may need it as well, and have it before.
    hide = 'sys.modules["packaging.version"] = None'
    code = f'import sys; from celery.bin.celery import celery; {hide}; celery()'
    args = ['-A', new.module, 'reliable', 'migrate', '--from', stock_url]
    done = subprocess.run(
        [sys.executable, '-c', code, *args],
        cwd=ROOT, env=new.environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "pip install 'celery[redis]'" in done.stderr and 'Traceback' not in done.stderr


def test_what_others_wait_for_stays_and_waits(
    new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:
    # Programs tell the name of a queue once, and this one may have told it before the flush.
    store.run(store.operations.declare('celery'))
    app = new.app()
    celery_ext.install(app)
    first = task(app, 'run', 'first').apply_async()
    task(app, 'run', 'second').apply_async(depends_on=[first])
    task(app, 'run', 'free').apply_async()
    report = migrate(app, target=stock_url)
    assert report['stayed'] == [{'queue': 'celery', 'why': 'others wait for it', 'jobs': 1}]
    assert stock_values(client, 'celery\x06\x169') == ['free']
    counts = store.jobs.counts('celery')
    assert (counts.ready, counts.waiting) == (1, 1)


def test_what_waits_for_a_throttle_is_ready_there(
    new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:
    import celery_ext

    store.run(store.operations.declare('celery'))
    app = new.app()
    ext = celery_ext.install(app)
    ext.throttles['closed'].set(concurrency=0)
    for value in range(130):
        task(app, 'run', value).apply_async(throttles='closed')
    # One claim finds out that they have to wait.
    store.run(store.operations.claim('w', 'token', 1, ['celery']))
    assert ext.queues['celery'].counts().throttled == 130
    report = migrate(app, target=stock_url)
    assert (report['moved'], report['stayed']) == (130, [])
    assert stock_values(client, 'celery\x06\x169') == list(range(130))
    counts = store.jobs.counts('celery')
    assert (counts.ready, counts.delayed, counts.throttled) == (0, 0, 0)


def test_due_times_go_there_and_back(
    old: Fleet, new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:
    publish(old.app(), ['late'], countdown=3600)
    report = migrate(new.app(), stock_url)
    assert report['delayed'] == 1
    (job,) = store.jobs.in_state('celery', 'delayed')
    assert job.due is not None and abs(job.due / 1000 - time.time() - 3600) < 60
    migrate(new.app(), target=stock_url)
    raw: Any = client.lindex('celery', 0)
    eta = json.loads(raw)['headers']['eta']
    from datetime import datetime

    assert abs(datetime.fromisoformat(eta).timestamp() * 1000 - job.due) < 2


def test_the_command(
    old: Fleet, new: Fleet, store: Store, stock_url: str, client: redis.Redis
) -> None:  # fmt: skip
    app = new.app()

    def run(*args: str, code: int = 0, **how: Any) -> Any:
        done = CliRunner().invoke(
            celery, ['reliable', 'migrate', *args], default_map={'app': app}, **how
        )
        assert done.exit_code == code, (done.output, done.exception)
        return done

    publish(old.app(), range(3), priority=3)
    assert 'the other side' in run(code=2).stderr
    assert 'one side must be' in run('--from', 'redis://a', '--to', 'redis://b', code=1).stderr
    text = run('--from', stock_url, '--dry-run', env={'COLUMNS': '60'}).stdout
    assert 'nothing was changed' in text and 'celery      3' in text
    plan = json.loads(run('--from', stock_url, '--dry-run', '--json').stdout)
    assert (plan['dry_run'], plan['unacked']) == (True, 0)
    assert 'Move 3 messages' in run('--from', stock_url, input='n\n', code=1).stderr
    assert store.jobs.counts('celery').ready == 0
    assert '3 messages moved' in run('--from', stock_url, input='y\n').stdout
    report = json.loads(run('--to', stock_url, '-y', '--json').stdout)
    assert report['queues'] == [{'queue': 'celery', 'ready': 3, 'delayed': 0}]
    client.lpush('celery', 'no message')
    text = run('--from', stock_url, '-y', '--keep-priorities', code=1).stdout
    assert '1 messages could not be read' in text
    assert [job.priority for job in store.jobs.in_state('celery', 'ready')] == [3, 3, 3]


# -- refusals --------------------------------------------------------------------


def test_a_dry_run_changes_nothing(
    old: Fleet, new: Fleet, stock_url: str, client: redis.Redis
) -> None:  # fmt: skip
    publish(old.app(), range(5), priority=3)
    before = {key: client.dump(key) for key in list(client.scan_iter())}
    with Migration(new.app(), stock_url) as migration:
        plan = migration.plan()
    assert plan['queues'] == [
        {'queue': 'celery', 'ready': 5, 'by_priority': {'0': 0, '3': 5, '6': 0, '9': 0}}
    ]
    assert {key: client.dump(key) for key in list(client.scan_iter())} == before


@pytest.mark.parametrize('remote_control', [True, False])
def test_what_workers_hold_is_refused_while_one_lives(
    old: Fleet, new: Fleet, stock_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch,
    remote_control: bool,
) -> None:  # fmt: skip
    old.config['worker_enable_remote_control'] = remote_control
    publish(old.app(), ['late'], countdown=3600)
    worker = old.start(concurrency=1)
    wait_for(lambda: client.hlen('unacked') == 1, 10, 'a task that the worker holds')
    monkeypatch.setattr('celery_ext.migrate.PING', 5 if remote_control else 0.7)
    # As "celery -b" does it; it must not be asked on the new broker whether an old worker lives.
    monkeypatch.setenv('CELERY_BROKER_URL', new.broker)
    with pytest.raises(WrongState, match='w1@test' if remote_control else 'waits for messages'):
        migrate(new.app(), stock_url, stopped=True)
    assert client.hlen('unacked') == 1
    worker.kill()
    monkeypatch.setattr('celery_ext.migrate.PING', 0.7)
    wait_for(lambda: not Migration(new.app(), stock_url).stock.consumers(), 10, 'its end')
    report = migrate(new.app(), stock_url, stopped=True)
    assert report['queues'] == [{'queue': 'celery', 'ready': 0, 'unacked': 1}]
    assert not client.exists('unacked', 'unacked_index')


def test_two_at_once_and_two_targets(
    old: Fleet, new: Fleet, server: Server, stock_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(old.app(), range(3))
    crash_in(monkeypatch, Forward, '_forget')
    with pytest.raises(Crash):
        migrate(new.app(), stock_url)
    monkeypatch.undo()
    with Server('valkey') as other, pytest.raises(WrongState, match='run it once more'):
        migrate(old.app(), stock_url, f'reliable+redis://127.0.0.1:{other.port}/0')
    monkeypatch.setattr('celery_ext.migrate_stock.LOCK_LIFE', 60)
    with Migration(new.app(), stock_url) as first:
        first.run()
        monkeypatch.setattr('celery_ext.migrate_stock.LOCK_LIFE', 1)
        with pytest.raises(WrongState, match='another migration'):
            migrate(new.app(), stock_url)


def test_what_our_workers_hold_goes_back_when_they_have_stopped(
    new: Fleet, store: Store, stock_url: str, client: redis.Redis, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    app = new.app()
    task(app, 'wait_for_file', str(tmp_path / 'door'), 'held').apply_async()
    worker = new.start(concurrency=1)
    new.ledger.wait(1, 'started')
    publish(app, ['ready'], queue='other')
    monkeypatch.setattr('celery_ext.migrate.PING', 5)
    with pytest.raises(WrongState, match='w1@test'):
        migrate(app, target=stock_url, stopped=True)
    assert migrate(app, target=stock_url)['moved'] == 1
    assert store.jobs.counts('celery').leased == 1
    worker.kill()
    monkeypatch.setattr('celery_ext.migrate.PING', 0.7)
    report = migrate(app, target=stock_url, stopped=True)
    assert report['queues'] == [{'queue': 'celery', 'ready': 1, 'delayed': 0}]
    assert sum(client.llen(key) for key in LISTS) == 1
    assert report['left'] == [] and not store.jobs.counts('celery').leased


def test_large_messages_go_in_small_steps(
    old: Fleet, new: Fleet, store: Store, stock_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(old.app(), ['x' * 1_000_000 for _ in range(30)])
    sizes: list[int] = []
    forget = Forward._forget

    def note(self: Any, count: int, *args: Any) -> None:
        sizes.append(count)
        forget(self, count, *args)

    monkeypatch.setattr(Forward, '_forget', note)
    assert migrate(new.app(), stock_url)['moved'] == 30
    assert sizes[0] == 20 and max(sizes[1:]) <= 4
    assert store.jobs.counts('celery').ready == 30


# -- kills -----------------------------------------------------------------------


def crash_in(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, after: int = 1) -> None:
    """Ends a migration in the moment in which it calls a method for the n-th time."""
    calls = Counter[str]()
    method = getattr(owner, name)

    def crash(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        if calls[name] == after:
            raise Crash  # and it leaves its lock behind
        return method(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, crash)


@pytest.mark.parametrize('moment', ['_publish', '_forget', '_take_ready'])
def test_killed_on_the_way_there(
    old: Fleet, new: Fleet, store: Store, stock_url: str, monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:  # fmt: skip
    publish(old.app(), range(210))
    crash_in(monkeypatch, Forward, moment, after=2)
    with pytest.raises(Crash):
        migrate(new.app(), stock_url)
    monkeypatch.undo()
    publish(old.app(), range(210, 220))
    migrate(new.app(), stock_url)
    assert values_of(store) == list(range(220))


@pytest.mark.parametrize('moment', ['_empty_journal', '_put', '_read'])
@pytest.mark.parametrize('when', ['before', 'behind'])
def test_killed_on_the_way_back(
    new: Fleet, stock_url: str, client: redis.Redis, monkeypatch: pytest.MonkeyPatch, moment: str,
    when: str,
) -> None:  # fmt: skip
    publish(new.app(), range(110))
    publish(new.app(), range(110, 130), countdown=3600)
    if when == 'before':
        crash_in(monkeypatch, Back, moment, after=2)
    else:
        method, calls = getattr(Back, moment), Counter[str]()

        def crash(self: Any, *args: Any) -> Any:
            found = method(self, *args)
            calls[moment] += 1
            if calls[moment] == 2:
                raise Crash
            return found

        monkeypatch.setattr(Back, moment, crash)
    with pytest.raises(Crash):
        migrate(new.app(), target=stock_url)
    monkeypatch.undo()
    migrate(new.app(), target=stock_url)
    assert sorted(stock_values(client, 'celery\x06\x169')) == list(range(130))


@pytest.mark.parametrize(
    ('owner', 'moment', 'way'),
    [(Forward, '_publish', 'there'), (Forward, '_forget', 'there'), (Back, '_put', 'back'),
     (Back, '_forget_done', 'back')],
)  # fmt: skip
def test_one_that_was_held_up_changes_nothing_more(
    old: Fleet, new: Fleet, store: Store, stock_url: str, client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch, owner: type, moment: str, way: str,
) -> None:  # fmt: skip
    publish((old if way == 'there' else new).app(), range(130))
    side = {'source' if way == 'there' else 'target': stock_url}
    method, late = getattr(owner, moment), Counter[str]()

    def hold_up(self: Any, *args: Any) -> Any:
        late[moment] += 1
        if late[moment] == 2:
            client.delete('kombu_reliable.migrate.lock')  # as if its time had run out
            migrate(new.app(), **side)
            publish((old if way == 'there' else new).app(), range(130, 135))
        return method(self, *args)

    monkeypatch.setattr(owner, moment, hold_up)
    with pytest.raises(WrongState):
        migrate(new.app(), **side)
    migrate(new.app(), **side)
    moved = values_of(store) if way == 'there' else stock_values(client, LISTS[-1])
    assert sorted(moved) == list(range(135))


class Producer(threading.Thread):
    """Goes on publishing to the old broker until it is told to stop."""

    def __init__(self, app: Celery, first: int) -> None:
        super().__init__(daemon=True)
        self.app, self.next, self.stopping = app, first, threading.Event()

    def run(self) -> None:
        while not self.stopping.wait(0.01):
            publish(self.app, [self.next], priority=random.choice(PRIORITIES))
            self.next += 1

    def stop(self) -> int:
        self.stopping.set()
        self.join(20)
        return self.next


def command(new: Fleet, *args: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, '-m', 'celery', '-A', new.module, 'reliable', 'migrate', '-y', *args],
        cwd=ROOT, env=new.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def done(process: subprocess.Popen[bytes]) -> str:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0, text.decode()
    return text.decode()


def kill_between(new: Fleet, progress: Callable[[], int], part: int, *args: str) -> None:
    """Kills the command once it has done a part of its work."""
    process = command(new, *args)
    before = progress()
    wait_for(lambda: process.poll() is not None or abs(progress() - before) >= part, 60, 'its work')
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)


@pytest.mark.parametrize(
    ('ready', 'delayed', 'held', 'kills'),
    [
        pytest.param(600, 60, 20, 1, id='short'),
        pytest.param(17_900, 2_000, 100, 6, id='long', marks=[
            pytest.mark.matrix, pytest.mark.timeout(600)]),
    ],
)  # fmt: skip
def test_every_task_runs_once_there_and_back(
    old: Fleet, new: Fleet, store: Store, stock_url: str, client: redis.Redis, ready: int,
    delayed: int, held: int, kills: int, tmp_path: Path,
) -> None:  # fmt: skip
    """Four priorities, due times, tasks in workers' hands, a producer that goes on, SIGKILLs."""
    door, app = tmp_path / 'door', old.app()
    worker = old.start(f'--prefetch-multiplier={held + 1}', concurrency=1)
    # The worker takes one more for each task that is due later.
    publish(app, range(held, held + delayed), countdown=8 if kills == 1 else 60)
    task(app, 'wait_for_file', str(door), 'blocks').apply_async()
    publish(app, range(held))
    wait_for(lambda: client.hlen('unacked') == 1 + held + delayed, 60, 'all in its hands')

    first = held + delayed
    for number, priority in enumerate(PRIORITIES):
        publish(app, range(first + number, first + ready, 4), priority=priority)
    producer = Producer(app, first + ready)
    producer.start()

    def arrived() -> int:
        counts = store.jobs.counts('celery')
        return counts.ready + counts.delayed

    for _ in range(kills):
        kill_between(new, arrived, ready // (kills + 2), '--from', stock_url)
    done(command(new, '--from', stock_url))
    assert client.hlen('unacked') == 1 + held + delayed
    worker.kill()
    total = producer.stop()
    for _ in range(kills - 1):
        kill_between(
            new, lambda: client.hlen('unacked'), (held + delayed) // kills,
            '--from', stock_url, '--old-workers-stopped',
        )  # fmt: skip
    migrate(new.app(), stock_url, stopped=True)
    assert not list(client.scan_iter('*unacked*')) + list(client.scan_iter('*migrate*'))
    assert not client.exists(*LISTS)
    assert arrived() == total + 1

    for _ in range(kills):
        kill_between(new, arrived, total // (kills + 2), '--to', stock_url)
    migrate(new.app(), target=stock_url)
    assert sum(client.llen(key) for key in LISTS) == total + 1
    assert arrived() == 0
    for _ in range(kills - 1):
        kill_between(new, arrived, total // kills, '--from', stock_url)
    migrate(new.app(), stock_url)

    door.touch()
    new.start('-O', 'fair', '--prefetch-multiplier=4')
    wait_for(lambda: len(new.ledger.lines('ran')) >= total, 300, 'all tasks')
    wait_for(lambda: not arrived() and not store.jobs.counts('celery').leased, 60, 'an empty queue')
    ran = Counter(new.ledger.values('ran'))
    assert sorted(ran) == list(range(total))
    assert [value for value, times in ran.items() if times != 1] == []
    assert new.ledger.values('ended') == ['blocks']
