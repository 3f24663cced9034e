"""What time does: delays pass, leases end, silence suspends that, what was kept goes."""

from __future__ import annotations

from tests.model import dependencies, ends, marks, throttles
from tests.model.world import World

#: Names whose time has come, of which one claim takes care.
SERVED = 8


def hear(world: World) -> None:
    """A claim or a renewal: after a long silence everybody gets one lease of time to come back."""
    if world.seen is not None and world.now - world.seen > world.lease / 2:
        world.hold = world.now + world.lease
        world.seen = world.now
    elif world.seen is None or world.now - world.seen >= world.lease / 20:
        world.seen = world.now


def let_time_work(world: World) -> None:
    names = world.turn_to
    if world.ends:  # also those that came with this claim; they are first
        names = ['', *(name for name in names if name)]
    for name in names[:SERVED]:
        if name:
            _let_time_work_on(world, name)
        else:
            dependencies.work_off(world)


def _let_time_work_on(world: World, queue: str) -> None:
    for job in world.those(queue, 'delayed'):
        if job.at <= world.now:
            throttles.enter(world, job, world.arrivals.next())
    for job in world.those(queue, 'leased'):
        if job.at <= world.now and world.now >= world.hold:
            # and keeps its token, until somebody claims it
            throttles.enter(world, job, job.arrival)
            world.tell(job, 'stalled')
            throttles.free(world, job)
    old = [job for job in world.those(queue, 'failed') if job.at + world.dead_for <= world.now]
    ends.forget_dead(world, old)
    for job in world.those(queue, 'completed'):
        if job.at <= world.now:
            marks.forget_completed(world, job)
