"""Jobs that are held back: by throttles, by the limit of their queue, and by those who take turns.

There are no lanes, tickets or parking places here.  Of those that could start the first does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from kombu_reliable.store.limits import DEFAULT_BURST, QUEUE_LIMIT, Limit, interval
from tests.model.world import FOREVER, Job, World


def of_queue(queue: str) -> str:
    return f'{QUEUE_LIMIT}{queue}'


# -- looking --------------------------------------------------------------------------------------


def held(world: World, name: str) -> set[str]:
    return {job.key for job in world.jobs.values() if name in job.slots}


def pending(world: World, name: str) -> set[str]:
    jobs = (job for job in world.jobs.values() if job.state == 'throttled' and job.lane)
    return {job.key for job in jobs if job.lane and name in job.lane.wants}


def is_set(world: World, name: str) -> bool:
    return name in world.limits and world.limits[name][1] > world.now


def limit_of(world: World, name: str) -> Limit:
    return world.limits[name][0] if is_set(world, name) else world.defaults.get(name, Limit())


def full(world: World, name: str) -> bool:
    limit = limit_of(world, name)
    most = 0 if limit.stopped else limit.concurrency
    return most is not None and len(held(world, name)) >= most


def next_start(world: World, name: str) -> int:
    """When the rate of a throttle lets the next job start."""
    limit = limit_of(world, name)
    if limit.rate is None or limit.stopped:
        return world.now
    between, burst = interval(limit.rate), limit.burst or DEFAULT_BURST
    pace = max(world.now, world.pace.get(name, world.now))
    return max(world.now, math.ceil(pace - (burst - 1) * between))


def has_room(world: World, name: str) -> bool:
    return not full(world, name) and next_start(world, name) <= world.now


def startable(world: World, job: Job) -> bool:
    return job.lane is not None and all(has_room(world, name) for name in job.lane.wants)


def room_in(world: World, queue: str) -> int | None:
    """How many of a limited queue may start; None if it is not limited."""
    name = of_queue(queue)
    if name not in world.limits:
        return None
    limit, room = limit_of(world, name), FOREVER
    most = 0 if limit.stopped else limit.concurrency
    if most is not None:
        room = most - len(world.those(queue, 'leased'))
    if limit.rate is not None and not limit.stopped:
        between, burst = interval(limit.rate), limit.burst or DEFAULT_BURST
        ahead = max(0, world.pace.get(name, 0) - world.now)
        room = min(room, math.floor(burst - ahead / between + 1e-6))
    return int(max(0, min(room, 1_000)))


def first(world: World, queue: str, *, laned: bool) -> Job | None:
    """Who comes next of a queue; ``laned``: of those too that must start at once."""
    ready = world.those(queue, 'ready')
    found = [(ready[0].place, ready[0])] if ready else []
    for lane, jobs in lanes(world, queue).items() if laned else ():
        if startable(world, jobs[0]):
            found.append((world.turns.get((queue, lane), jobs[0].place), jobs[0]))
    return min(found, key=lambda one: one[0])[1] if found else None


def lanes(world: World, queue: str) -> dict[str, list[Job]]:
    """The jobs of a queue that are held back, by what holds them back."""
    found: dict[str, list[Job]] = {}
    for job in world.those(queue, 'throttled'):
        assert job.lane is not None
        found.setdefault(job.lane.digest, []).append(job)
    return found


# -- coming and going --------------------------------------------------------------------------


def enter(world: World, job: Job, arrival: int, *, published: bool = False) -> None:
    """It could start if its throttles let it.

    Args:
        published: with what it wants, which holds for all from now on.
    """
    job.arrival = arrival
    if job.lane is None:
        job.state = 'ready'
        return
    alone = not lanes(world, job.queue).get(job.lane.digest)
    job.state = 'throttled'
    for name, limit in job.lane.wants.items():
        if limit is not None and (published or (alone and name not in world.defaults)):
            world.defaults[name] = limit
    if job.lane.fair:
        lane = job.queue, job.lane.digest
        world.turns[lane] = min(world.turns.get(lane, job.place), job.place)


def leave(world: World, job: Job) -> None:
    """It does not wait any more; where it is now the caller says."""
    if job.state == 'throttled' and job.lane is not None:
        job.state = 'delayed'
        if not lanes(world, job.queue).get(job.lane.digest):
            world.turns.pop((job.queue, job.lane.digest), None)
            _forget_unused(world, job.lane.wants)


def free(world: World, job: Job) -> None:
    job.slots.clear()
    _forget_unused(world, job.lane.wants if job.lane else ())


def _forget_unused(world: World, names: Iterable[str]) -> None:
    """A throttle that nobody waits for, nobody holds and nobody has set is none any more."""
    for name in names:
        if not held(world, name) and not pending(world, name) and name not in world.limits:
            world.defaults.pop(name, None)


def start(world: World, job: Job) -> None:
    """It takes its slots; the others have their turn before the next one of its lane."""
    job.state = 'leased'
    if job.lane is None:
        return
    job.slots = set(job.lane.wants)
    for name in job.lane.wants:
        spend(world, name, 1)
    rest = lanes(world, job.queue).get(job.lane.digest)
    if job.lane.fair:
        world.turns.pop((job.queue, job.lane.digest), None)
        if rest:
            turn = -rest[0].rank, world.arrivals.next()
            world.turns[job.queue, job.lane.digest] = turn


def spend(world: World, name: str, count: int) -> None:
    limit = limit_of(world, name)
    if limit.rate is not None and not limit.stopped and count:
        pace = max(world.now, world.pace.get(name, world.now))
        world.pace[name] = pace + count * interval(limit.rate)


# -- limits --------------------------------------------------------------------------------------


def set_limit(world: World, name: str, limit: Limit, until: float) -> None:
    world.limits[name] = limit, until


def delete_limit(world: World, name: str) -> bool:
    was = world.limits.pop(name, None) is not None
    _forget_unused(world, [name])
    return was


def end_limits(world: World) -> None:
    """Those that were set for a while have ended."""
    for name in [name for name, (_, until) in world.limits.items() if until <= world.now]:
        delete_limit(world, name)


def free_slot(world: World, name: str, key: str) -> bool:
    job = world.jobs.get(key)
    if job is None or name not in job.slots:
        return False
    job.slots.discard(name)
    _forget_unused(world, [name])
    return True
