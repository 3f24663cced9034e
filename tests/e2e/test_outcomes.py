"""Each way in which a task can end, and what becomes of its message and of those who wait.

One worker runs all that a worker survives; what ends workers has tests of its own.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu import Connection

from kombu_reliable.envelope import pack_id
from kombu_reliable.keys import Keys
from tests.conftest import empty_database
from tests.support.listener import Listener
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet, task

WAIT = 30
LIMIT = 3

matrix = pytest.mark.matrix

POOLS = ('prefork', 'threads', 'gevent', 'eventlet', 'solo')
PROCESSES = ('prefork',)
#: Pools in which Celery can end a running task.
KILLING = ('prefork', 'gevent', 'eventlet')
#: Pools in which a task has a time limit.
TIMING = ('prefork', 'gevent')


# -- the table -------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One way to end.

    Args:
        name: of the row.
        task: short name of the task, or a whole one.
        args: of the task.
        options: of its message.
        state: what the result backend says in the end.
        value: the result, if it succeeded.
        verdicts: what the worker says to the server; 'once' comes before with early acks.
        early: the same with early acks, where it differs.
        reason: of the dead letter, if it becomes one.
        early_reason, early_state: with early acks, where they differ.
        kind: type of the error that the dead letter names.
        pools: those in which Celery has such an end.
        begins: whether it is begun at all.
    """

    name: str
    task: str
    args: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    state: str = 'SUCCESS'
    value: Any = None
    verdicts: tuple[str, ...] = ('ack',)
    early: tuple[str, ...] | None = None
    reason: str = ''
    early_reason: str | None = None
    early_state: str | None = None
    kind: str = ''
    pools: tuple[str, ...] = POOLS
    begins: bool = True


LOST = 'WorkerLostError'
FAILED = ('fail',)
TABLE = (
    Row('success', 'run', ('v',), value='v'),
    Row('ignore', 'ignore', state='PENDING'),
    Row('exception', 'fail', ('boom',), state='FAILURE', verdicts=FAILED, reason='failed',
        kind='ValueError'),
    Row('time-limit', 'sleep', (60,), {'time_limit': 1}, state='FAILURE', verdicts=FAILED,
        reason='time-limit', kind='TimeLimitExceeded', pools=TIMING),
    Row('reject', 'reject', (False,), state='FAILURE', verdicts=FAILED, reason='rejected',
        kind='Reject'),
    Row('requeue', 'reject_first', value=2, verdicts=('requeue', 'ack')),
    Row('retry', 'retry_once', value=1, verdicts=('replace', 'ack')),
    Row('replace-by-task', 'replaced_by_task', (7,), value=7, verdicts=('replace', 'ack')),
    Row('replace-by-canvas', 'replaced', (1,), value=12, verdicts=('replace', 'ack')),
    Row('unknown', 'nobody.knows', state='FAILURE', verdicts=FAILED, reason='unknown-task',
        kind='NotRegistered', begins=False),
    Row('undecodable', 'undecodable', state='FAILURE', verdicts=FAILED, reason='undecodable',
        kind='DecodeError', begins=False),
    Row('process-lost', 'die_first', value=2, verdicts=('requeue', 'ack'), early=FAILED,
        early_reason='worker-lost', early_state='FAILURE', kind=LOST, pools=PROCESSES),
    Row('delivery-limit', 'die', ('killed',), state='FAILURE', verdicts=('requeue',),
        early=FAILED, reason='delivery-limit', early_reason='worker-lost', pools=PROCESSES),
    Row('exit', 'leave', state='FAILURE', verdicts=FAILED, reason='exited', kind='SystemExit'),
    Row('expired', 'run', options={'countdown': 0.6, 'expires': 0.3}, state='REVOKED',
        verdicts=('cancel',), begins=False),
    Row('revoked', 'run', options={'countdown': 6}, state='REVOKED', verdicts=('cancel',),
        begins=False),
    Row('terminated', 'sleep', (60,), state='REVOKED', verdicts=('cancel',), pools=KILLING),
)  # fmt: skip


class Monitor:
    """Collects the events of tasks, as Flower does."""

    def __init__(self, app: Celery) -> None:
        self.types: dict[str, list[str]] = {}
        self._done = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(app,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _listen(self, app: Celery) -> None:
        with app.connection_for_read() as connection:
            receiver = app.events.Receiver(connection, handlers={'*': self._note})
            with receiver.consumer_context() as (draining, *_):
                self._ready.set()
                while not self._done.is_set():
                    with suppress(TimeoutError):
                        draining.drain_events(timeout=0.2)

    def _note(self, event: dict[str, Any]) -> None:
        if 'uuid' in event:
            self.types.setdefault(event['uuid'], []).append(event['type'])

    def close(self) -> None:
        self._done.set()
        self._thread.join(10)


@dataclass
class Outcomes:
    """What became of one task of each row."""

    pool: str
    late: bool
    workers: Fleet
    app: Celery
    listener: Listener
    monitor: Monitor
    client: redis.Redis
    keys: Keys
    ids: dict[str, str]

    def extra(self, row: Row) -> dict[str, str]:
        found: Any = self.client.hgetall(self.keys.extra(pack_id(self.ids[row.name])))
        return {name.decode(): value.decode() for name, value in found.items()}

    def is_dead(self, row: Row) -> bool:
        job = pack_id(self.ids[row.name])
        return self.client.zscore(self.keys.dead('celery'), job) is not None


def publish_garbage(broker: str) -> str:
    headers = {'task': 'tests.support.app.run', 'id': '0c6ef3a8-7f4c-4ad8-9d3c-0d7a0b1f9b11'}
    with Connection(broker) as connection, connection.Producer() as producer:
        producer.publish(
            b'{garbage', routing_key='celery', content_type='application/json',
            content_encoding='utf-8', headers=headers,
        )  # fmt: skip
    return headers['id']


def publish_all(app: Celery, pool: str, broker: str) -> dict[str, str]:
    ids = {}
    for row in TABLE:
        if pool not in row.pools:
            continue
        if row.name == 'undecodable':
            ids[row.name] = publish_garbage(broker)
            continue
        signature = task(app, row.task, *row.args) if '.' not in row.task else app.signature(
            row.task
        )  # fmt: skip
        options = {'link_error': task(app, 'on_error'), **row.options}
        ids[row.name] = signature.apply_async(**options).id
    return ids


def end_by_hand(app: Celery, workers: Fleet, ids: dict[str, str]) -> None:
    """As plain Celery does it, over remote control only."""
    app.control.broadcast('revoke', arguments={'task_id': [ids['revoked']]}, reply=True, limit=1)
    if 'terminated' in ids:
        workers.ledger.wait(1, 'started', id=ids['terminated'])
        arguments = {'task_id': [ids['terminated']], 'terminate': True}
        app.control.broadcast('revoke', arguments=arguments, reply=True, limit=1)


@contextmanager
def outcomes_of(server: Server, directory: Path, pool: str, late: bool) -> Iterator[Outcomes]:
    with ExitStack() as stack:
        number = stack.enter_context(empty_database(server))
        broker = f'reliable+{server.url(number)}'
        workers = stack.enter_context(
            fleet(
                directory, broker, module='tests.support.installed',
                options={'delivery_limit': LIMIT}, config={'task_acks_late': late},
            )
        )  # fmt: skip
        client = stack.enter_context(server.client(db=number))
        listener = Listener(server.client(db=number))
        hearing = stack.enter_context(ExitStack())
        hearing.callback(listener.close)
        app = workers.app()
        monitor = Monitor(app)
        stack.callback(monitor.close)
        # A task that runs for long must not be in the way of those behind it.
        workers.start('-E', pool=pool, concurrency=1 if pool == 'solo' else 4)
        ids = publish_all(app, pool, broker)
        end_by_hand(app, workers, ids)
        found = Outcomes(pool, late, workers, app, listener, monitor, client, Keys(number), ids)
        wait_for(lambda: is_over(found), WAIT, 'all have ended')
        hearing.close()  # it has heard all by then
        yield found


def is_over(found: Outcomes) -> bool:
    queues = [
        spell(queue)
        for spell in (found.keys.ready, found.keys.delayed, found.keys.leased)
        for queue in ('celery', 'celery_ext.ends')
    ]
    waited = [
        found.app.AsyncResult(found.ids[row.name]).state
        for row in TABLE
        if row.state != 'PENDING' and row.name in found.ids
    ]
    return not found.client.exists(*queues) and not {'PENDING', 'RETRY', 'STARTED'} & set(waited)


@pytest.fixture(
    scope='module',
    params=[
        pytest.param((pool, late), marks=() if pool == 'prefork' else matrix,
                     id=f'{pool}-{"late" if late else "early"}')
        for pool in POOLS for late in (True, False)
    ],
)  # fmt: skip
def outcomes(
    request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Outcomes]:
    pool, late = request.param
    with outcomes_of(server, tmp_path_factory.mktemp('outcomes'), pool, late) as found:
        yield found


@pytest.mark.parametrize('row', TABLE, ids=lambda row: row.name)
def test_the_table(outcomes: Outcomes, row: Row) -> None:
    if outcomes.pool not in row.pools:
        pytest.skip(f'Celery has no such end in the {outcomes.pool} pool')
    result = outcomes.app.AsyncResult(outcomes.ids[row.name])
    state, verdicts, reason = row.state, row.verdicts, row.reason
    if not outcomes.late:
        state, verdicts = row.early_state or state, row.early or verdicts
        reason = reason if row.early_reason is None else row.early_reason
    assert result.state == state
    if state == 'SUCCESS':
        assert result.result == row.value
    said = outcomes.listener.verdicts[pack_id(result.id)]
    if outcomes.late or not row.begins:
        assert 'once' not in said
    assert tuple(verdict for verdict in said if verdict != 'once') == verdicts
    assert outcomes.is_dead(row) == bool(reason)
    if reason:
        check_dead_letter(outcomes, row, reason)


def check_dead_letter(outcomes: Outcomes, row: Row, reason: str) -> None:
    extra = outcomes.extra(row)
    assert extra['reason'] == reason
    assert 'once' not in extra
    if reason == 'delivery-limit':  # of which no worker knows more
        assert outcomes.workers.ledger.wait(1, 'ran', task='on_error')
        return
    failure = json.loads(extra['failure'])
    assert failure['type'] == (row.kind or LOST)
    full = row.task if '.' in row.task else f'tests.support.app.{row.task}'
    expected = 'tests.support.app.run' if row.name == 'undecodable' else full
    assert (failure['group'], extra['group']) == (expected, expected)


#: Which event the end of a row is, where Celery has one.
EVENTS = {
    'success': 'task-succeeded', 'exception': 'task-failed', 'time-limit': 'task-failed',
    'reject': 'task-failed', 'requeue': 'task-succeeded', 'retry': 'task-retried',
    'unknown': 'task-failed', 'delivery-limit': 'task-failed', 'exit': 'task-failed',
    'expired': 'task-revoked', 'revoked': 'task-revoked', 'terminated': 'task-revoked',
}  # fmt: skip


def test_the_events(outcomes: Outcomes) -> None:
    expected = {name: kind for name, kind in EVENTS.items() if name in outcomes.ids}

    def missing() -> list[str]:
        types = outcomes.monitor.types
        return [n for n, kind in expected.items() if kind not in types.get(outcomes.ids[n], ())]

    wait_for(lambda: not missing(), WAIT, 'an event of each')
    ends = ('task-succeeded', 'task-failed', 'task-revoked')
    for name in set(expected) - {'time-limit'}:  # of which Celery tells twice
        types = outcomes.monitor.types[outcomes.ids[name]]
        assert sum(types.count(kind) for kind in ends) == 1, (name, types)


def test_deliveries(outcomes: Outcomes) -> None:
    """What was asked for, and no more."""
    ran = outcomes.workers.ledger.lines('ran')

    def count(name: str) -> int:
        return sum(line['id'] == outcomes.ids.get(name) for line in ran)

    def deliveries(name: str) -> int:
        return len(outcomes.workers.ledger.deliveries(id=outcomes.ids.get(name)))

    once = ['success', 'ignore', 'reject']
    assert {name: count(name) for name in once} == dict.fromkeys(once, 1)
    assert {name: count(name) for name in ('requeue', 'retry')} == {'requeue': 2, 'retry': 2}
    assert not any(count(name) for name in ('expired', 'revoked'))
    assert deliveries('exit') == 1
    if outcomes.pool in PROCESSES:
        # An early ack is recorded a moment after the start; who is killed before runs once more.
        early = (1, 2)
        assert deliveries('process-lost') in ((2,) if outcomes.late else early)
        assert deliveries('delivery-limit') in ((LIMIT,) if outcomes.late else early)


def test_the_error_callbacks(outcomes: Outcomes) -> None:
    """Whoever reports the end."""
    wanted = ['boom', 'on purpose', 'nobody.knows', 'SystemExit(3)']
    if outcomes.pool in PROCESSES:
        wanted.append('limit of deliveries' if outcomes.late else 'signal 9')

    def missing() -> list[str]:
        called = outcomes.workers.ledger.lines('ran', task='on_error')
        values = ' '.join(line['value'] for line in called)
        return [text for text in wanted if text not in values]

    wait_for(lambda: not missing(), WAIT, 'all were called')


def test_the_worker_lives_on(outcomes: Outcomes) -> None:
    (worker,) = outcomes.workers.workers
    assert task(outcomes.app, 'run', 'alive').apply_async().get(WAIT) == 'alive'
    assert worker.text().count(' ready.') == 1
    assert 'could not be reported' not in worker.text()
    assert 'cannot be told' not in worker.text()


def test_classes_of_the_users_own(outcomes: Outcomes) -> None:
    ledger = outcomes.workers.ledger
    good = task(outcomes.app, 'customized', False).apply_async()
    bad = task(outcomes.app, 'customized', True).apply_async()
    assert good.get(WAIT) == 'fine'
    with pytest.raises(ValueError, match='as told'):
        bad.get(WAIT)
    job = pack_id(bad.id)
    dead = outcomes.keys.dead('celery')
    wait_for(lambda: outcomes.client.zscore(dead, job) is not None, WAIT, 'a dead letter')
    assert [line['value'] for line in ledger.wait(1, 'request', id=bad.id)] == ['failure']
    assert ledger.wait(1, 'failed', id=bad.id)
    assert len(ledger.lines('called')) == 2
