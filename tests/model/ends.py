"""What becomes of a job that ends, in whatever way, and of dead letters."""

from __future__ import annotations

from collections.abc import Sequence

from tests.model import dependencies, marks, throttles, unique
from tests.model.world import Job, World


def finish(world: World, job: Job, outcome: str) -> None:
    """It gives back all that is its own, and is gone, unless it succeeded and is to be kept.

    What its end means for others is the caller's business.
    """
    if job.state not in ('failed', 'completed'):
        world.tell(job, {'ok': 'completed', 'gone': 'canceled'}.get(outcome, outcome))
    throttles.leave(world, job)
    throttles.free(world, job)
    unique.free(world, job)
    if outcome == 'ok' and marks.keep(world, job):
        return
    del world.jobs[job.key]


def remove(world: World, job: Job) -> None:
    """It is deleted, from wherever it is; those who wait for it will hear that."""
    was = job.state
    finish(world, job, 'gone')
    if was == 'completed':
        return  # it had ended before
    dependencies.tell_of_ends(world, [job.key], 'gone')
    dependencies.stop_waiting(world, job)


def bury(world: World, job: Job) -> None:
    """It becomes a dead letter.  A queue keeps only so many."""
    throttles.leave(world, job)
    job.state, job.at, job.token, job.once = 'failed', world.now, None, False
    world.tell(job, 'failed')
    throttles.free(world, job)
    unique.free(world, job)
    dependencies.tell_of_ends(world, [job.key], 'failed')
    dead = world.those(job.queue, 'failed')
    forget_dead(world, dead[: max(0, len(dead) - world.dead_limit)])


def forget_dead(world: World, jobs: Sequence[Job]) -> None:
    for job in jobs:
        finish(world, job, 'gone')
    dependencies.tell_of_ends(world, [job.key for job in jobs], 'gone')
