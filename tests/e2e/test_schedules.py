"""Schedules on real workers that are killed, with code that changes, over the command line."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

import celery_ext
from celery_ext import Extension, InvalidSchedule, Schedule, UnknownSchedule, WrongState
from celery_ext.cli import reliable
from kombu_reliable import Timing
from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet

TICK = 'tests.support.scheduled.tick'
DAWDLE = 'tests.support.scheduled.dawdle'

MakeFleet = Callable[..., Fleet]


@pytest.fixture
def scheduled(make_fleet: MakeFleet) -> Fleet:
    """A fleet whose code declares what ``KR_SCHEDULES`` says, with a lease of 2 s."""
    return make_fleet(module='tests.support.scheduled')


@pytest.fixture
def ext(scheduled: Fleet) -> Extension:
    return celery_ext.install(scheduled.app())


def start(fleet: Fleet, *arguments: str, declared: Any = None, **options: Any) -> Any:
    options.setdefault('concurrency', 1)
    return fleet.start(*arguments, KR_SCHEDULES=json.dumps(declared or {}), **options)


def kill_in_turn(
    fleet: Fleet,
    seconds: float,
    declared: Any = None,
    each: Callable[[], None] = lambda: None,
    pause: float = 2,
) -> None:
    """Kills the worker that has lived longest every 2 s, and starts another one in its place."""
    begin = time.monotonic()
    for number in range(1, round(seconds / pause) + 1):
        time.sleep(max(0.0, begin + pause * number - time.monotonic()))
        [victim, *_] = [worker for worker in fleet.workers if worker.process.poll() is None]
        victim.kill()
        start(fleet, declared=declared, ready=False)
        each()


def occurrences(schedule: Schedule) -> list[int]:
    """What was published, oldest first, in ms since the epoch."""
    return [
        round(run.scheduled_for.timestamp() * 1000)
        for run in reversed(schedule.history(50))
        if run.event == 'fired' and run.scheduled_for is not None
    ]


def lateness(schedule: Schedule) -> list[float]:
    """How late the last occurrences were published, in s, in order."""
    return sorted(
        (run.at - run.scheduled_for).total_seconds()
        for run in schedule.history(50)
        if run.event == 'fired' and run.scheduled_for is not None
    )


def published_ids(ext: Extension, name: str, seen: dict[str, int]) -> None:
    for run in ext.schedules[name].history(50):
        if run.event == 'fired' and run.id is not None and run.scheduled_for is not None:
            seen[run.id] = round(run.scheduled_for.timestamp() * 1000)


def survive_kills(fleet: Fleet, ext: Extension, seconds: float) -> None:
    """An every-second schedule publishes each occurrence once while workers are killed."""
    declared = {'second': {'every': 1, 'backlog': 60}}
    for _ in range(3):
        start(fleet, declared=declared)
    seen: dict[str, int] = {}
    kill_in_turn(fleet, seconds, declared, lambda: published_ids(ext, 'second', seen))
    schedule = ext.schedules['second']
    last = max(seen.values())

    def caught_up() -> bool:
        published_ids(ext, 'second', seen)
        return max(seen.values()) >= last + 5_000

    wait_for(caught_up, 40, 'it goes on')
    schedule.pause()
    published_ids(ext, 'second', seen)
    times = sorted(seen.values())
    first = times[0]
    assert times == list(range(first, times[-1] + 1, 1000)), 'each once, none left out'
    assert schedule.refresh().runs == len(times) >= seconds
    runs = wait_for(
        lambda: (
            found
            if (found := Counter(line['id'] for line in fleet.ledger.lines('tick'))).keys()
            >= seen.keys()
            else None
        ),
        20,
        'all have run',
    )
    assert set(runs) == set(seen), 'nothing ran that was not published'
    twice = [
        line for line in fleet.ledger.lines('tick') if runs[line['id']] > 1
    ]  # only where the first was killed
    assert all(any(line['deliveries'] > 1 for line in twice if line['id'] == one['id'])
               for one in twice)  # fmt: skip


def test_each_second_once_while_workers_are_killed(scheduled: Fleet, ext: Extension) -> None:
    survive_kills(scheduled, ext, 4)


@pytest.mark.matrix
def test_a_minute_of_kills(scheduled: Fleet, ext: Extension) -> None:
    survive_kills(scheduled, ext, 60)


def fired_once_each(fleet: Fleet, schedule: Schedule) -> None:
    """Each second's occurrence was published once, in time, and ran once."""
    schedule.pause()
    times = occurrences(schedule)
    assert times == list(range(times[0], times[-1] + 1, 1000))
    assert len(times) == schedule.refresh().runs
    assert lateness(schedule)[0] >= 0 and lateness(schedule)[-1] < 5
    wait_for(lambda: len(fleet.ledger.lines('tick')) >= len(times), 20, 'all have run')
    assert len({line['id'] for line in fleet.ledger.lines('tick')}) == len(times)


@pytest.mark.parametrize('ahead', [3600, -3600])
def test_the_clock_of_one_worker_is_wrong_by_an_hour(
    scheduled: Fleet, ext: Extension, ahead: float
) -> None:
    declared = {'often': {'every': 1, 'backlog': 60}}
    for offset in (ahead, 0):
        start(scheduled, declared=declared, ready=False, KR_AHEAD=str(offset))
    scheduled.ledger.wait(4, 'tick')
    fired_once_each(scheduled, ext.schedules['often'])


def test_two_versions_of_the_code_during_a_deploy(scheduled: Fleet, ext: Extension) -> None:
    """The new one wins, and none fires what the other one has fired."""

    def version(value: str) -> Any:
        declared = {'often': {'every': 1, 'backlog': 60, 'kwargs': {'value': value}}}
        return start(scheduled, declared=declared)

    old = version('old')
    scheduled.ledger.wait(2, 'tick', value='old')
    version('new')
    scheduled.ledger.wait(2, 'tick', value='new')
    version('old')  # a worker of the old version starts once more
    count = len(scheduled.ledger.lines('tick', value='new'))
    scheduled.ledger.wait(count + 3, 'tick', value='new')
    old.terminate()
    old.wait()
    count = len(scheduled.ledger.lines('tick', value='new'))
    scheduled.ledger.wait(count + 2, 'tick', value='new')
    schedule = ext.schedules['often']
    fired_once_each(scheduled, schedule)
    # In the order in which they were published: some worker may be late with what it runs.
    value = {line['id']: line['value'] for line in scheduled.ledger.lines('tick')}
    fired = [run.id for run in reversed(schedule.history(50)) if run.event == 'fired']
    values = [value[id] for id in fired]
    assert set(values[values.index('new') :]) == {'new'}, 'nothing flips back'


def alone(fleet: Fleet, value: str) -> list[tuple[float, float]]:
    """The runs of a schedule, none of which overlaps another: begin and end."""
    runs: list[tuple[float, float]] = []
    begun: dict[str, float] = {}
    for line in fleet.ledger.lines(value=value):
        if line['event'] == 'began':
            begun[line['id']] = line['at']  # of one that was killed, the last time
            others = [one for one in begun if one != line['id']]
            assert not others, f'{line["id"]} began while {others} ran'
        elif line['event'] == 'done':
            runs.append((begun.pop(line['id']), line['at']))
    return runs


def kill_who_runs(fleet: Fleet, value: str) -> None:
    """Kills a worker in the middle of a run."""
    count = len(fleet.ledger.lines('began', value=value))
    began = fleet.ledger.wait(count + 1, 'began', value=value)[-1]
    for worker in [one for one in fleet.workers if one.process.poll() is None]:
        if began['pid'] in worker.pool_pids():
            worker.kill()
            start(fleet, ready=False)


def never_two(fleet: Fleet, ext: Extension, seconds: float) -> None:
    for _ in range(2):
        start(fleet, concurrency=2)
    dawdle = {'task': DAWDLE, 'args': [0.1, 0.8]}
    create = ext.schedules.create
    one = create('alone', every=0.3, kwargs={'value': 'a'}, overlap=False, **dawdle)
    after = create('after', every=0.7, kwargs={'value': 'e'}, after='end', **dawdle)
    fleet.ledger.wait(1, 'done', value='e')
    kill_who_runs(fleet, 'e')
    # In the rhythm of the lease each kill could hit the same job, until it is delivered no more.
    kill_in_turn(fleet, seconds, pause=2.7)
    for value in 'ae':
        count = len(fleet.ledger.lines('done', value=value))
        fleet.ledger.wait(count + 3, 'done', timeout=40, value=value)
    one.pause()
    after.pause()
    assert len(alone(fleet, 'a')) >= 3
    assert 'skipped' in {run.event for run in one.history(50)}
    runs = alone(fleet, 'e')
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(runs)]
    assert all(gap >= 0.69 for gap in gaps), gaps
    assert min(gaps) < 2 * 0.69, gaps  # behind a kill, and on a busy machine, it takes longer


def test_never_two_at_once(scheduled: Fleet, ext: Extension) -> None:
    """With ``overlap=False``, and with an interval that counts from the end of the last run."""
    never_two(scheduled, ext, 0)


@pytest.mark.matrix
def test_never_two_at_once_for_a_minute(scheduled: Fleet, ext: Extension) -> None:
    never_two(scheduled, ext, 60)


# -- an app's life ---------------------------------------------------------------


def test_an_apps_beat_schedule_moves_by_configuration_alone(make_fleet: MakeFleet) -> None:
    """What stands in ``beat_schedule`` fires, precisely, with no beat."""
    entry = {
        'task': TICK, 'schedule': 0.2, 'args': ['configured'], 'options': {'priority': 3},
        'backlog': 60,  # a busy machine may be late
    }  # fmt: skip
    fleet = make_fleet(module='tests.support.scheduled', config={'beat_schedule': {'often': entry}})
    ext = celery_ext.install(fleet.app())
    start(fleet, declared={'mine': {'every': 0.3, 'kwargs': {'value': 'decorated'}}})
    fleet.ledger.wait(3, 'tick', value='decorated')
    fleet.ledger.wait(16, 'tick', value='configured')
    schedule = ext.schedules['often']

    def is_precise() -> bool:
        late = lateness(schedule)
        return late[len(late) // 2] < 0.1

    wait_for(is_precise, 30, 'precise occurrences')
    schedule.pause()
    times = occurrences(schedule)
    assert times == list(range(times[0], times[-1] + 1, 200))
    # Nothing was published twice under another id.
    wait_for(lambda: len(fleet.ledger.lines('tick', value='configured')) >= schedule.runs)
    assert len(fleet.ledger.lines('tick', value='configured')) == schedule.refresh().runs


@pytest.mark.matrix
def test_idle_workers_are_on_time(scheduled: Fleet, ext: Extension) -> None:
    """The promise is 100 ms at the 99th percentile; it means a machine with nothing else to do."""
    for _ in range(3):
        start(scheduled)
    schedule = ext.schedules.create('often', TICK, 0.2)
    late: list[float] = []
    for count in range(1, 7):
        wait_for(lambda count=count: schedule.refresh().runs >= count * 50, 30)  # type: ignore[misc]
        late += lateness(schedule)
    late.sort()
    print(f'median {late[len(late) // 2]:.3f} s, p99 {late[round(len(late) * 0.99) - 1]:.3f} s')
    assert late[round(len(late) * 0.99) - 1] < 0.1


@contextmanager
def beats(fleet: Fleet, count: int) -> Iterator[list[Any]]:
    """Several beats at once, as an app starts them that says nothing of a scheduler."""
    logs = [(fleet.directory / f'beat{number}.log').open('wb') for number in range(count)]
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'celery', '-A', fleet.module, 'beat', '-l', 'INFO',
             '--pidfile='],
            cwd=ROOT, env=fleet.environment(), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT,
        )
        for log in logs
    ]  # fmt: skip
    try:
        yield processes
        for number, process in enumerate(processes):
            text = (fleet.directory / f'beat{number}.log').read_text()
            assert process.poll() is None, text
            assert 'Traceback' not in text, text
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def test_several_beats_for_workers_that_do_not_fire(make_fleet: MakeFleet) -> None:
    """And a beat that somebody still starts next to workers that do changes nothing."""
    entry = {'task': TICK, 'schedule': 0.2, 'args': ['beat'], 'backlog': 60}
    fleet = make_fleet(module='tests.support.scheduled', config={'beat_schedule': {'often': entry}})
    ext = celery_ext.install(fleet.app())
    start(fleet, '--without-schedules')
    assert len(ext.schedules) == 0
    with beats(fleet, 2) as processes:
        fleet.ledger.wait(10, 'tick', timeout=30)
        processes[0].kill()
        processes[0].wait(10)
        processes.pop(0)
        start(fleet)
        count = len(fleet.ledger.lines('tick'))
        fleet.ledger.wait(count + 10, 'tick')
        ext.schedules['often'].pause()
    times = occurrences(ext.schedules['often'])
    assert times == list(range(times[0], times[-1] + 1, 200))


def test_what_one_can_do(scheduled: Fleet, ext: Extension) -> None:
    start(scheduled, declared={'declared': {'every': 3600}})
    assert ext.schedules.names() == ['declared']
    declared = ext.schedules['declared']
    assert declared.declared and declared.when == 'every 1 h' and declared.next_run is not None
    made = ext.schedules.create('made', TICK, '0 4 * * *', zone='Europe/Berlin', args=['a'])
    assert (made.state, made.when, made.task) == ('active', '0 4 * * * Europe/Berlin', TICK)
    with pytest.raises(InvalidSchedule, match='already'):
        ext.schedules.create('made', TICK, 5)
    assert made.run_now().get(10) == 'a'
    assert (made.runs, made.history()[0].event) == (0, 'asked')
    assert made.pause() and not made.pause() and made.next_run is None
    assert made.run_now().get(10) == 'a', 'also while it is paused'
    assert made.resume() and not made.resume() and made.next_run is not None
    made.update(every='30 4 * * *')
    assert made.when == '30 4 * * * Europe/Berlin'
    made.update(every='30 4 * * *', zone='Asia/Tokyo', args=['b'])
    assert made.when == '30 4 * * * Asia/Tokyo'
    made.update(every=0.2)
    scheduled.ledger.wait(3, 'tick', value='b')
    assert [run.event for run in made.history(50)][-7:] == [
        'changed', 'changed', 'changed', 'resumed', 'asked', 'paused', 'asked',
    ]  # fmt: skip
    # Of what code declares, a change at run time holds until that changes.
    declared.update(every=0.2, kwargs={'value': 'changed'})
    start(scheduled, declared={'declared': {'every': 3600}})
    scheduled.ledger.wait(3, 'tick', value='changed')
    start(scheduled, declared={'declared': {'every': 7200}})
    assert declared.refresh().when == 'every 2 h'
    assert made.delete() and not made.delete() and 'made' not in ext.schedules
    with pytest.raises(UnknownSchedule):
        made.run_now()
    # A task that nobody knows is found among the dead.
    lost = ext.schedules.create('lost', 'no.such.task', 0.2, max_runs=2)
    wait_for(lambda: len(ext.jobs.failed()) == 2, 15, 'two dead letters')
    [job, _] = ext.jobs.failed()
    assert (job.task, lost.refresh().state) == ('no.such.task', 'ended')
    assert job.id in {run.id for run in lost.history()}
    # One that no machine here can read waits for one that can.
    fields = {'when': '{"kind": "solar", "event": "sunset", "lat": 0, "lon": 0}', 'spec': '{}'}
    ext.schedules.store.put('strange', {**fields, 'rules': '{}'}, Timing(1, 1), '')
    wait_for(lambda: 'strange cannot be fired here' in ''.join(
        worker.text() for worker in scheduled.workers))  # fmt: skip
    assert ext.schedules['strange'].state == 'active'
    door = scheduled.directory / 'door'
    alone = ext.schedules.create(
        'alone', 'tests.support.app.wait_for_file', 3600, args=[str(door)], overlap=False
    )
    run = alone.run_now()
    with pytest.raises(WrongState, match='has not ended'):
        alone.run_now()
    door.touch()
    run.get(10)
    wait_for(lambda: run not in ext.jobs)
    alone.run_now().get(10)


def test_the_command_line(scheduled: Fleet, ext: Extension) -> None:
    def run(*words: str, code: int = 0) -> Any:
        done = CliRunner().invoke(reliable, ['schedules', *words], obj=SimpleNamespace(app=ext.app))
        assert done.exit_code == code, (done.output, done.exception)
        return json.loads(done.stdout) if '--json' in words else done.output

    assert 'no schedules' in run('list')
    made = run('create', 'a', TICK, '--every', '60', '--args', '["x"]', '--no-overlap', '--json')
    assert (made['when'], made['state']) == ('every 1 min', 'active')
    assert run('pause', 'a') == 'a: paused\n'
    assert run('pause', 'a') == 'a: was paused before\n'
    shown = run('show', 'a', '--json')
    assert (shown['state'], shown['args'], shown['overlap']) == ('paused', ['x'], False)
    assert [line['event'] for line in shown['history']] == ['paused']
    sent = run('run', 'a', '--json')['id']
    assert ext.jobs[sent].task == TICK
    assert 'goes on' in run('resume', 'a')
    assert 'every 1 min' in run('list')
    assert 'interval of 0.0 s' in run('update', 'a', '--every', '0', code=1)
    assert run('update', 'a', '--every', '*/5 * * * *', '--json')['when'] == '*/5 * * * *'
    assert 'no time zone' in run('create', 'b', TICK, '--every', '* * * * *', '--zone', 'X', code=1)
    assert 'no schedule' in run('show', 'b', code=1)
    assert 'deleted' in run('delete', 'a', '--yes')
    assert run('list', '--json') == {'schedules': []}
