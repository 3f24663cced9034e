"""Operations on schedules."""

from __future__ import annotations

from typing import Any

from celery_ext import InvalidSchedule
from celery_ext.declaring import declared_schedules
from celery_ext.firing import Firer
from tests.faults.table import Act, operation
from tests.faults.world import TASK, World

HOURLY = 3600

#: What a schedule tells of itself, as it was when it was looked at.
READ = ('declared', 'last_run', 'next_run', 'runs', 'state', 'task', 'when')


def with_one(w: World, **settings: Any) -> Any:
    """A schedule, as seen through the proxy."""
    w.far_ext.schedules.create('s', TASK, HOURLY, args=['a'], **settings)
    return w.ext.schedules['s']


@operation()
def looks(w: World) -> Act:
    schedule = with_one(w)
    schedules = w.ext.schedules
    return lambda: (
        's' in schedules, list(schedules), len(schedules), schedules['s'].refresh().history(),
        schedules.names(), [(name, getattr(schedule, name)) for name in READ],
    )  # fmt: skip


@operation(again=[InvalidSchedule])
def create(w: World) -> Act:
    schedules = w.ext.schedules
    return lambda: schedules.create('s', TASK, HOURLY, args=['a'])


@operation(again=[False])
def pause(w: World) -> Act:
    schedule = with_one(w)
    return lambda: schedule.pause()


@operation(again=[False])
def resume(w: World) -> Act:
    schedule = with_one(w)
    w.far_ext.schedules['s'].pause()
    return lambda: schedule.resume()


@operation(loose=['sh:'])
def update(w: World) -> Act:
    """A repetition is one line more in the history."""
    schedule = with_one(w)
    return lambda: schedule.update(every=1800, args=['b'])


@operation(again=[False])
def delete(w: World) -> Act:
    schedule = with_one(w)
    return lambda: schedule.delete()


@operation()
def run_now(w: World) -> Act:
    schedule = with_one(w)
    w.have_published()

    def act() -> Any:
        schedule.run_now()
        return w.far.counts('celery').ready

    return act


@operation(again=['late', 'nothing'])
def fire(w: World) -> Act:
    """As a worker does on a tick; the next tick comes again if nobody has told what came of it."""
    with_one(w)
    # It is due at once.
    w.client.hset(w.keys.schedule('s'), mapping={'due': 1, 'at': 1})
    firer: list[Firer] = []

    def act() -> Any:
        app = w.ext.app
        with app.connection_for_write() as connection:
            one = Firer(app, w.ext.store, connection.default_channel)
            firer.append(one)
            return one.fire('s')

    return act


@operation()
def declare(w: World) -> Act:
    app = w.ext.app
    app.conf.beat_schedule = {'nightly': {'task': TASK, 'schedule': HOURLY, 'args': ['a']}}

    def act() -> Any:
        with app.connection_for_write() as connection:
            declared = declared_schedules(app)
            firer = Firer(app, w.ext.store, connection.default_channel, declared)
            firer.declare()
            firer.stay()

    return act
