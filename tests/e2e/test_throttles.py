"""Throttles with real workers: what is measured is what the tasks themselves write."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from celery.result import AsyncResult
from click.testing import Result

import celery_ext
from celery_ext import Extension, Throttle
from kombu_reliable import InvalidMessage
from tests.conftest import empty_database
from tests.support.runs import Run, most_at_once, refill_times, runs_of, starts_in_a_window
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet, task

WAIT = 20.0

_names = itertools.count()


@pytest.fixture(scope='module')
def installed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two workers of two processes, shared by the tests of this file."""
    with ExitStack() as stack:
        database = stack.enter_context(empty_database(server))
        made = stack.enter_context(
            fleet(
                tmp_path_factory.mktemp('throttles'),
                f'reliable+redis://127.0.0.1:{server.port}/{database}',
                module='tests.support.installed',
                # On a busy machine one of them may lose a short lease to the other.
                options={'lease': 10},
            )
        )
        for _ in range(2):
            made.start(ready=False)
        for worker in made.workers:
            worker.wait_for_log(' ready.')
        yield made


@pytest.fixture(scope='module')
def producer(installed: Fleet) -> Extension:
    return celery_ext.install(installed.app())


@pytest.fixture
def ext(producer: Extension, installed: Fleet) -> Iterator[Extension]:
    """The extension of a producer, on an empty ledger; nothing is left in the end."""
    installed.ledger.path.unlink(missing_ok=True)
    yield producer
    try:
        wait_for(lambda: not list(producer.throttles), WAIT, 'end of all throttles')
    finally:  # one test that fails is enough
        producer.queues['celery'].purge()
        for throttle in producer.throttles:
            throttle.delete()
            for holder in throttle.holders():
                throttle.release(holder.id)


Send = Callable[..., AsyncResult]


@pytest.fixture
def send(ext: Extension) -> Send:
    """Publishes a task of the test app by its short name."""

    def send(name: str, *args: Any, **options: Any) -> AsyncResult:
        return task(ext.app, name, *args).apply_async(**options)

    return send


@pytest.fixture
def name() -> str:
    """The name of a throttle that no other test uses."""
    return f'limit {next(_names)} ☃'


def finish(results: list[AsyncResult], timeout: float = WAIT) -> None:
    for result in results:
        result.get(timeout=timeout)


def spans(fleet: Fleet) -> list[Run]:
    return runs_of(fleet.ledger)


def in_order(runs: list[Run]) -> bool:
    """As they were published, as far as several processes can tell.

    They are claimed in order; on the way some overtake others, and on a busy machine one may be
    held up for long.
    """
    moved = sorted(abs(place - run.value) for place, run in enumerate(runs))
    return bool(moved[round(0.8 * len(moved))] <= 3)


# -- how many at once ------------------------------------------------------------


def test_a_limit_holds_for_all_workers(installed: Fleet, send: Send, name: str) -> None:
    limit = Throttle(name, concurrency=3)
    finish([send('sleep', 0.05, n, throttles=[limit]) for n in range(40)])
    runs = spans(installed)
    assert len(runs) == 40
    assert most_at_once(runs) == 3
    assert in_order(runs)


def test_others_pass_those_that_wait(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    go = tmp_path / 'go'
    limit = Throttle(name, concurrency=1)
    blocked = [send('wait_for_file', str(go), n, throttles=limit) for n in range(20)]
    others = [send('run', n) for n in range(10)]
    finish(others)
    installed.ledger.wait(1, 'started')
    assert len(installed.ledger.lines('started')) == 1
    throttle = ext.throttles[name]
    info = throttle.get()
    assert info is not None
    assert (info.held, info.pending, info.stopped, info.source) == (1, 19, False, 'default')
    assert name in ext.throttles
    assert ext.queues['celery'].counts().throttled == 19
    job = ext.jobs[blocked[7]]
    assert (job.state, job.throttles) == ('throttled', (name,))
    [holder] = throttle.holders()
    assert (holder.id, holder.queue) == (blocked[0].id, 'celery')
    assert holder.worker
    waiting = throttle.pending(limit=5)
    assert [one.since for one in waiting] == sorted(one.since for one in waiting)
    assert {one.id for one in throttle.pending()} == {one.id for one in blocked[1:]}
    go.touch()
    finish(blocked)
    wait_for(lambda: throttle.get() is None, WAIT, 'end of the throttle')


def test_a_job_takes_all_its_slots_or_none(
    ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    go = tmp_path / 'go'
    one, two = Throttle(f'{name} one', concurrency=1), Throttle(f'{name} two', concurrency=1)
    holder = send('wait_for_file', str(go), throttles=[one])
    wait_for(lambda: ext.throttles[one.name].holders(), WAIT, 'holder')
    both = send('run', 'both', throttles=[two, one])
    send('run', 'two', throttles=[two]).get(timeout=WAIT)
    wait_for(lambda: ext.throttles[two.name].holders() == [], WAIT, 'slot that is free')
    assert not both.ready()
    go.touch()
    finish([holder, both])


def test_limits_change_while_jobs_wait(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    go = tmp_path / 'go'
    throttle = ext.throttles[name]
    throttle.set(concurrency=0)
    results = [
        send('wait_for_file', str(go), n, throttles=Throttle(name, concurrency=3)) for n in range(6)
    ]
    wait_for(lambda: (info := throttle.get()) and info.pending == 6, WAIT, 'six that wait')
    info = throttle.get()
    assert info is not None
    assert (info.stopped, info.concurrency, info.source) == (True, 0, 'set')
    assert installed.ledger.lines('started') == []
    # Up ...
    throttle.set(concurrency=1)
    installed.ledger.wait(1, 'started')
    throttle.set(concurrency=2)
    installed.ledger.wait(2, 'started')
    assert throttle.delete()
    installed.ledger.wait(3, 'started')
    assert len(throttle.holders()) == 3
    # ... and down: what runs goes on, and nothing more starts until there is room.
    throttle.set(concurrency=1)
    go.touch()
    finish(results)
    runs = spans(installed)
    assert most_at_once(runs) == 3
    assert most_at_once(runs[3:]) == 1
    assert throttle.delete()
    assert not throttle.delete()


def test_what_was_set_expires(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    throttle = ext.throttles[name]
    throttle.set(concurrency=0, expires=3)
    result = send('run', throttles=name)
    info = throttle.get()
    assert info is not None
    assert info.expires_at is not None
    result.get(timeout=WAIT)


def test_a_throttle_that_is_deleted_while_it_is_held(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    go = tmp_path / 'go'
    throttle = ext.throttles[name]
    throttle.set(concurrency=1)
    results = [send('wait_for_file', str(go), n, throttles=[name]) for n in range(3)]
    installed.ledger.wait(1, 'started')
    assert throttle.delete()
    installed.ledger.wait(3, 'started')
    go.touch()
    finish(results)
    wait_for(lambda: throttle.get() is None, WAIT, 'end of the throttle')


def test_a_slot_that_is_taken_from_its_holder(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    go = tmp_path / 'go'
    throttle = ext.throttles[name]
    limit = Throttle(name, concurrency=1)
    first, second = (send('wait_for_file', str(go), n, throttles=limit) for n in range(2))
    installed.ledger.wait(1, 'started')
    assert not throttle.release(second)
    assert throttle.release(first)
    installed.ledger.wait(2, 'started')
    assert [holder.id for holder in throttle.holders()] == [second.id]
    go.touch()
    finish([first, second])


def test_a_limit_for_a_queue(installed: Fleet, ext: Extension, send: Send) -> None:
    throttle = ext.queues['celery'].throttle
    throttle.set(concurrency=1)
    try:
        finish([send('sleep', 0.02, n) for n in range(8)])
        assert most_at_once(spans(installed)) == 1
    finally:
        assert throttle.delete()


# -- ends ------------------------------------------------------------------------

ENDS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any]]] = {
    'success': ('run', (), {}),
    'failure': ('fail', ('on purpose',), {}),
    'reject': ('reject', (False,), {}),
    'ignore': ('ignore', (), {}),
    'requeue': ('reject_first', (), {}),
    'retry': ('retry_once', (0.2,), {}),
    'replaced': ('replaced_by_task', (1,), {}),
    'replaced by a canvas': ('replaced', (1,), {}),
    'process lost': ('die_first', (), {}),
    'SystemExit': ('leave', (), {}),
    'time limit': ('sleep', (60,), {'time_limit': 0.5}),
    'unknown task': ('no_such_task', (), {}),
    'expired': ('run', (), {'expires': -1}),
}


@pytest.mark.parametrize('end', ENDS)
def test_every_end_frees_the_slot(ext: Extension, send: Send, name: str, end: str) -> None:
    short, args, options = ENDS[end]
    limit = Throttle(name, concurrency=1)
    send(short, *args, throttles=limit, **options)
    send('run', throttles=limit).get(timeout=WAIT)


def test_a_cancel_frees_the_slot(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    limit = Throttle(name, concurrency=1)
    running = send('sleep', 60, throttles=limit)
    queued = send('run', throttles=limit)
    last = send('run', throttles=limit)
    installed.ledger.wait(1, 'started')
    assert ext.jobs.cancel(queued) == 'gone'
    assert ext.jobs.cancel(running, terminate=True) == 'requested'
    last.get(timeout=WAIT)


def test_a_move_takes_the_job_out_of_the_line(ext: Extension, send: Send, name: str) -> None:
    throttle = ext.throttles[name]
    throttle.set(concurrency=0)
    result = send('run', 'moved', throttles=name)
    ext.jobs[result].move('elsewhere')
    assert [waiter.queue for waiter in throttle.pending()] == ['elsewhere']
    ext.jobs[result].move('celery')
    throttle.delete()
    assert result.get(timeout=WAIT) == 'moved'


def test_a_retry_gives_its_slot_back_while_it_waits(
    installed: Fleet, ext: Extension, send: Send, name: str
) -> None:
    limit = Throttle(name, concurrency=1)
    retried = send('retry_once', 3600, throttles=limit)
    send('run', throttles=limit).get(timeout=WAIT)
    wait_for(lambda: ext.throttles[name].holders() == [], WAIT, 'slot that is free')
    assert ext.throttles[name].pending() == []
    # And when its time comes, it waits for one like everybody else.
    ext.throttles[name].set(concurrency=0)
    ext.jobs[retried].reschedule(countdown=0)
    wait_for(lambda: ext.throttles[name].pending(), WAIT, 'the retry in the line')
    ext.throttles[name].delete()
    assert retried.get(timeout=WAIT) == 1


def test_a_replacement_has_its_own_throttles(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    go = tmp_path / 'go'
    result = send('replaced_after', str(go), throttles=Throttle(name, concurrency=1))
    installed.ledger.wait(1, 'started')
    ext.throttles[name].set(concurrency=0)
    go.touch()
    assert result.get(timeout=WAIT) == 'replacement'
    ext.throttles[name].delete()


# -- how many in a time ----------------------------------------------------------


def test_a_rate_is_kept_evenly(installed: Fleet, send: Send, name: str) -> None:
    limit = Throttle(name, rate='20/s')
    finish([send('sleep', 0, n, throttles=limit) for n in range(30)])
    runs = spans(installed)
    assert in_order(runs)
    took = runs[-1].start - runs[0].start
    assert 26 / 20 - 0.5 < took < 26 / 20 + 15  # the burst of three goes first
    assert starts_in_a_window(runs, 0.5) <= 10 + 3


# -- fairness --------------------------------------------------------------------


def test_one_tenant_does_not_delay_the_first_job_of_another(
    installed: Fleet, ext: Extension, send: Send, name: str, tmp_path: Path
) -> None:
    door = tmp_path / 'door'
    one = Throttle(f'{name}:one', concurrency=1)
    many = [send('wait_for_file', str(door), n, throttles=one) for n in range(40)]
    first = send('sleep', 0.01, 'first', throttles=Throttle(f'{name}:other', concurrency=1))
    first.get(timeout=WAIT)
    door.touch()
    finish(many)
    assert most_at_once([run for run in spans(installed) if run.value != 'first']) == 1


def test_a_queue_takes_keys_in_turn(
    installed: Fleet, ext: Extension, send: Send, name: str
) -> None:
    queue = ext.queues['celery']
    queue.pause()
    results = [send('run', ['a', n], fair_by='a') for n in range(12)]
    results += [send('run', ['b', n], fair_by='b') for n in range(3)]
    results += [send('run', ['c', n], fair_by='c') for n in range(3)]
    # One after the other, so that the order can be seen.
    queue.throttle.set(concurrency=1)
    queue.resume()
    finish(results)
    queue.throttle.delete()
    ran = [entry['value'] for entry in installed.ledger.lines('ran', task='run')]
    for key in 'abc':
        assert [n for one, n in ran if one == key] == sorted(n for one, n in ran if one == key)
    assert {one for one, _ in ran[:3]} == {one for one, _ in ran[3:6]} == {'a', 'b', 'c'}
    assert [one for one, _ in ran[9:]] == ['a'] * 9


# -- bad input -------------------------------------------------------------------


def test_a_thousand_throttles_on_a_job(ext: Extension, send: Send) -> None:
    with pytest.raises(InvalidMessage, match='throttles'):
        send('run', throttles=[f't{n}' for n in range(1000)])


@pytest.mark.parametrize('odd', ['{', '', 'x' * 10_000, 'half \ud800', '\0'])
def test_odd_names(ext: Extension, send: Send, odd: str) -> None:
    if odd == '\0':
        send('run', throttles=[odd]).get(timeout=WAIT)
        return
    with pytest.raises(ValueError):
        send('run', throttles=[odd])


# -- killed workers --------------------------------------------------------------


def test_the_slot_of_a_killed_worker_comes_back(
    make_fleet: Callable[..., Fleet], name: str
) -> None:
    fleet = make_fleet(module='tests.support.installed')
    ext = celery_ext.install(fleet.app())
    limit = Throttle(name, concurrency=1)
    for _ in range(2):
        fleet.start(concurrency=1, ready=False)
    for worker in fleet.workers:
        worker.wait_for_log(' ready.')
    task(ext.app, 'sleep', 60).apply_async(throttles=limit)
    [begun] = fleet.ledger.wait(1, 'started')
    waits = task(ext.app, 'run').apply_async(throttles=limit)
    [holder] = [worker for worker in fleet.workers if begun['pid'] in worker.pool_pids()]
    os.killpg(holder.pid, signal.SIGKILL)
    # The first goes on from the start: it was there before.
    fleet.ledger.wait(2, 'started')
    assert not waits.ready()


def test_refills_are_quick(installed: Fleet, send: Send, name: str) -> None:
    limit = Throttle(name, concurrency=2)
    finish([send('sleep', 0.02, n, throttles=limit) for n in range(60)])
    runs = spans(installed)
    assert most_at_once(runs) <= 2
    assert median(refill_times(runs, 2)) < 0.3  # 0.02 on a machine that does nothing else


# -- command line ----------------------------------------------------------------


def test_the_command_line(
    installed: Fleet, ext: Extension, send: Send, reliable: Callable[..., Result], tmp_path: Path
) -> None:
    def told(*args: str) -> Any:
        done = reliable('throttles', *args, '--json')
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    go = tmp_path / 'go'
    assert told('list') == {'throttles': []}
    assert 'no throttles' in reliable('throttles', 'list').output
    limits = told('set', 'stripe', '--concurrency', '1', '--rate', '100/m', '--expires', '2h')
    assert (limits['concurrency'], limits['rate'], limits['burst']) == (1, '100/m', 3)
    results = [send('wait_for_file', str(go), n, throttles='stripe') for n in range(2)]
    installed.ledger.wait(1, 'started')
    [listed] = told('list')['throttles']
    assert (listed['held'], listed['pending'], listed['source']) == (1, 1, 'set')
    assert '100/m' in reliable('throttles', 'list').output
    [holder] = told('holders', 'stripe')['holders']
    [waiter] = told('pending', 'stripe')['pending']
    assert [holder['id'], waiter['id']] == [one.id for one in results]
    assert holder['id'] in reliable('throttles', 'holders', 'stripe').output
    text = reliable('throttles', 'get', 'stripe').output
    assert 'in 2 h' in text or 'in 1 h' in text
    refused = reliable('throttles', 'release', 'stripe', holder['id'], input='n\n')
    assert refused.exit_code == 1
    assert reliable('throttles', 'release', 'stripe', '-y', waiter['id']).exit_code == 1
    assert told('release', 'stripe', '--yes', holder['id'])['released']
    installed.ledger.wait(2, 'started')
    go.touch()
    finish(results)
    # Or it goes on for as long as one holds it.
    wait_for(lambda: not ext.throttles['stripe'].holders(), WAIT, 'end of the last one')
    assert told('set', 'stripe', '--concurrency', '0')['stopped']
    assert 'stopped' in reliable('throttles', 'get', 'stripe').output
    assert told('delete', 'stripe') == {'name': 'stripe', 'changed': True}
    assert told('delete', 'stripe') == {'name': 'stripe', 'changed': False}
    assert reliable('throttles', 'get', 'stripe').exit_code == 1


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (('--rate', '100/fortnight'), '100/fortnight'),
        (('--concurrency', '-1'), 'concurrency -1'),
        (('--concurrency', 'two'), 'two'),
        (('--burst', '3'), 'burst'),
        (('-c', '1', '--expires', 'soon'), 'soon'),
        (('-c', '1', '--expires', '0'), 'expires'),
        (('-c', '1', '--unlimited'), '--unlimited'),
        ((), '--unlimited'),
    ],
)
def test_wrong_limits_on_the_command_line(
    ext: Extension, reliable: Callable[..., Result], args: tuple[str, ...], words: str
) -> None:
    done = reliable('throttles', 'set', 'stripe', *args)
    assert done.exit_code == 2
    assert words in done.output
    assert list(ext.throttles) == []
