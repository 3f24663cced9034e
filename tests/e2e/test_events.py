"""Tags, events and history of real tasks, with kills, retries and listeners that were cut off."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

import celery_ext
from celery_ext import Extension, Gap, JobEvent, Result, WrongState
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, Worker, task


@pytest.fixture
def workers(make_fleet: Callable[..., Fleet]) -> Fleet:
    return make_fleet(module='tests.support.marked')


@pytest.fixture
def ext(workers: Fleet) -> Extension:
    return celery_ext.install(workers.app())


@pytest.fixture
def send(ext: Extension) -> Callable[..., AsyncResult]:
    def send(name: str, *args: Any, kwargs: Any = None, **options: Any) -> AsyncResult:
        signature = task(ext.app, name, *args)
        return signature.apply_async(kwargs=kwargs or {}, **options)

    return send


class Listener:
    """Hears all events in a thread, over a connection of its own that may be cut."""

    def __init__(self, ext: Extension) -> None:
        self.heard: list[JobEvent | Gap] = []
        self._stop = False
        self._events = ext.events.listen(timeout=0.5)
        self._ext = ext
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                for event in self._events:
                    self.heard.append(event)
            position = self.heard[-1].position if self.heard else None
            if not self._stop:
                self._events = self._ext.events.listen(position or '0', timeout=0.5)

    def close(self) -> None:
        self._stop = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def lives(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for event in list(self.heard):
            assert isinstance(event, JobEvent), event
            found[event.id].append(event.event)
        return found


@pytest.fixture
def far(workers: Fleet, server: Server) -> Iterator[tuple[Proxy, Extension]]:
    """The extension of a program that reaches the server over a proxy."""
    database = workers.broker.rpartition('/')[2]
    with Proxy(('127.0.0.1', server.port)) as proxy:
        app = workers.app(f'reliable+{proxy.url(int(database))}')
        yield proxy, celery_ext.install(app)


def held_by(ext: Extension, worker: Worker) -> set[str]:
    """What a frozen worker holds."""
    jobs = ext.jobs.in_state('leased', 'celery', limit=1000)
    return {job.id for job in jobs if f':{worker.pid}:' in (job.worker or '')}


def run_lives(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], count: int, kills: int,
    cut: Callable[[], None],
) -> dict[str, list[str]]:  # fmt: skip
    """Runs tasks of many kinds, kills workers; returns the life that each has had."""
    expected: dict[str, list[str]] = {}
    run, end = ['popped'], ['completed']

    def publish(name: str, *args: Any, life: list[str], **options: Any) -> str:
        result = send(name, *args, track=True, **options)
        expected[result.id] = ['put', *life]
        return str(result.id)

    for number in range(count):
        publish('run', number, life=run + end)
        publish('flaky', number % 3, 0.05, life=[*run, 'retried'] * (number % 3) + run + end)
        publish('charge', number, life=run + end)
        publish('fail', 'on purpose', life=[*run, 'failed'])
        publish('reject', False, life=[*run, 'failed'])
        ext.jobs.cancel(publish('run', countdown=3600, life=['canceled']))
        moved = publish('run', number, life=['moved', *run, *end], queue='aside')
        ext.jobs[moved].move('celery')
        ext.throttles[f'closed {number}'].set(concurrency=0)
        held_up = ['throttled', *run, *end]
        publish('run', number, life=held_up, throttles=f'closed {number}')
        untold = send('run', 'untracked')
        assert untold.id not in expected
    sleepers = [publish('sleep', 0.5, number, life=run + end) for number in range(4 * kills + 4)]
    for _ in range(kills):
        victim = workers.start('--prefetch-multiplier', '2')
        wait_for(lambda victim=victim: held_by(ext, victim), 30, 'the worker holds something')
        victim.pause()
        for _ in range(2):  # what it had sent is served before the second answer
            ext.store.client.ping()
        held = held_by(ext, victim)
        cut()
        victim.kill()
        for id in held & set(expected):
            where = expected[id]
            # What is known of it until now was said; it was popped, and lost.
            told = [event.event for event in stored(ext) if event.id == id]
            expected[id] = [*told, 'stalled', *_rest(where, told)]
    workers.start()
    assert sleepers
    wait_for(lambda: all(told_of_throttle(ext, n) for n in range(count)), 30, 'held back')
    for number in range(count):
        ext.throttles[f'closed {number}'].delete()
    wait_for(lambda: is_over(ext), 60, 'all tasks have ended')
    return expected


def _rest(life: list[str], told: list[str]) -> list[str]:
    """What is left of a life after its last delivery was lost: that delivery, once more."""
    done = Counter(told)['popped'] - Counter(told)['stalled'] - 1
    runs = [at for at, event in enumerate(life) if event == 'popped']
    return life[runs[done] :]


def stored(ext: Extension) -> list[JobEvent]:
    return [one for one in ext.events.listen('0', timeout=0.001) if isinstance(one, JobEvent)]


def is_over(ext: Extension) -> bool:
    counts = ext.queues['celery'].counts()
    return not (counts.ready or counts.delayed or counts.throttled or counts.leased)


def told_of_throttle(ext: Extension, number: int) -> bool:
    told = ('throttled', f'closed {number}')
    return any((event.event, event.detail) == told for event in stored(ext))


def check_lives(
    workers: Fleet, ext: Extension, send: Any, far: tuple[Proxy, Extension], count: int, kills: int
) -> None:
    proxy, there = far
    listener = Listener(there)
    cuts = []

    def cut() -> None:
        proxy.cut()
        cuts.append(len(listener.heard))

    try:
        cut()
        expected = run_lives(workers, ext, send, count, kills, cut)
        last = stored(ext)[-1].position
        wait_for(lambda: listener.heard and listener.heard[-1].position == last, 30, 'heard')
    finally:
        listener.close()
    assert len(cuts) >= 2
    assert dict(listener.lives()) == expected
    positions = [event.position for event in listener.heard]
    assert len(set(positions)) == len(positions), 'none is heard twice'


@pytest.mark.timeout(150)
def test_the_events_of_a_job_are_its_life(
    workers: Fleet, ext: Extension, send: Any, far: tuple[Proxy, Extension]
) -> None:
    check_lives(workers, ext, send, far, count=3, kills=1)


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_the_events_of_many_jobs_are_their_lives(
    workers: Fleet, ext: Extension, send: Any, far: tuple[Proxy, Extension]
) -> None:
    check_lives(workers, ext, send, far, count=150, kills=6)


def test_a_task_with_everything(workers: Fleet, ext: Extension, send: Any, tmp_path: Path) -> None:
    """One worker for what would each need one: decorators, history, log, progress, callbacks."""
    heard: list[Any] = []
    failed: list[Any] = []
    subscriptions = [
        ext.events.on('*', heard.append), ext.events.on('failed', failed.append),
        ext.events.on('put', lambda event: 1 / 0),
    ]  # fmt: skip
    workers.start(concurrency=1)
    door = tmp_path / 'door'
    told = send('tell', str(door), tags=['mine'])
    # A task that another task publishes is tagged by its decorator; so is what this app sends by
    # the headers that it writes itself.
    charge = send('charge', 17, 1, tags=['billing', 'customer:17'], track=True, retention=600)
    fails = send('fail', 'on purpose', track=True)
    workers.ledger.wait(1, 'told')
    job = ext.jobs[told]
    assert job.progress == 0.5
    assert set(job.tags) == {'mine', 'at-run'}
    assert [job.id for job in ext.jobs.tagged('at-run')] == [told.id]
    [put, popped, log] = job.history
    assert (put.event, popped.event, log.event, log.detail) == ('put', 'popped', 'log', 'begun')
    assert set(log.data) == {'pid'} and popped.detail == job.worker
    door.touch()
    assert told.get(20) == 'leased'
    assert charge.get(20) == 17
    wait_for(lambda: ext.jobs[fails].state == 'failed', 20, 'a dead letter')
    wait_for(lambda: ext.jobs[charge].state == 'completed', 20, 'completed')
    wait_for(lambda: ext.jobs[told].state == 'completed', 20, 'completed')
    done = ext.jobs[told]
    assert (done.state, done.progress, done.worker) == ('completed', 1.0, None)
    assert done.completed_at is not None
    found = [job.id for job in ext.jobs.in_state('completed', 'celery')]
    assert found == [told.id, charge.id], 'the one that is kept longest comes first'
    assert ext.queues['celery'].counts().completed == 2
    with pytest.raises(WrongState, match='completed'):
        done.cancel()
    kept = ext.jobs[charge]
    assert [event.event for event in kept.history] == [
        'put', 'popped', 'retried', 'popped', 'completed',
    ]  # fmt: skip
    assert [job.id for job in ext.jobs.tagged('billing', 'customer:17')] == [charge.id]
    assert {job.id for job in ext.jobs.tracked()} == {charge.id, fails.id}
    wait_for(lambda: len(failed) == 1, 20, 'the callback')
    assert (failed[0].id, failed[0].task, failed[0].detail) == (
        fails.id, 'tests.support.app.fail', 'failed',
    )  # fmt: skip
    wait_for(
        lambda: [one.event for one in heard if one.id == charge.id][-1:] == ['completed'], 20,
        'the end, which another thread hears',
    )  # fmt: skip
    lives: dict[str, list[str]] = defaultdict(list)
    for event in heard:
        lives[event.id].append(event.event)
    assert lives[charge.id] == ['put', 'popped', 'retried', 'popped', 'completed']
    assert told.id not in lives
    for subscription in subscriptions:
        subscription.close()
    kept.untrack().untag('billing')
    assert (ext.jobs[charge].tracked, ext.jobs[charge].tags) == (False, ('customer:17',))
    ext.jobs[charge].discard()
    done.discard()
    assert ext.jobs.get(told) is None and ext.tags.top() == []


def test_a_run_that_was_overtaken_tells_nothing(
    workers: Fleet, ext: Extension, send: Any, tmp_path: Path
) -> None:
    """It was frozen for longer than its lease, and another worker has its job."""
    door = tmp_path / 'door'
    frozen = workers.start(concurrency=1)
    result = send('tell', str(door))
    workers.ledger.wait(1, 'told')
    frozen.pause()
    workers.start(concurrency=1)
    second = workers.ledger.wait(2, 'told')[-1]
    door.touch()
    assert result.get(20) == 'leased'
    frozen.resume()
    frozen.wait_for_log("its job is not this run's any more")
    told = [event.data['pid'] for event in ext.jobs[result].history if event.event == 'log']
    assert told[-1] == second['pid']
    assert ext.jobs[result].progress == 1.0


def test_acting_on_all_that_have_a_tag(ext: Extension, send: Any) -> None:
    for number in range(130):
        tags = ['batch', 'even' if number % 2 == 0 else 'odd']
        send('run', number, tags=tags, countdown=3600 if number % 3 == 0 else None)
    send('run', 'other', tags=['other'])
    seen: list[tuple[int, int]] = []

    def progress(result: Result) -> None:
        seen.append((result.seen, result.total))

    even = ext.tags.select('batch', 'even')
    assert repr(even) == "<jobs tagged 'batch' and 'even'>"
    plan = even.cancel(dry_run=True, progress=progress)
    assert (plan.total, plan.seen, plan.done, plan.skipped) == (65, 65, 65, {})
    assert seen == [(25, 65), (50, 65), (65, 65)]
    assert ext.tags.top(1) == [('batch', 130)]
    assert even.set_priority(9).done == 65
    assert {job.priority for job in even} == {9}
    assert even.move('aside').done == 65
    assert ext.queues['aside'].counts().ready + ext.queues['aside'].counts().delayed == 65
    assert even.retry().skipped == {'ready': 43, 'delayed': 22}
    result = even.cancel()
    assert (result.done, result.skipped, even.at_most()) == (65, {}, 0)
    both = ext.tags.select('odd', 'other', any=True)
    assert len(list(both)) == 66
    assert both.cancel().done == 66
    assert ext.tags.top() == []


def test_one_that_others_wait_for_is_spared(ext: Extension, send: Any) -> None:
    wanted = send('run', 1, tags=['batch'])
    send('run', 2, tags=['batch'], depends_on=wanted)
    free = send('run', 3, tags=['batch'])
    result = ext.tags['batch'].cancel()
    assert (result.done, result.skipped) == (2, {'dependents': 1})
    assert wanted.id in ext.jobs and free.id not in ext.jobs
    assert ext.tags['batch'].cancel(cascade=True).done == 1
