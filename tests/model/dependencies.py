"""Jobs that wait for others.

An edge has two sides: ``Job.unmet`` holds the job back, ``World.dependents`` finds it when the
other one ends.  What an end means is told at once if few wait and it was a success, and else by
the next claim, from ``World.ends``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from kombu_reliable.types import Dependencies, Policy
from tests.model import ends, throttles
from tests.model.world import Edge, End, Job, World

#: So many dependents start in the step in which their dependency succeeds.
FEW = 5
#: Stands among those who wait for a key whose job has made room for others, see `await_`.
AWAITED = ''


# -- beginning to wait ---------------------------------------------------------------------


def closes_cycle(world: World, key: str, on: Sequence[str]) -> bool:
    """Whether a job that came to depend on others would wait for itself."""
    if key in on:
        return True
    if not _is_wanted(world, key):
        return False
    todo, seen = list(on), set(on)
    while todo:
        job = world.jobs.get(todo.pop())
        for other in (job.unmet if job else set()) - seen:
            if other == key:
                return True
            seen.add(other)
            todo.append(other)
    return False


def _state_of(world: World, key: str) -> Literal['live', 'dead', 'completed'] | None:
    """None for what is not there, be it finished and forgotten or still to come."""
    job = world.jobs.get(key)
    if job is None and key in world.awaited:
        job = world.newest_twin(key)
        if job is None:
            return 'live'
    if job is None:
        return None
    named: dict[str, Literal['dead', 'completed']] = {'failed': 'dead', 'completed': 'completed'}
    return named.get(job.state, 'live')


def depend(world: World, job: Job, wanted: Dependencies, arrival: int) -> None:
    """Who depends on an id means the newest job that has it."""
    for number, key in enumerate(wanted.on):
        within = wanted.within[number] if wanted.within else 0
        if key not in world.awaited and (twin := world.newest_twin(key)):
            key = twin.key
        state = _state_of(world, key)
        if state == 'completed' or (state is None and not within):
            continue  # an unknown one counts as done
        if state == 'dead' and wanted.policy is Policy.IGNORE:
            continue
        job.unmet.add(key)
        world.dependents.setdefault(key, {})[job.key] = Edge(wanted.policy, arrival)
        if state is None:
            world.expected[key, job.key] = world.now + within
        elif state == 'dead' and wanted.policy is Policy.FAIL:
            world.ends.append(End('failed', key, []))


def follow(world: World, job: Job, leader: str, arrival: int) -> None:
    """It waits for exactly one other, however that ends."""
    job.behind = leader
    job.unmet.add(leader)
    world.dependents.setdefault(leader, {})[job.key] = Edge(Policy.IGNORE, arrival)


def add(world: World, key: str, wanted: Dependencies) -> int:
    """1 if a waiting job waits for more, 0 if it does not wait, -1 if it would for itself."""
    world.arrivals.begin_call()
    job = world.get(key, 'waiting')
    if job is None:
        return 0
    if closes_cycle(world, key, wanted.on):
        return -1
    depend(world, job, wanted, world.arrivals.next())
    return 1


def remove(world: World, key: str, on: Sequence[str]) -> int:
    """How many of these a job waited for, and does not any more."""
    world.arrivals.begin_call()
    job = world.jobs.get(key)
    found = [one for one in on if job is not None and one in job.unmet]
    for one in found:
        _meet(world, one, key)
        _drop_edge(world, one, key)
    return len(found)


# -- the ends of others ------------------------------------------------------------------------


def await_(world: World, job: Job) -> None:
    """Its job makes room for others, one of which will have its id: they wait for that."""
    if job.heir:
        _tell_dependents(world, job.key, job.heir)
        return
    world.awaited.add(job.key)
    world.expected[job.key, AWAITED] = world.now + world.dead_for


def tell_of_ends(world: World, keys: Sequence[str], outcome: str, *, at_once: bool = False) -> None:
    """These jobs have ended: ``'ok'``, ``'failed'`` (it may be replayed) or ``'gone'``."""
    wanted = [_is_wanted(world, key) for key in keys]
    for key, is_wanted in zip(keys, wanted, strict=True):
        if is_wanted:
            _tell_dependents(world, key, outcome, at_once)
        elif key.startswith('~'):
            _tell_of_twin(world, key.split('~', 2)[2], outcome)


def _is_wanted(world: World, key: str) -> bool:
    return key in world.awaited or bool(world.dependents.get(key))


def _tell_of_twin(world: World, id: str, outcome: str) -> None:
    """Its end is that of the first job with the id, if that made room for it or is about to."""
    if not _is_wanted(world, id):
        return
    if id in world.awaited:
        _tell_dependents(world, id, outcome)
    elif outcome != 'failed' and id in world.jobs:
        world.jobs[id].heir = outcome


def _tell_dependents(world: World, key: str, outcome: str, at_once: bool = False) -> None:
    edges = world.dependents.get(key, {})
    if outcome == 'failed':
        if any(edge.policy != Policy.WAIT for edge in edges.values()):
            world.ends.append(End(outcome, key, []))
        return
    found = _in_order(edges) + [(AWAITED, 0)] * (key in world.awaited)
    world.dependents.pop(key, None)
    world.awaited.discard(key)
    if outcome == 'ok' and at_once and len(found) <= FEW:
        for id, _ in found:
            _meet(world, key, id)
    else:
        world.ends.append(End(outcome, key, found))


def _in_order(edges: dict[str, Edge]) -> list[tuple[str, int]]:
    ordered = sorted(edges.items(), key=lambda item: (item[1].policy, item[1].arrival))
    return [(id, edge.policy) for id, edge in ordered]


def _meet(world: World, key: str, id: str) -> None:
    """A dependency does not hold a job back any more."""
    job = world.jobs.get(id)
    if id == AWAITED:
        world.expected.pop((key, id), None)
    elif job is not None and key in job.unmet:
        job.unmet.discard(key)
        world.expected.pop((key, id), None)
        if not job.unmet and job.state == 'waiting':
            if job.at > world.now:
                job.state = 'delayed'
            else:
                throttles.enter(world, job, world.arrivals.of_started())


def _drop_edge(world: World, key: str, id: str) -> None:
    world.dependents.get(key, {}).pop(id, None)
    if not world.dependents.get(key):
        world.dependents.pop(key, None)
    world.expected.pop((key, id), None)


def stop_waiting(world: World, job: Job) -> None:
    """It has ended itself."""
    for key in job.unmet:
        _drop_edge(world, key, job.key)
    job.unmet.clear()


# -- what a claim does ---------------------------------------------------------------------------


def work_off(world: World) -> None:
    """First whom nobody awaits any longer, then what the ends of jobs mean, then throttles."""
    if world.now >= world.hold:
        due = [(at, f'{len(key)}:{key}{id}', key, id) for (key, id), at in world.expected.items()]
        for _, _, key, id in sorted(one for one in due if one[0] <= world.now):
            if (key, id) in world.expected:
                del world.expected[key, id]
                _give_up(world, key, id)
    while world.ends:
        _tell(world, world.ends.popleft())
    throttles.end_limits(world)


def _give_up(world: World, key: str, id: str) -> None:
    """What a job expects has not come."""
    if id == AWAITED:
        if key not in world.jobs:
            tell_of_ends(world, [key], 'gone')
        return
    edge = world.dependents.get(key, {}).get(id)
    if edge is None or _state_of(world, key) in ('live', 'dead'):
        return
    if edge.policy == Policy.IGNORE:
        _meet(world, key, id)
        _drop_edge(world, key, id)
    else:
        _doom(world, key, id)


def _tell(world: World, end: End) -> None:
    told = end.dependents
    if end.outcome == 'failed':
        if _state_of(world, end.key) != 'dead':
            return  # it was replayed
        edges = world.dependents.get(end.key, {})
        told = [(id, policy) for id, policy in _in_order(edges) if policy != Policy.WAIT]
    for id, policy in told:
        if end.outcome == 'ok' or policy == Policy.IGNORE or id == AWAITED:
            _meet(world, end.key, id)
        else:
            _doom(world, end.key, id)
        if end.outcome == 'failed':
            _drop_edge(world, end.key, id)


def _doom(world: World, key: str, id: str) -> None:
    """What it waits for will not succeed: it becomes a dead letter."""
    job = world.jobs.get(id)
    if job is None or key not in job.unmet:
        return
    if job.state == 'waiting':
        ends.bury(world, job)
    stop_waiting(world, job)
