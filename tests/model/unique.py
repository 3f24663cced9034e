"""Unique keys: of the jobs that were published with the same one, one has it at a time."""

from __future__ import annotations

from kombu_reliable.types import Unique
from tests.model import ends
from tests.model.world import FOREVER, Job, World


def holder(world: World, key: str) -> Job | None:
    id, until = world.locks.get(key, ('', 0.0))
    return world.jobs[id] if id and world.now < until else None


def lock(world: World, job: Job) -> None:
    if job.unique is not None:
        key, life = job.unique
        world.locks[key] = job.key, world.now + life if life else FOREVER


def free(world: World, job: Job) -> bool:
    """Whether it still had its key, which it gives up."""
    key = job.unique[0] if job.unique else ''
    has = world.locks.get(key, ('', 0.0))[0] == job.key
    if has:
        del world.locks[key]
    return has


def make_way(world: World, wanted: Unique) -> tuple[Job | None, str]:
    """Who is in the way of a new job; if nobody is, behind whom it has to wait, if anybody."""
    other = holder(world, wanted.key)
    if other is None:
        return None, ''
    if wanted.conflict != 'replace':
        return other, ''
    if other.state == 'leased':
        return None, other.key
    leader = other.behind if other.behind in other.unmet else ''
    if other.token is not None:
        world.fenced.add(other.token)
    ends.remove(world, other)
    return None, leader


def unlock(world: World, key: str, token: str) -> bool:
    """The run of a job begins, and with it ends its hold on its key."""
    job = world.held_by(key, token)
    return job is not None and free(world, job)
