"""Tags, tracking, and how long what has completed is kept."""

from __future__ import annotations

from collections.abc import Sequence

from tests.model.world import Job, World


def keep(world: World, job: Job) -> bool:
    """Keeps a job that has completed, if it is to be kept.  A queue keeps only so many."""
    life, limit = job.keep or (0, 0)
    if not life:
        job.tracked = False
        return False
    job.state, job.at, job.token = 'completed', world.now + life, None
    kept = world.those(job.queue, 'completed')
    for old in kept[: max(0, len(kept) - limit)]:
        forget_completed(world, old)
    return True


def forget_completed(world: World, job: Job) -> None:
    del world.jobs[job.key]


def tag(world: World, key: str, tags: Sequence[str], give: bool, limit: int) -> str:
    job = world.jobs.get(key)
    if job is None:
        return 'unknown'
    have = [one for one in job.tags if give or one not in tags]
    have += [one for one in tags if give and one not in have]
    if give and len(have) > limit:
        return 'too-many'
    job.tags = have
    return 'done'


def track(world: World, key: str, on: bool) -> str:
    job = world.jobs.get(key)
    if job is None:
        return 'unknown'
    if on != job.tracked:
        job.tracked = True
        world.tell(job, 'track' if on else 'untrack')
        job.tracked = on
    return 'done'
