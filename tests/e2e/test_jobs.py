"""Tasks as things that one can look at and act on, with real workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_ext import (
    Extension,
    InvalidArgument,
    Job,
    UnknownJob,
    WrongState,
)
from tests.support.wait import wait_for
from tests.support.workers import Fleet, Worker, task


@pytest.fixture
def workers(installed: Fleet) -> Fleet:
    return installed


class Door:
    """A file for which tasks wait."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def open(self) -> None:
        self.path.touch()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path / 'door')
    yield made
    made.open()


def state_of(ext: Extension, result: AsyncResult) -> str | None:
    job = ext.jobs.get(result)
    return job and job.state


def until_state(ext: Extension, result: AsyncResult, state: str | None) -> Job | None:
    wait_for(lambda: state_of(ext, result) == state, 20, f'{result.id} is {state}')
    return ext.jobs.get(result)


def busy_worker(workers: Fleet, send: Callable[..., AsyncResult], door: Door) -> Worker:
    """A worker with one process, which waits for the door."""
    worker = workers.start(concurrency=1)
    send('wait_for_file', str(door), 'first')
    workers.ledger.wait(1, 'started', value='first')
    return worker


def prefetched(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> tuple[Worker, AsyncResult]:
    worker = busy_worker(workers, send, door)
    result = send('run', 'second')
    until_state(ext, result, 'leased')
    worker.wait_for_log(result.id)
    return worker, result


def passes_by(workers: Fleet, send: Callable[..., AsyncResult]) -> None:
    """A task that is published later has run, so what was before it had its turn."""
    assert send('run', 'last').get(30) == 'last'
    workers.ledger.wait(1, 'ran', value='last')


# -- looking ---------------------------------------------------------------------


def test_a_job_before_and_while_it_runs(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    result = send('wait_for_file', str(door), 'x', queue='celery', priority=7)
    job = ext.jobs[result.id]
    assert (job.id, job.state, job.queue, job.priority) == (result.id, 'ready', 'celery', 7)
    assert job.task == 'tests.support.app.wait_for_file'
    assert job.args == repr((str(door), 'x'))
    assert job.kwargs == '{}'
    assert (job.deliveries, job.worker, job.lease_expires_at, job.due) == (0, None, None, None)
    assert before < job.published_at < datetime.now(UTC) + timedelta(seconds=1)
    assert (job.failure, job.history, list(job.depends_on), job.dependents) == (None, [], [], ())
    assert job.result == result
    workers.start(concurrency=1)
    workers.ledger.wait(1, 'started')
    job.refresh()
    assert (job.state, job.deliveries) == ('leased', 1)
    assert job.worker
    assert job.lease_expires_at is not None and job.lease_expires_at > before
    door.open()
    assert result.get(20) == 'x'
    until_state(ext, result, None)
    with pytest.raises(UnknownJob, match='ended'):
        job.refresh()


def test_a_delayed_job(ext: Extension, send: Callable[..., AsyncResult]) -> None:
    due = datetime.now(UTC) + timedelta(hours=2)
    job = ext.jobs[send('run', 1, eta=due)]
    assert job.state == 'delayed'
    assert job.due is not None and abs(job.due - due) < timedelta(milliseconds=2)
    assert [one.id for one in ext.jobs.in_state('delayed')] == [job.id]


def test_listings_over_all_queues_are_paged(
    ext: Extension, send: Callable[..., AsyncResult]
) -> None:
    sent = {send('run', n, queue=f'q{n % 3}').id for n in range(10)}
    pages = [ext.jobs.in_state('ready', offset=at, limit=4) for at in (0, 4, 8)]
    assert [len(page) for page in pages] == [4, 4, 2]
    assert {job.id for page in pages for job in page} == sent
    assert len(ext.jobs.in_state('ready', queue='q0')) == 4
    assert [job.args for job in ext.queues['q0'].peek(2)] == ['(0,)', '(3,)']
    assert {'q0', 'q1', 'q2'} <= set(ext.queues.names())


# -- revoke ----------------------------------------------------------------------


@pytest.mark.parametrize('how', ['result', 'control', 'group'])
@pytest.mark.parametrize('options', [{}, {'countdown': 1.5}], ids=['ready', 'delayed'])
def test_what_is_revoked_before_any_worker_runs_never_does(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], how: str, options: Any
) -> None:
    if how == 'group':
        sent = group(task(ext.app, 'run', n).set(**options) for n in range(3))
        results = sent.apply_async()
        results.revoke()
        revoked = results.results
    else:
        revoked = [send('run', 1, **options)]
        if how == 'result':
            revoked[0].revoke()
        else:
            ext.app.control.revoke([revoked[0].id])
    assert [ext.jobs.get(one) for one in revoked] == [None] * len(revoked)
    workers.start(concurrency=1)
    passes_by(workers, send)
    assert [line['value'] for line in workers.ledger.lines('ran')] == ['last']
    for one in revoked:
        with pytest.raises(TaskRevokedError):
            one.get(20)


def test_a_prefetched_task_that_is_revoked_does_not_start(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> None:
    _, result = prefetched(workers, ext, send, door)
    result.revoke()
    door.open()
    with pytest.raises(TaskRevokedError):
        result.get(20)
    passes_by(workers, send)
    until_state(ext, result, None)
    assert not workers.ledger.lines('ran', value='second')


def test_a_revoke_outlives_the_worker_that_heard_of_it(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> None:
    worker, result = prefetched(workers, ext, send, door)
    worker.pause()  # it hears of nothing any more
    result.revoke()
    worker.kill()
    door.open()
    workers.start(concurrency=1)
    workers.ledger.wait(1, 'ended', value='first', timeout=30)
    passes_by(workers, send)
    until_state(ext, result, None)
    assert not workers.ledger.lines('ran', value='second')
    with pytest.raises(TaskRevokedError):
        result.get(20)


def test_a_running_task_that_is_revoked_runs_to_its_end(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> None:
    workers.start(concurrency=1)
    result = send('wait_for_file', str(door), 'x')
    workers.ledger.wait(1, 'started')
    result.revoke()
    door.open()
    assert result.get(20) == 'x'
    until_state(ext, result, None)
    assert ext.dead.page() == []


def test_a_running_task_that_is_revoked_has_its_last_run(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], tmp_path: Path
) -> None:
    path = tmp_path / 'retry'
    worker = workers.start(concurrency=1)
    result = send('retry_after', str(path))
    workers.ledger.wait(1, 'started')
    # Only the server hears of it, as if the worker had been restarted meanwhile.
    ext.jobs.revoke([result.id])
    path.touch()
    workers.ledger.wait(1, 'retries')
    passes_by(workers, send)
    with pytest.raises(TaskRevokedError):
        result.get(20)
    assert result not in ext.jobs
    assert len(workers.ledger.lines('started')) == 1
    assert 'Traceback' not in worker.text()


@pytest.mark.parametrize('how', ['revoke', 'cancel'])
def test_a_running_task_is_terminated(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door, how: str
) -> None:
    workers.start(concurrency=1)
    result = send('wait_for_file', str(door), 'x')
    workers.ledger.wait(1, 'started')
    if how == 'revoke':
        result.revoke(terminate=True, signal='KILL')
    else:
        assert ext.jobs.cancel(result, terminate=True, signal='KILL') == 'requested'
    assert state_of(ext, result) is None
    with pytest.raises(TaskRevokedError):
        result.get(20)
    passes_by(workers, send)  # with the door still shut
    assert not workers.ledger.lines('ended')
    assert len(workers.ledger.lines('started')) == 1
    assert ext.dead.page() == []


# -- cancel ----------------------------------------------------------------------


def test_cancel_of_what_waits(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult]
) -> None:
    ready, delayed = send('run', 1), send('run', 2, countdown=1)
    assert ext.jobs[ready].cancel() == 'gone'
    assert ext.jobs.cancel(delayed.id) == 'gone'
    assert ext.jobs.cancel(ready) == 'unknown'
    workers.start(concurrency=1)
    passes_by(workers, send)
    assert [line['value'] for line in workers.ledger.lines('ran')] == ['last']
    for one in (ready, delayed):
        with pytest.raises(TaskRevokedError):
            one.get(20)


def test_cancel_hits_all_jobs_under_an_id(ext: Extension, send: Callable[..., AsyncResult]) -> None:
    for n in range(3):
        send('run', n, task_id='same')
    assert [job.args for job in ext.jobs.all('same')] == ['(2,)', '(1,)', '(0,)']
    assert ext.jobs['same'].args == '(2,)'
    assert ext.jobs.cancel('same') == 'gone'
    assert ext.jobs.all('same') == []


def test_a_prefetched_task_that_is_cancelled_does_not_start(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> None:
    _, result = prefetched(workers, ext, send, door)
    assert ext.jobs[result].cancel() == 'requested'
    assert result not in ext.jobs
    door.open()
    passes_by(workers, send)
    assert not workers.ledger.lines('ran', value='second')
    with pytest.raises(TaskRevokedError):
        result.get(20)


def test_a_running_task_that_is_cancelled_cannot_settle(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], tmp_path: Path
) -> None:
    """Its retry is refused, so it does not come back."""
    path = tmp_path / 'retry'
    workers.start(concurrency=1)
    result = send('retry_after', str(path))
    workers.ledger.wait(1, 'started')
    assert ext.jobs.cancel(result) == 'requested'
    path.touch()
    workers.ledger.wait(1, 'retries')
    passes_by(workers, send)
    assert result not in ext.jobs
    assert len(workers.ledger.lines('started')) == 1


# -- pause, move, priority, time -------------------------------------------------


def test_pause_and_resume_over_two_workers(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult]
) -> None:
    for _ in range(2):
        workers.start('-Q', 'mail,other', concurrency=1)
    mail = ext.queues['mail']
    assert mail.pause() is True
    assert mail.pause() is False
    assert mail.paused and ext.queues.paused() == ['mail']
    results = [send('run', n, queue='mail') for n in range(4)]
    results += [send('run', 4, queue='mail', countdown=0.5)]
    assert send('run', 'other', queue='other').get(20) == 'other'
    wait_for(lambda: state_of(ext, results[4]) == 'ready', 20, 'it is due')
    assert send('run', 'another', queue='other').get(20) == 'another'
    assert workers.ledger.values('ran') == ['other', 'another']
    assert len(mail) == 5
    assert mail.resume() is True
    assert mail.resume() is False
    assert [result.get(20) for result in results] == [0, 1, 2, 3, 4]
    assert not mail.paused


def test_a_pause_outlives_the_workers(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult]
) -> None:
    ext.queues['celery'].pause()
    result = send('run', 1)
    worker = workers.start('-Q', 'celery,other', concurrency=1)
    assert send('run', 'other', queue='other').get(20) == 'other'
    worker.terminate()
    worker.wait()
    assert state_of(ext, result) == 'ready'
    workers.start(concurrency=1)
    ext.queues['celery'].resume()
    assert result.get(20) == 1


def test_moving_a_job(workers: Fleet, ext: Extension, send: Callable[..., AsyncResult]) -> None:
    result = send('run', 1, queue='nobody')
    workers.start('-Q', 'somebody', concurrency=1)
    job = ext.jobs[result].move('somebody')
    assert job.queue in ('somebody', 'nobody')  # as it was if it has run already
    assert result.get(20) == 1


def test_priority_and_due_time(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult]
) -> None:
    low, high = send('run', 'low'), send('run', 'high')
    late = send('run', 'late', countdown=3600)
    assert ext.jobs[high].set_priority(9).priority == 9
    job = ext.jobs[late].reschedule(countdown=1800)
    assert job.due is not None and job.due < datetime.now(UTC) + timedelta(seconds=1801)
    ext.jobs[late].reschedule(datetime.now(UTC) - timedelta(seconds=1))
    workers.start(concurrency=1)
    assert [one.get(20) for one in (low, high, late)] == ['low', 'high', 'late']
    assert workers.ledger.values('ran')[0] == 'high'


def test_purge_by_state(ext: Extension, send: Callable[..., AsyncResult]) -> None:
    ready, delayed = send('run', 1), send('run', 2, countdown=60)
    queue = ext.queues['celery']
    assert queue.purge('delayed') == 1
    assert delayed not in ext.jobs
    assert ready in ext.jobs
    assert queue.purge() == 1
    assert len(queue) == 0


# -- dead letters ----------------------------------------------------------------


def test_a_failed_job_is_looked_at_and_runs_again(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], tmp_path: Path
) -> None:
    workers.start(concurrency=1)
    result = send('fail', 'with words')
    job = until_state(ext, result, 'failed')
    assert job is not None and job.failure is not None
    assert (job.failure.type, job.failure.message) == ('ValueError', 'with words')
    assert 'with words' in job.failure.traceback
    assert job.failure.group == 'tests.support.app.fail'
    [group_] = ext.dead.groups()
    assert (group_.name, group_.count) == ('tests.support.app.fail', 1)
    assert [one.id for one in ext.dead.page(group=group_.name)] == [result.id]
    assert [one.id for one in ext.dead] == [result.id]
    assert [one.id for one in ext.jobs.failed(queue='celery')] == [result.id]
    job.retry()
    wait_for(
        lambda: (job := ext.jobs.get(result)) and job.state == 'failed' and len(job.history) > 1,
        20, 'it has failed again',
    )  # fmt: skip
    assert ext.dead.replay_group('tests.support.app.fail') == 1
    until_state(ext, result, 'failed')
    ext.dead.discard(result)
    assert result not in ext.jobs
    assert list(ext.dead) == []


# -- what makes no sense ---------------------------------------------------------


def test_what_makes_no_sense_changes_nothing(
    workers: Fleet, ext: Extension, send: Callable[..., AsyncResult], door: Door
) -> None:
    ready = ext.jobs[send('run', 1, queue='nobody')]
    busy_worker(workers, send, door)
    running = next(iter(ext.jobs.in_state('leased')))
    refusals: list[tuple[type[Exception], Callable[[], Any]]] = [
        (UnknownJob, lambda: ext.jobs['nothing']),
        (UnknownJob, lambda: ext.jobs.retry('nothing')),
        (UnknownJob, lambda: ext.dead.discard('nothing')),
        (WrongState, lambda: ext.jobs.retry(ready)),
        (WrongState, ready.retry),
        (WrongState, running.retry),
        (WrongState, lambda: running.move('other')),
        (WrongState, lambda: running.set_priority(3)),
        (WrongState, lambda: running.reschedule(countdown=3)),
        (WrongState, ready.discard),
        (InvalidArgument, lambda: ready.set_priority(-1)),
        (InvalidArgument, lambda: ready.set_priority(256)),
        (InvalidArgument, lambda: ready.set_priority(float('nan'))),
        (InvalidArgument, lambda: ready.set_priority('high')),
        (InvalidArgument, lambda: ready.move('')),
        (InvalidArgument, lambda: ready.reschedule()),
        (InvalidArgument, lambda: ready.reschedule(countdown=-1)),
        (InvalidArgument, lambda: ready.reschedule(countdown=float('nan'))),
        (InvalidArgument, lambda: ready.reschedule('tomorrow')),
        (InvalidArgument, lambda: ext.jobs.in_state('asleep', 'celery')),
        (InvalidArgument, lambda: ext.jobs.in_state('ready', 'celery', offset=-1)),
        (InvalidArgument, lambda: ext.queues['celery'].purge('leased')),
    ]
    for error, action in refusals:
        with pytest.raises(error):
            action()
    assert ready.refresh().state == 'ready'
    assert running.refresh().state == 'leased'
