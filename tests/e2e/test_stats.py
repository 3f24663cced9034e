"""What workers count of their tasks, and how they are seen."""

from __future__ import annotations

import json
import random
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery.result import AsyncResult
from click.testing import Result

import celery_ext
from celery_ext import Extension, InvalidArgument, Stats
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

Send = Callable[..., AsyncResult]

APP = 'tests.support.app.'


def stats_of(ext: Extension, name: str, **which: Any) -> Stats:
    return ext.stats(task=f'{APP}{name}', **which)


def wait_for_runs(ext: Extension, name: str, count: int, timeout: float = 20) -> Stats:
    wait_for(lambda: stats_of(ext, name).run.count >= count, timeout, f'{count} runs of {name}')
    return stats_of(ext, name)


MATRIX = [pytest.param(pool, marks=pytest.mark.matrix) for pool in ('solo', 'gevent', 'eventlet')]

#: A worker that starts at once.
QUICK = ('--without-mingle', '--without-gossip')


@pytest.mark.parametrize('pool', ['prefork', 'threads', *MATRIX])
def test_everything_is_counted_when_the_worker_has_ended(
    installed: Fleet, ext: Extension, send: Send, pool: str
) -> None:
    worker = installed.start(*QUICK, pool=pool)
    for number in range(50):
        send('run', number)
    send('flaky', 2)
    send('fail', 'on purpose')
    send('reject', False)
    send('ignore')
    sent_at = time.time()
    delayed = send('add', 1, 1, countdown=2.0)
    send('run', 'shown otherwise', shadow='custom')
    send('retry_once', 1.1)
    installed.ledger.wait(59, 'ran')
    wait_for(lambda: ext.queues['celery'].counts().leased == 0, 20)
    worker.terminate()
    worker.wait()
    run = stats_of(ext, 'run')
    assert (run.run.count, run.wait.count) == (51, 51)
    assert (run.failed, run.retried, run.stalled) == (0, 0, 0)
    assert 0 < run.run.percentile(0.5) < 1
    assert (stats_of(ext, 'flaky').retried, stats_of(ext, 'flaky').run.count) == (2, 3)
    assert (stats_of(ext, 'fail').failed, stats_of(ext, 'fail').run.count) == (1, 1)
    assert stats_of(ext, 'reject').failed == 1
    assert stats_of(ext, 'retry_once').wait.count == 2
    [ran] = installed.ledger.lines('ran', id=delayed.id)
    late = ran['at'] - sent_at - 2.0
    assert stats_of(ext, 'add').wait.max < max(late, 0) + 0.9, (
        'who is delayed waits from when he is due'
    )
    assert (stats_of(ext, 'ignore').failed, stats_of(ext, 'ignore').run.count) == (0, 1)
    assert ext.queues['celery'].stats().run.count == ext.stats().run.count == 60
    assert list(ext.workers) == [], 'who left is not there'


@pytest.mark.parametrize('pool', ['prefork', pytest.param('threads', marks=pytest.mark.matrix)])
def test_times_are_those_of_a_known_load(
    installed: Fleet, ext: Extension, send: Send, pool: str
) -> None:
    """Percentiles of what Celery has measured."""
    chance = random.Random(5)
    worker = installed.start(*QUICK, pool=pool, concurrency=4)
    times = [0.02 + chance.expovariate(1 / 0.08) for _ in range(60)]
    sent_at = {}
    for seconds in times:
        at = time.time()
        sent_at[send('sleep', seconds).id] = at
    installed.ledger.wait(60, 'ended', timeout=60)
    worker.terminate()
    worker.wait()
    # What Celery itself has measured, and the tasks.
    known = sorted(map(float, re.findall(r'succeeded in ([\d.]+)s', worker.text())))
    begun = {entry['id']: entry['at'] for entry in installed.ledger.lines('started')}
    for entry in installed.ledger.lines('ended'):
        assert entry['at'] - begun[entry['id']] <= known[-1] + 0.005
    found = stats_of(ext, 'sleep')
    assert found.run.count == 60
    assert found.run.mean == pytest.approx(statistics.fmean(known), rel=0.1, abs=0.005)
    for share in (0.5, 0.95):
        true = known[round(share * 60) - 1]
        # The next one in order is nearly as true, if there are no more than these.
        around = known[max(0, round(share * 60) - 2) : round(share * 60) + 1]
        percentile = found.run.percentile(share)
        assert min(around) * 0.9 - 0.005 <= percentile <= max(around) * 1.1 + 0.005, true
    # They were published at once, and four of them ran at a time; a pool process begins later
    # than its worker hands over.
    longest = max(begun[id] - at for id, at in sent_at.items())
    assert 0.5 * longest <= found.wait.max <= 1.1 * longest + 0.1


def test_a_worker_whose_clock_jumps(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(
        module='tests.support.jumping', config={'worker_enable_remote_control': False}
    )
    ext = celery_ext.install(fleet.app())
    fleet.start(*QUICK)
    for _ in range(10):
        task(ext.app, 'run').apply_async()
    task(ext.app, 'sleep', 0.5).apply_async()
    found = wait_for_runs(ext, 'run', 10)
    assert found.wait.max < 10
    assert found.run.max < 10
    assert 0.5 <= wait_for_runs(ext, 'sleep', 1).run.max < 10
    assert found.day is None or found.day == ext.store.stats.today()


def test_who_was_killed_is_shown_as_dead_and_his_run_as_stalled(
    installed: Fleet, ext: Extension, send: Send
) -> None:
    first = installed.start(*QUICK)
    result = send('wait_for_file', str(installed.directory / 'door'))
    installed.ledger.wait(1, 'started')
    wait_for(lambda: [one.name for one in ext.workers] == ['w1@test'], 20, 'a sign of life')
    [worker] = ext.workers
    assert (worker.name, worker.state, worker.pid, worker.slots) == (
        'w1@test',
        'alive',
        first.pid,
        2,
    )
    assert worker.queues == ('celery',)
    assert (worker.holding, [job.id for job in worker.jobs]) == (1, [result.id])
    assert worker.jobs[0].worker == worker.id
    assert worker.since is not None
    assert worker.seen is not None
    assert worker.since <= worker.seen
    # A worker that is killed takes what it counted in the last second along.
    wait_for(lambda: stats_of(ext, 'wait_for_file').wait.count, 10, 'its wait')
    first.kill()
    wait_for(lambda: not ext.workers['w1@test'].alive, 10, 'a dead worker')
    second = installed.start(*QUICK)
    installed.ledger.wait(2, 'started')
    wait_for(lambda: len(ext.workers.alive()) == 1, 10, 'a worker that lives')
    assert {one.name: one.holding for one in ext.workers} == {'w1@test': 0, 'w2@test': 1}
    seen = ext.workers['w2@test'].seen
    assert seen is not None
    wait_for(lambda: ext.workers['w2@test'].seen > seen, 10, 'a renewal')
    (installed.directory / 'door').touch()
    installed.ledger.wait(1, 'ended')
    second.terminate()
    second.wait()
    found = stats_of(ext, 'wait_for_file')
    assert (found.stalled, found.run.count, found.wait.count) == (1, 1, 2)
    assert found.wait.max < 20
    assert [one.name for one in ext.workers] == ['w1@test'], 'the dead one is shown for a while'


@pytest.mark.matrix
def test_an_early_ack_that_is_lost_has_failed(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(module='tests.support.installed', config={'task_acks_late': False})
    ext = celery_ext.install(fleet.app())
    first = fleet.start()
    task(ext.app, 'wait_for_file', str(fleet.directory / 'door')).apply_async()
    wait_for(lambda: stats_of(ext, 'wait_for_file').wait.count, 20, 'that it is not run again')
    first.kill()
    second = fleet.start()
    wait_for(lambda: stats_of(ext, 'wait_for_file').failed, 20, 'a failure')
    second.terminate()
    second.wait()
    found = stats_of(ext, 'wait_for_file')
    assert (found.failed, found.stalled) == (1, 1)


def test_runs_that_were_cut_off(make_fleet: Callable[..., Fleet]) -> None:
    """A time limit is a failure, and so is a task that ends its process; a lost process is a
    stall."""
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    worker = fleet.start(*QUICK)
    task(ext.app, 'sleep', 30).apply_async(time_limit=1)
    task(ext.app, 'die_first').apply_async()
    task(ext.app, 'die', 'SystemExit').apply_async()
    wait_for(lambda: stats_of(ext, 'sleep').failed, 20, 'a failure')
    wait_for(lambda: fleet.ledger.deliveries(task='die_first') == [1, 2], 20, 'both deliveries')
    fleet.ledger.wait(1, 'ran', task='die')
    wait_for(lambda: ext.queues['celery'].counts().leased == 0, 20)
    worker.terminate()
    worker.wait()
    found = stats_of(ext, 'sleep')
    assert (found.failed, found.run.count, found.stalled) == (1, 1, 0)
    assert 1 <= found.run.max < 10
    assert (stats_of(ext, 'die_first').stalled, stats_of(ext, 'die_first').failed) == (1, 0)
    assert (stats_of(ext, 'die').stalled, stats_of(ext, 'die').failed) == (0, 1)


@pytest.mark.matrix
def test_an_outage_loses_nothing(
    server: Server, database: int, make_fleet: Callable[..., Fleet]
) -> None:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        fleet = make_fleet(module='tests.support.installed')
        ext = celery_ext.install(fleet.app())
        worker = fleet.start(broker=f'reliable+{proxy.url(database)}')
        task(ext.app, 'sleep', 1).apply_async()
        fleet.ledger.wait(1, 'started')
        proxy.refuse()
        proxy.cut()
        fleet.ledger.wait(1, 'ended')
        time.sleep(1.5)  # a flush and more
        proxy.heal()
        wait_for(lambda: ext.queues['celery'].counts().leased == 0, 20, 'the settlement')
        task(ext.app, 'run').apply_async()
        wait_for_runs(ext, 'run', 1)
        assert stats_of(ext, 'sleep').run.count == 1
        worker.terminate()
        worker.wait()


def test_statistics_can_be_turned_off(
    server: Server, database: int, installed: Fleet, ext: Extension, send: Send
) -> None:
    worker = installed.start(*QUICK, KR_STATS='off')
    for number in range(10):
        send('run', number)
    installed.ledger.wait(10, 'ran')
    # It is seen all the same.
    wait_for(lambda: [one.name for one in ext.workers] == ['w1@test'], 20, 'a sign of life')
    worker.terminate()
    worker.wait()
    assert ext.stats().run.count == 0
    with server.client(db=database) as client:
        assert not [key for key in client.scan_iter() if b':st' in key]


def test_telling_apart_and_bad_questions(installed: Fleet, ext: Extension, send: Send) -> None:
    worker = installed.start(*QUICK, '-Q', 'one,two')
    for number in range(6):
        send('run', number, queue='one' if number < 2 else 'two')
    send('add', 1, 2, queue='two')
    installed.ledger.wait(7, 'ran')
    worker.terminate()
    worker.wait()
    by_queue = {one.queue: one.run.count for one in ext.stats.by('queue')}
    assert by_queue == {'one': 2, 'two': 5}
    pairs = {(one.task, one.queue): one.run.count for one in ext.stats.by('task', 'queue')}
    run, add = f'{APP}run', f'{APP}add'
    assert pairs == {(run, 'one'): 2, (run, 'two'): 4, (add, 'two'): 1}
    assert ext.queues['two'].stats(task=add).run.count == 1
    today = ext.store.stats.today()
    assert (
        ext.stats(day=today).run.count == ext.stats(day=today.isoformat(), days=30).run.count == 7
    )
    assert ext.stats(day='2020-01-01').run.count == 0
    bad: list[dict[str, Any]] = [
        {'day': 'yesterday'}, {'day': 5}, {'days': 0}, {'days': 400}, {'days': True},
    ]  # fmt: skip
    for question in bad:
        with pytest.raises(InvalidArgument):
            ext.stats(**question)
    for parts in ((), ('worker',)):
        with pytest.raises(InvalidArgument):
            ext.stats.by(*parts)
    with pytest.raises(KeyError):
        ext.workers['nobody']


def test_on_the_command_line(
    installed: Fleet, ext: Extension, send: Send, reliable: Callable[..., Result]
) -> None:
    worker = installed.start(*QUICK)
    for number in range(20):
        send('run', number)
    send('wait_for_file', str(installed.directory / 'door'))
    installed.ledger.wait(1, 'started')
    wait_for_runs(ext, 'run', 20)

    def said(*arguments: str) -> Any:
        done = reliable(*arguments, columns=150)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout) if '--json' in arguments else done.stdout

    [found] = [one for one in said('stats', '--json')['stats'] if one['task'] == f'{APP}run']
    assert (found['queue'], found['runs'], found['failed']) == ('celery', 20, 0)
    assert 0 < found['run_p50'] <= found['run_p99'] < 5
    assert f'{APP}run' in said('stats', '--by', 'task', '--by', 'queue')
    assert 'day' in said('stats', '--by', 'day', '--days', '3')
    picture = said('stats', '--task', f'{APP}run', '--histogram')
    assert 'run: 20 counted' in picture
    assert '####' in picture
    assert sum(bar['count'] for bar in said('stats', '--histogram', '--json')['run']) == 20
    [one] = said('workers', '--jobs', '--json')['workers']
    assert (one['name'], one['state'], one['holding']) == ('w1@test', 'alive', 1)
    assert 'w1@test' in said('workers')
    assert f'{APP}wait_for_file' in said('workers', '--jobs')
    assert reliable('stats', '--day', 'today').exit_code == 1
    (installed.directory / 'door').touch()
    worker.terminate()
    worker.wait()
    assert 'no workers' in said('workers')
