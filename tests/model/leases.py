"""Claim, renew, settle: who holds a job, and until when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kombu_reliable.types import Delivery, Settlement, Status, Verdict
from tests.model import dependencies, ends, throttles
from tests.model.time import hear, let_time_work
from tests.model.world import Job, World

HELD, UNHELD, FENCED = Status.DONE, Status.UNHELD, Status.FENCED


def claim(
    world: World,
    token: str,
    credit: int,
    queues: Sequence[str],
    settlements: Sequence[Settlement] = (),
    idle: int = 100,
) -> tuple[list[Status], list[Delivery]]:
    """Ends deliveries, lets time work, and leases up to ``credit`` jobs.

    Only ``idle`` of them start at once; those that are held back are leased for these only.
    """
    world.arrivals.begin_call()
    statuses = _settle(world, settlements)
    hear(world)
    let_time_work(world)
    deliveries: list[Delivery] = []
    for queue in queues:
        before = len(deliveries)
        most, spare = credit - before, idle - before
        if (room := throttles.room_in(world, queue)) is not None:
            most = min(most, spare, room)
        if queue not in world.paused and most > 0:
            for job in _take(world, queue, most, spare):
                deliveries.append(_start(world, job, f'{token}.{len(deliveries) + 1}'))
            throttles.spend(world, throttles.of_queue(queue), len(deliveries) - before)
    return statuses, deliveries


def _take(world: World, queue: str, most: int, idle: int) -> Iterator[Job]:
    """The jobs that start, in order.  Those that must not be delivered end on the way."""
    looked = taken = 0
    while taken < most:
        job = throttles.first(world, queue, laned=taken < idle)
        if job is None or (looked >= most and job.key in world.still_there):
            return
        looked += 1
        if job.token is not None:
            disown(world, job)
        if job.unwanted:
            ends.remove(world, job)
        elif job.once or (world.delivery_limit and job.lost >= world.delivery_limit):
            ends.bury(world, job)
        else:
            taken += 1
            throttles.start(world, job)
            yield job


def _start(world: World, job: Job, token: str) -> Delivery:
    job.state, job.at, job.token = 'leased', world.now + world.lease, token
    world.tell(job, 'popped')
    return Delivery(job.queue, job.key, token, job.lost + 1, job.envelope)


def disown(world: World, job: Job) -> None:
    """Taken from an owner that lost its lease and could have come back."""
    if job.token is not None:
        world.fenced.add(job.token)
        job.token = None
        job.lost += 1


def _status(world: World, job: Job | None, token: str) -> Status:
    if job is not None and (job.token == token or job.had_run(token)):
        return HELD
    taken = job is not None and job.token is not None
    return FENCED if taken or token in world.fenced else UNHELD


def renew(world: World, held: Sequence[Delivery]) -> list[Status]:
    """Works until somebody else has claimed the job, also after its lease has ended."""
    world.arrivals.begin_call()
    hear(world)
    answer = []
    for one in held:
        answer.append(_status(world, world.jobs.get(one.id), one.token))
        if job := world.held_by(one.id, one.token):
            if job.state == 'throttled':  # it does run, though there may be no slot for it
                throttles.leave(world, job)
                job.slots = set(job.lane.wants) if job.lane else set()
            job.state, job.at = 'leased', world.now + world.lease
    return answer


def settle(world: World, settlements: Sequence[Settlement]) -> list[Status]:
    world.arrivals.begin_call()
    ends_before = len(world.ends)
    answer = _settle(world, settlements)
    if len(world.ends) > ends_before:
        dependencies.work_off(world)
    return answer


def _settle(world: World, settlements: Sequence[Settlement]) -> list[Status]:
    """First all that has succeeded, then the others."""
    jobs = {one.id: world.jobs.get(one.id) for one in settlements}
    answer, over = [], []
    for one in settlements:
        job = jobs[one.id]
        answer.append(_status(world, job, one.token))
        if job is None or job.token != one.token:
            continue
        if one.verdict is Verdict.ONCE:
            job.once = True
        else:
            job.token = None
            over.append((job, one))
            if one.verdict is Verdict.ACK:
                ends.finish(world, job, 'ok')
    succeeded = [job.key for job, one in over if one.verdict is Verdict.ACK]
    dependencies.tell_of_ends(world, succeeded, 'ok', at_once=True)
    for job, one in over:
        _end_otherwise(world, job, one.verdict)
    return answer


def _end_otherwise(world: World, job: Job, verdict: Verdict) -> None:
    if verdict is Verdict.CANCEL:
        ends.finish(world, job, 'gone')
        dependencies.tell_of_ends(world, [job.key], 'gone')
    elif verdict is Verdict.REPLACE:
        dependencies.await_(world, job)
        ends.finish(world, job, 'replaced')
    elif verdict is Verdict.FAIL:
        ends.bury(world, job)
    elif verdict is not Verdict.ACK:
        throttles.enter(world, job, job.arrival)
        job.once = False
        job.lost += verdict is Verdict.REQUEUE
        world.tell(job, f'{verdict}d')
        throttles.free(world, job)
