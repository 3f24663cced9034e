"""``depends_on``: tasks that wait for others, whatever form these are given in."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from celery_ext import (
    DependencyCycle,
    DependencyFailed,
    Extension,
    HasDependents,
    WrongState,
    expected,
)
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

Send = Callable[..., AsyncResult]


def gone(ext: Extension, *results: AsyncResult) -> None:
    wait_for(lambda: not [one for one in results if one in ext.jobs], 20, 'they have ended')


def test_a_result_of_another_queue(installed: Fleet, ext: Extension, send: Send) -> None:
    first = send('run', 1, queue='one')
    second = send('run', 2, queue='two', depends_on=first)
    job = ext.jobs[second]
    assert (job.state, list(job.depends_on), job.depends_on.total) == ('waiting', [first.id], 1)
    assert ext.jobs[first].dependents == (second.id,)
    assert ext.queues['two'].counts().waiting == 1
    installed.start('-Q', 'two', concurrency=1)
    installed.start('-Q', 'one', concurrency=1)
    assert second.get(20) == 2
    assert installed.ledger.values('ran') == [1, 2]
    # What has ended counts as done.
    gone(ext, first, second)
    assert send('run', 3, queue='one', depends_on=[first, second]).get(20) == 3


def test_a_group_and_a_chord(installed: Fleet, ext: Extension, send: Send) -> None:
    installed.start(concurrency=2)
    members = group(task(ext.app, 'sleep', 0.3, n) for n in range(3)).apply_async()
    after = send('run', 'after', depends_on=members)
    assert after.get(20) == 'after'
    done = [line['value'] for line in installed.ledger.lines('ended')]
    assert sorted(done) == [0, 1, 2]
    assert installed.ledger.lines('ran')[0]['at'] >= max(
        line['at'] for line in installed.ledger.lines('ended')
    )
    whole = chord([task(ext.app, 'sleep', 0.3, n) for n in (5, 6)])(task(ext.app, 'total'))
    last = send('run', 'last', depends_on=whole)
    assert last.get(20) == 'last'
    assert {5, 6} <= {line['value'] for line in installed.ledger.lines('ended')}
    assert whole.get(1) == 11


def test_a_chain_that_goes_on(installed: Fleet, ext: Extension, send: Send, tmp_path: Path) -> None:
    """Its last task is not there yet, and must not count as done long ago."""
    door = tmp_path / 'door'
    steps = chain(
        task(ext.app, 'wait_for_file', str(door), 'first').set(immutable=True),
        task(ext.app, 'sleep', 0.3, 'second').set(immutable=True),
    ).apply_async()
    after = send('run', 'after', depends_on=steps)
    installed.start(concurrency=2)
    installed.ledger.wait(1, 'started', value='first')
    assert ext.jobs[after].state == 'waiting'
    door.touch()
    assert after.get(20) == 'after'
    [ended] = installed.ledger.lines('ended', value='second')
    assert installed.ledger.lines('ran')[0]['at'] >= ended['at']
    # Now it has ended, and nobody waits for it for a day.
    gone(ext, steps, steps.parent)
    assert send('run', 'late', depends_on=steps).get(20) == 'late'


def test_what_is_still_to_come(installed: Fleet, ext: Extension, send: Send) -> None:
    installed.start(concurrency=1)
    before = task(ext.app, 'run', 'before')
    before.freeze()
    after = send('run', 'after', depends_on=before)
    other = send('run', 'other', depends_on=[expected('by-name', timeout=60)])
    late = send('run', 'late', depends_on=[expected('never', timeout=0.5)])
    with pytest.raises(DependencyFailed, match='in time'):
        late.get(20)
    assert ext.jobs[late].failure is not None
    assert ext.jobs[after].state == ext.jobs[other].state == 'waiting'
    before.apply_async()
    send('run', 'named', task_id='by-name')
    assert (after.get(20), other.get(20)) == ('after', 'other')
    ran = installed.ledger.values('ran')
    assert ran.index('before') < ran.index('after')
    assert ran.index('named') < ran.index('other')


def test_a_member_of_a_canvas(installed: Fleet, ext: Extension, send: Send, tmp_path: Path) -> None:
    """A worker publishes it, with the options that it had when it was written."""
    door = tmp_path / 'door'
    slow = send('wait_for_file', str(door), 'slow')
    steps = chain(
        task(ext.app, 'run', 1).set(immutable=True),
        task(ext.app, 'run', 2).set(immutable=True, depends_on=[slow]),
    ).apply_async()
    installed.start(concurrency=2)
    wait_for(lambda: steps in ext.jobs and ext.jobs[steps].state == 'waiting', 20, 'it waits')
    assert list(ext.jobs[steps].depends_on) == [slow.id]
    door.touch()
    assert steps.get(20) == 2


def test_a_delay_is_kept(installed: Fleet, ext: Extension, send: Send) -> None:
    installed.start(concurrency=1)
    asked = time.time()
    first = send('sleep', 0.3, 'first')
    second = send('run', 'second', depends_on=first, countdown=1.5)
    assert second.get(20) == 'second'
    assert installed.ledger.lines('ran')[0]['at'] - asked >= 1.5 - 0.01


def test_a_failed_dependency_is_replayed(installed: Fleet, ext: Extension, send: Send) -> None:
    installed.start(concurrency=1)
    first = send('fail', 'once')
    waits = send('run', 'waits', depends_on=first)
    fails = send('run', 'fails', depends_on=first, dependency_policy='fail')
    ignores = send('run', 'ignores', depends_on=first, dependency_policy='ignore')
    after = send('run', 'after', depends_on=fails, dependency_policy='fail')
    assert ignores.get(20) == 'ignores'
    for one in (fails, after):
        with pytest.raises(DependencyFailed):
            one.get(20)
        job = ext.jobs[one]
        assert job.failure is not None and job.failure.reason == 'dependency'
    assert ext.jobs[waits].state == 'waiting'
    # It fails again, and waits for it again; discarded, it will never come.
    ext.jobs[first].retry()
    wait_for(lambda: ext.jobs[first].state == 'failed', 20, 'it has failed again')
    assert ext.jobs[waits].state == 'waiting'
    ext.dead.discard(first)
    with pytest.raises(DependencyFailed):
        waits.get(20)


def test_a_replay_that_succeeds(
    installed: Fleet, ext: Extension, send: Send, tmp_path: Path
) -> None:
    installed.start(concurrency=1)
    first = send('fail_unless', str(tmp_path / 'repaired'))
    after = send('run', 'after', depends_on=first)
    wait_for(lambda: ext.jobs[first].state == 'failed', 20, 'it has failed')
    (tmp_path / 'repaired').touch()
    assert ext.dead.replay_group(ext.jobs[first].task) == 1
    assert after.get(20) == 'after'
    assert list(ext.dead) == []


def test_waiting_tasks_are_revoked_and_cancelled(
    installed: Fleet, ext: Extension, send: Send, tmp_path: Path
) -> None:
    door = tmp_path / 'door'
    first = send('wait_for_file', str(door), 'first')
    revoked, canceled, kept = (send('run', n, depends_on=first) for n in range(3))
    revoked.revoke()
    assert ext.jobs.cancel(canceled) == 'gone'
    installed.start(concurrency=1)
    door.touch()
    assert kept.get(20) == 2
    assert installed.ledger.values('ran') == [2]
    for one in (revoked, canceled):
        with pytest.raises(TaskRevokedError):
            one.get(20)


def test_cancelling_what_others_wait_for(installed: Fleet, ext: Extension, send: Send) -> None:
    installed.start('-Q', 'two', concurrency=1)
    first = send('run', 1, queue='one')
    waits = send('run', 2, queue='two', depends_on=first)
    ignores = send('run', 3, queue='two', depends_on=first, dependency_policy='ignore')
    with pytest.raises(HasDependents, match='cascade=True'):
        ext.jobs[first].cancel()
    assert ext.jobs[first].state == 'ready'
    assert ext.jobs[first].cancel(cascade=True) == 'gone'
    assert ignores.get(20) == 3
    with pytest.raises(DependencyFailed):
        waits.get(20)
    # A revoke asks nobody.
    first = send('run', 4, queue='one')
    waits = send('run', 5, queue='two', depends_on=first)
    first.revoke()
    with pytest.raises(DependencyFailed):
        waits.get(20)


def test_dependencies_are_added_and_removed(installed: Fleet, ext: Extension, send: Send) -> None:
    first, second, third = (send('run', n, queue=f'q{n}') for n in range(3))
    job = ext.jobs[send('run', 'last', depends_on=first)]
    job.depends_on.add(second, third)
    assert sorted(job.depends_on) == sorted([first.id, second.id, third.id])
    job.depends_on.remove(first)
    assert sorted(job.depends_on) == sorted([second.id, third.id])
    installed.start('-Q', 'celery,q1', concurrency=1)
    gone(ext, second)
    assert list(job.refresh().depends_on) == [third.id]
    job.depends_on.remove(third.id)
    assert job.result.get(20) == 'last'
    with pytest.raises(WrongState, match='waits for nothing'):
        ext.jobs[third].depends_on.add(first)


def test_nothing_waits_for_itself(ext: Extension, send: Send) -> None:
    with pytest.raises(DependencyCycle, match='itself'):
        send('run', 1, task_id='same', depends_on=['same'])
    first = send('run', 1, task_id='first', depends_on=[expected('third', 60)])
    second = send('run', 2, task_id='second', depends_on=first)
    with pytest.raises(DependencyCycle):
        send('run', 3, task_id='third', depends_on=second)
    assert ext.jobs.get('third') is None
    with pytest.raises(DependencyCycle):
        ext.jobs[first].depends_on.add(second)
    with pytest.raises(DependencyCycle):
        ext.jobs[first].depends_on.add(first)
    assert list(ext.jobs[second].depends_on) == ['first']


def test_a_chord_whose_member_is_cancelled_ends(
    installed: Fleet, ext: Extension, send: Send
) -> None:
    members: list[Any] = [task(ext.app, 'run', n).set(task_id=f'm{n}') for n in range(2)]
    members[1].set(queue='nobody')
    whole = chord(members)(task(ext.app, 'total'))
    installed.start(concurrency=1)
    assert ext.jobs.cancel('m1') == 'gone'
    with pytest.raises(Exception, match=r'canceled|revoked'):
        whole.get(20)
