"""Somebody acts on a job, or on a queue.  Each answers one word."""

from __future__ import annotations

from tests.model import ends, throttles, unique
from tests.model.leases import disown
from tests.model.world import LIVE, State, World


def cancel(world: World, key: str, *, cascade: bool, spare: bool) -> str:
    """Ends a job that has not ended.

    Args:
        cascade: also if others wait for it.
        spare: leaves it to who holds it, but it is never delivered again.
    """
    job = world.jobs.get(key)
    if job is None or job.state not in LIVE:
        return job.state if job else 'unknown'
    if not cascade and _others_wait(world, key):
        return 'dependents'
    if spare and job.state == 'leased':
        job.unwanted = True
        return 'requested'
    token = job.token
    if token is not None:
        world.fenced.add(token)
    ends.remove(world, job)
    return 'gone' if token is None else 'requested'


def _others_wait(world: World, key: str) -> bool:
    """Who has only its unique key in common with it is glad of its end."""
    others = (world.jobs.get(id) for id in world.dependents.get(key, {}))
    return any(one is not None and key in one.unmet and one.behind != key for one in others)


def move(world: World, key: str, queue: str) -> str:
    if refused := _refused(world, key, 'leased', 'completed'):
        return refused
    job = world.jobs[key]
    if job.queue != queue:
        was = job.state
        throttles.leave(world, job)
        job.queue = queue
        disown(world, job)
        world.tell(job, 'moved')
        if was == 'throttled':
            throttles.enter(world, job, job.arrival)
    return 'done'


def prioritize(world: World, key: str, rank: int) -> str:
    if refused := _refused(world, key, 'leased', 'completed'):
        return refused
    world.jobs[key].rank = rank
    return 'done'


def reschedule(world: World, key: str, due: int) -> str:
    if refused := _refused(world, key, 'leased', 'failed', 'completed'):
        return refused
    job = world.jobs[key]
    if job.state == 'waiting':
        job.at = max(due, world.now)
    elif due > world.now:
        throttles.leave(world, job)
        job.state, job.at = 'delayed', due
        disown(world, job)
    elif job.state == 'delayed':
        throttles.enter(world, job, world.arrivals.next())
    return 'done'


def replay(world: World, key: str) -> str:
    """A dead letter is delivered again, as if never before."""
    if refused := _refused(world, key, *LIVE, 'completed'):
        return refused
    job = world.jobs[key]
    other = unique.holder(world, job.unique[0]) if job.unique else None
    if other is not None:
        return f'duplicate {other.key}'
    unique.lock(world, job)
    throttles.enter(world, job, world.arrivals.next())
    world.tell(job, 'replayed')
    job.lost, job.once, job.unwanted = 0, False, False
    return 'done'


def discard(world: World, key: str) -> str:
    if refused := _refused(world, key, *LIVE):
        return refused
    ends.remove(world, world.jobs[key])
    return 'done'


def _refused(world: World, key: str, *states: State) -> str:
    job = world.jobs.get(key)
    if job is None:
        return 'unknown'
    return job.state if job.state in states else ''


def purge(world: World, queue: str) -> int:
    """Everything that waits in a queue goes."""
    return sum(empty(world, queue, state) for state in ('throttled', 'ready', 'delayed', 'waiting'))


def empty(world: World, queue: str, state: State) -> int:
    doomed = world.those(queue, state)
    for job in doomed:
        ends.remove(world, job)
    return len(doomed)


def pause(world: World, queue: str, paused: bool) -> bool:
    changed = (queue in world.paused) != paused
    (world.paused.add if paused else world.paused.discard)(queue)
    return changed
