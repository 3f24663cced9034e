"""Schedules on the server: exactly once, what is missed, what must not overlap, who wins.

The server's clock is the tests': it stands years behind that of this machine, which must not
matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from kombu import Connection, Producer

from celery_ext.definition import define
from celery_ext.firing import Firer
from celery_ext.ticks import TICKS
from kombu_reliable import Fired, Firing, Store, Timing, Verdict, fire_schedule, open_envelope
from kombu_reliable.types import Settlement
from tests.conftest import START
from tests.support.plain import Connect

MINUTE = 60_000


class World:
    """One server with a clock of the test's own, and programs that fire."""

    def __init__(self, connection: Connection) -> None:
        self.channel: Any = connection.channel()
        self.store: Store = self.channel.store
        self.app = Celery('world', broker='memory://', set_as_current=False)
        self.app.conf.timezone = 'UTC'
        self.claims = 0
        self.now = START
        self.schedules = self.store.schedules(TICKS)

    @property
    def now(self) -> int:
        assert self.store.operations.now is not None
        return self.store.operations.now

    @now.setter
    def now(self, now: int) -> None:
        self.store.operations.now = now

    def firer(self, **declared: dict[str, Any]) -> Firer:
        """A program whose code declares some schedules."""
        made = {
            name: define(self.app, name, settings.pop('task', 'run'), **settings)
            for name, settings in ((name, dict(given)) for name, given in declared.items())
        }
        return Firer(self.app, self.store, self.channel, made)

    def create(self, name: str, every: Any = 60, **settings: Any) -> None:
        made = define(self.app, name, settings.pop('task', 'run'), every, **settings)
        fields = {'when': made.when, 'spec': made.spec, 'rules': made.rules}
        assert self.schedules.put(name, fields, made.first(self.now), '')

    def claim(self, queue: str = 'celery', count: int = 100) -> list[Any]:
        self.claims += 1
        call = self.store.operations.claim('w', f't{self.claims}', count, [queue])
        return list(self.store.run(call).deliveries)

    def wait(self, seconds: float) -> None:
        """Time passes while some worker lives that consumes nothing of this."""
        end = self.now + round(seconds * 1000)
        while self.now < end:
            self.now = min(end, self.now + 10_000)
            self.claim('elsewhere')

    def settle(self, delivery: Any, verdict: Verdict = Verdict.ACK) -> None:
        ended = Settlement(verdict, delivery.queue, delivery.id, delivery.token)
        self.store.run(self.store.operations.settle([ended]))

    def turn(self, firer: Firer | None = None) -> list[str]:
        """One worker looks: what it does with each tick that is there."""
        firer, outcomes = firer or self.firer(), []
        while ticks := self.claim(TICKS):
            for tick in ticks:
                _, _, rest = tick.envelope.partition(b'{}]')
                outcomes.append(firer.fire(rest.decode()))
                self.settle(tick)
        return outcomes

    def run_until(self, end: int, firer: Firer | None = None, ends: bool = False) -> None:
        """Workers live until a time; each wakes when something is due, and then only."""
        while True:
            due = [
                score for _, score in self.store.client.zrange(
                    self.store.keys.schedules, 0, 0, withscores=True
                )
            ]  # fmt: skip
            if not due or due[0] > end:
                break
            self.now = max(self.now, int(due[0]))
            self.turn(firer)
            if ends:
                self.finish()
        self.now = end

    def finish(self, queue: str = 'celery') -> int:
        """All runs that wait run and end."""
        jobs = self.claim(queue)
        for job in jobs:
            self.settle(job)
        return len(jobs)

    def published(self, queue: str = 'celery') -> int:
        return self.store.counts(queue).ready

    def events(self, name: str) -> list[str]:
        return [line['event'] for _, line in reversed(self.schedules.history(name))]

    def fired(self, name: str) -> list[int]:
        """The occurrences that were published, oldest first, in ms since the start."""
        lines = reversed(self.schedules.history(name))
        return [line['at'] - START for _, line in lines if line['event'] == 'fired']


@pytest.fixture
def world(connect: Connect) -> Iterator[World]:
    made = World(connect(lease=30))
    yield made
    made.store.operations.now = None


# -- once ------------------------------------------------------------------------


def test_an_occurrence_fires_once_however_many_try(world: World) -> None:
    world.create('a')
    world.now += MINUTE
    info = world.schedules.get('a')
    assert info is not None
    outcomes = []
    for _ in range(3):  # three workers that have read the same
        items = world.firer()._prepare(define(world.app, 'a', 'run', 60), world.now)[1]
        firing = Firing(
            'a', info.revision, info.at, Timing(START + 2 * MINUTE, START + 2 * MINUTE), runs=1
        )
        outcomes.append(fire_schedule(world.store, world.schedules, firing, items).outcome)
    assert outcomes == ['fired', 'late', 'late']
    assert world.published() == 1
    # And those who read what was done before.
    assert [world.firer().fire('a') for _ in range(2)] == ['nothing', 'nothing']
    assert world.published() == 1


def test_a_tick_wakes_one_worker_when_it_is_due(world: World) -> None:
    world.create('a', 60)
    world.now += MINUTE - 1
    assert world.claim(TICKS) == []
    world.now += 1
    assert world.turn() == ['fired']
    assert world.store.counts(TICKS).delayed == 1
    world.run_until(START + 10 * MINUTE)
    assert world.published() == 10
    assert world.fired('a') == [number * MINUTE for number in range(1, 11)]


def test_whoever_dies_between_leaves_it_to_the_next(world: World) -> None:
    world.create('a')
    world.now += MINUTE
    [tick] = world.claim(TICKS)  # and dies
    world.wait(10)
    assert world.claim(TICKS) == []
    world.wait(25)
    assert world.turn() == ['fired']
    assert world.published() == 1
    # It was only frozen, and comes back.
    assert world.firer().fire('a') == 'nothing'
    world.settle(tick)
    assert world.published() == 1
    # Another dies behind the script: his tick comes again and does nothing.
    world.wait((START + 2 * MINUTE - world.now) / 1000)
    [tick] = world.claim(TICKS)
    assert world.firer().fire('a') == 'fired'
    world.wait(35)
    assert world.turn() == ['nothing']
    assert world.published() == 2


def test_too_early_by_a_wrong_clock(world: World) -> None:
    world.create('a')
    info = world.schedules.get('a')
    assert info is not None
    items = world.firer()._prepare(define(world.app, 'a', 'run', 60), world.now)[1]
    firing = Firing('a', info.revision, info.at, Timing(None), runs=1)
    assert fire_schedule(world.store, world.schedules, firing, items) == Fired('early')
    assert world.published() == 0


def test_times_in_a_message_are_the_servers(world: World) -> None:
    world.create('a', expires=90, countdown=30, queue='slow', priority=7)
    world.run_until(START + MINUTE)
    counts = world.store.counts('slow')
    assert (counts.ready, counts.delayed) == (0, 1)
    world.now += 30_000
    [job] = world.claim('slow')
    headers = open_envelope(job.envelope, 'slow', '', 1)['headers']
    assert datetime.fromisoformat(headers['expires']) == datetime.fromtimestamp(
        (START + MINUTE + 90_000) / 1000, UTC
    )
    assert (headers['task'], headers['x-schedule']) == ('run', 'a')
    assert headers['celery_beat_task'] is True


# -- what is missed --------------------------------------------------------------


@pytest.mark.parametrize('backlog', [0, 1, 3])
@pytest.mark.parametrize('every', [60, '* * * * *'])
def test_ten_minutes_without_workers(world: World, backlog: int, every: Any) -> None:
    world.create('a', every, backlog=backlog)
    world.run_until(START + 5 * MINUTE)
    before = world.published()
    [_, last] = [world.schedules.get('a').at, world.fired('a')[-1]]  # type: ignore[union-attr]
    world.now = START + last + 10 * MINUTE + 30_000
    assert world.turn() == ['fired'] if backlog else ['idle']
    assert world.published() - before == backlog
    made_up = world.fired('a')[-backlog:] if backlog else []
    assert made_up == [last + (10 - back) * MINUTE for back in reversed(range(backlog))]
    # It goes on as if nothing had been.
    world.run_until(START + last + 12 * MINUTE)
    assert world.published() - before == backlog + 2
    assert 'missed' in world.events('a')


def test_the_one_that_is_just_due_is_not_missed(world: World) -> None:
    world.create('a', backlog=0)
    world.now += 10 * MINUTE + 5_000
    assert world.turn() == ['fired']
    assert world.fired('a') == [10 * MINUTE]


def test_a_long_backlog_is_made_up_in_steps(world: World) -> None:
    world.create('a', 1, backlog=130)
    world.now += 1_000_000
    assert world.turn() == ['fired'] * 3
    assert world.published() == 131
    info = world.schedules.get('a')
    assert info is not None and info.count == 131


# -- never two at once -----------------------------------------------------------


def test_no_overlap(world: World) -> None:
    world.create('a', overlap=False)
    world.run_until(START + 3 * MINUTE)
    assert world.published() == 1
    assert world.events('a') == ['fired', 'skipped', 'skipped']
    [run] = world.claim()
    world.run_until(START + 3 * MINUTE + 20_000)
    world.settle(run, Verdict.REQUEUE)  # its worker was lost
    world.run_until(START + 4 * MINUTE)
    assert world.published() == 1
    world.finish()
    world.run_until(START + 5 * MINUTE)
    assert world.published() == 1
    # A dead letter runs no more.
    [run] = world.claim()
    world.settle(run, Verdict.FAIL)
    world.run_until(START + 6 * MINUTE)
    assert world.published() == 1


def test_an_interval_from_the_end_of_the_last_run(world: World) -> None:
    world.create('a', after='end')
    world.run_until(START + MINUTE)
    [run] = world.claim()
    for _ in range(20):  # it runs for long, and its lease is renewed
        world.now += 10_000
        renewed = world.store.operations.renew([(run.queue, run.id, run.token)])
        world.store.run(renewed)
        assert world.turn() == []
    info = world.schedules.get('a')
    assert info is not None and (info.at, info.due) == ('end', None)
    world.settle(run)
    assert world.turn() == ['idle']
    ended = world.now
    info = world.schedules.get('a')
    assert info is not None and info.at == ended + MINUTE
    world.run_until(ended + MINUTE - 1)
    assert world.published() == 0
    world.run_until(ended + MINUTE)
    assert world.published() == 1
    # Its worker dies: it runs again, and the next one counts from the true end.
    world.claim()
    world.wait(40)
    [run] = world.claim()
    world.wait(5)
    assert world.turn() == []
    world.settle(run, Verdict.FAIL)
    ended = world.now
    assert world.turn() == ['idle']
    world.run_until(ended + MINUTE)
    assert world.published() == 1
    assert world.events('a') == ['fired', 'fired', 'fired']


def test_a_run_that_is_canceled_has_ended(world: World) -> None:
    world.create('a', after='end')
    world.run_until(START + MINUTE)
    [job] = world.store.jobs.in_state('celery', 'ready')
    world.store.jobs.cancel(job, cascade=True)
    assert world.turn() == ['idle']
    world.run_until(START + 2 * MINUTE)
    assert world.published() == 1


# -- limits ----------------------------------------------------------------------


def test_start_end_and_number(world: World) -> None:
    start, end = (
        datetime.fromtimestamp((START + minutes * MINUTE) / 1000, UTC) for minutes in (10, 12)
    )
    world.create('bounds', start=start, end=end)
    world.create('number', max_runs=2)
    world.run_until(START + 20 * MINUTE)
    assert world.fired('bounds') == [10 * MINUTE, 11 * MINUTE, 12 * MINUTE]
    assert world.fired('number') == [MINUTE, 2 * MINUTE]
    infos = world.schedules.read(['bounds', 'number'])
    assert [info and info.at for info in infos] == [None, None]


def test_offset_and_jitter(world: World) -> None:
    world.create('aligned', 600, offset=90)
    world.create('late', 60, jitter=20)
    aligned, late = world.schedules.read(['aligned', 'late'])
    assert aligned is not None and late is not None
    assert isinstance(aligned.at, int) and aligned.at % 600_000 == 90_000
    seen = set()
    for _ in range(10):
        late = world.schedules.get('late')
        assert late is not None and isinstance(late.at, int) and late.due is not None
        assert 0 <= late.due - late.at <= 20_000
        seen.add(late.due - late.at)
        world.run_until(late.due)
    assert len(seen) > 1
    assert world.fired('late') == [number * MINUTE for number in range(1, 11)]


def test_paused_queues_and_schedules_do_not_fire(world: World) -> None:
    world.create('a')
    world.create('b', queue='other')
    world.store.jobs.pause('celery')
    world.run_until(START + 3 * MINUTE)
    assert (world.published(), world.published('other')) == (0, 3)
    assert world.events('a') == ['skipped'] * 3
    world.store.jobs.resume('celery')
    world.run_until(START + 4 * MINUTE)
    assert world.published() == 1


# -- declarations ----------------------------------------------------------------


def words(firer: Firer, world: World) -> list[str]:
    declared = [one.declaration(world.now) for one in firer.declared.values()]
    return world.schedules.declare(firer.declarer, declared)[1]


def test_what_code_declares(world: World) -> None:
    firer = world.firer(a={'every': 60}, b={'every': 30})
    assert words(firer, world) == ['new', 'new']
    world.now += 10_000
    assert words(firer, world) == ['same', 'same']  # another worker starts
    world.run_until(START + 2 * MINUTE, firer)
    assert world.published() == 6


def test_another_argument_does_not_move_the_next_occurrence(world: World) -> None:
    words(world.firer(a={'every': 60}), world)
    world.now += 59_000
    newer = world.firer(a={'every': 60, 'args': [1]})
    assert words(newer, world) == ['changed']
    world.run_until(START + MINUTE, newer)
    assert world.published() == 1


def test_a_change_at_run_time_holds_until_the_code_changes(world: World) -> None:
    old = world.firer(a={'every': 60})
    words(old, world)
    changed = define(world.app, 'a', 'run', 10)
    fields = {'when': changed.when, 'spec': changed.spec, 'rules': changed.rules}
    assert world.schedules.put('a', fields, changed.first(world.now))
    assert words(old, world) == ['same']
    world.run_until(START + MINUTE, old)
    assert world.published() == 6
    newer = world.firer(a={'every': 120})
    assert words(newer, world) == ['changed']
    world.run_until(START + 3 * MINUTE, newer)
    assert world.published() == 7
    # What was deleted comes back only if it changes.
    assert world.schedules.delete('a')
    assert words(newer, world) == ['same']
    assert world.schedules.get('a') is None
    assert words(world.firer(a={'every': 240}), world) == ['new']


def test_two_versions_do_not_take_turns(world: World) -> None:
    """The version that was seen last applies, however often workers of the older one start."""
    old, newer = world.firer(a={'every': 60}), world.firer(a={'every': 30})
    assert words(old, world) == ['new']
    world.now += 1_000
    assert words(newer, world) == ['changed']
    for _ in range(10):
        world.now += MINUTE
        assert words(old, world) == ['older']
        assert words(newer, world) == ['same']
    info = world.schedules.get('a')
    assert info is not None and json.loads(info.when)['every'] == 30_000
    # Rolled back: the newer ones have gone, and those that stay notice.
    for _ in range(6):
        world.now += MINUTE
        old.stay()
    info = world.schedules.get('a')
    assert info is not None and json.loads(info.when)['every'] == 60_000
    # And once more forward.
    world.now += MINUTE
    assert words(newer, world) == ['changed']


def test_what_no_code_declares_any_more_does_not_fire(world: World) -> None:
    old, newer = world.firer(a={'every': 60}, b={'every': 60}), world.firer(a={'every': 60})
    words(old, world)
    for _ in range(10):  # of the old version nobody is left
        world.run_until(world.now + MINUTE, newer)
        newer.stay()
        words(newer, world)
    a, b = world.schedules.read(['a', 'b'])
    assert a is not None and not a.orphaned
    assert b is not None and b.orphaned
    assert world.events('b')[-1] == 'orphaned'
    count = world.fired('b')[-1]
    world.run_until(world.now + 10 * MINUTE, newer)
    assert world.fired('b')[-1] == count
    # Its code comes back, and makes up what it wants to.
    assert words(old, world) == ['same', 'mended']
    world.turn(old)
    assert world.fired('b')[-1] > count


def test_programs_with_other_schedules_leave_them_alone(world: World) -> None:
    one, other = world.firer(a={'every': 60}), world.firer(b={'every': 60})
    words(one, world)
    words(other, world)
    for _ in range(20):
        world.now += MINUTE
        one.stay()
        other.stay()
        world.turn(one)
    assert [info and info.orphaned for info in world.schedules.read(['a', 'b'])] == [False, False]
    assert world.published() == 40


def test_a_program_that_was_busy_for_long_is_heard_again(world: World) -> None:
    """Its only worker ran a task in its main process, and could not say that it lived."""
    one, other = world.firer(a={'every': 60}), world.firer(b={'every': 60})
    one.declare()
    other.declare()
    for _ in range(10):
        world.now += MINUTE
        other.stay()
        world.turn(other)
    a = world.schedules.get('a')
    assert a is not None and a.orphaned
    one.stay()
    a = world.schedules.get('a')
    assert a is not None and not a.orphaned
    # Also if the server has lost everything.
    world.store.client.flushdb()
    one.stay()
    assert world.schedules.names() == ['a']


def test_a_lost_tick_is_put_back(world: World) -> None:
    firer = world.firer(a={'every': 60})
    words(firer, world)
    assert world.store.purge(TICKS) == 1
    world.run_until(START + 1)
    assert words(firer, world) == ['same']
    world.run_until(START + MINUTE)
    assert world.published() == 1


# -- trouble ---------------------------------------------------------------------


def test_what_cannot_be_published_is_noted_and_goes_on(world: World) -> None:
    world.create('a', priority='high')
    world.run_until(START + 2 * MINUTE)
    assert world.published() == 0
    history = world.schedules.history('a')
    assert [line['event'] for _, line in history] == ['error', 'error']
    assert 'high' in history[0][1]['detail']


def test_a_publish_that_is_refused_is_noted_and_goes_on(world: World) -> None:
    waits = {'id': 'other', 'task': 'run', 'x-depends-on': [{'id': 'fixed', 'expected': 9_999}]}
    Producer(world.channel).publish('', routing_key='celery', headers=waits)
    # It would wait for what waits for it.
    world.create('a', headers={'x-depends-on': ['other']}, task_id='fixed')
    world.run_until(START + 2 * MINUTE)
    history = world.schedules.history('a')
    assert [line['event'] for _, line in history] == ['skipped', 'skipped']
    assert history[0][1]['detail'] == '!cycle'


def test_nothing_is_left_of_what_was_deleted(world: World) -> None:
    client: Any = world.store.client
    before = {key for key in client.scan_iter() if b':b:' not in key}
    world.create('a', after='end')
    world.run_until(START + MINUTE)
    world.schedules.delete('a')
    world.finish()
    assert world.turn() == []
    left = {key.decode() for key in client.scan_iter()} - {key.decode() for key in before}
    kept = {'meta', 'pub', 'queues', 'alarm', 'w:celery', f'w:{TICKS}', 'b:celery'}
    assert {name.partition('}:')[2] for name in left} <= kept


def test_many(world: World) -> None:
    """Many at once; ten thousand are a matter of the benchmark."""
    count = 60
    names = {f's{number}': {'every': 60} for number in range(count)}
    firer = world.firer(**names)
    assert set(words(firer, world)) == {'new'}
    assert len(world.schedules) == count
    world.run_until(START + MINUTE, firer)
    assert world.published() == count
    assert len(world.schedules.names(10, 20)) == 20
