"""Publishing: once, however often a call is sent; the next run of a job; several under one id."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kombu_reliable.store.limits import Limit
from kombu_reliable.store.operations import CYCLE, REFUSED
from kombu_reliable.types import Outgoing
from tests.model import dependencies, throttles, unique
from tests.model.world import Job, Lane, World


def publish(
    world: World, lane: str, first: int, messages: Sequence[Outgoing], keys: Sequence[str]
) -> list[str]:
    """Stores what the publisher has not stored before.

    Args:
        lane: of the publisher, which counts its messages.
        first: number of the first message.
        keys: the server's answer, which says only how a further job under a live id is called.
    """
    world.arrivals.begin_call()
    known = world.numbers.get(lane, -1)
    world.numbers[lane] = max(known, first + len(messages) - 1)
    numbered = list(zip(messages, keys, range(first, first + len(messages)), strict=True))
    arrivals = {number: world.arrivals.next() for _, _, number in numbered if number > known}
    ended: set[str] = set()
    answer = [
        _publish(world, message, key, arrivals[number], ended) if number > known else ''
        for message, key, number in numbered
    ]
    if len(messages) == 1 and answer[0].startswith(REFUSED):
        # Who has not got the answer asks again, and must not be told that his message is there.
        world.numbers[lane] = first - 1
    return answer


def _publish(world: World, message: Outgoing, key: str, arrival: int, ended: set[str]) -> str:
    depends, leader = message.depends, ''
    run = message.run
    if depends and dependencies.closes_cycle(world, run[1] if run else message.id, depends.on):
        return CYCLE
    job = None
    if run is not None and run[0] not in ended:
        job = world.held_by(run[1], run[0])
        if job is not None:
            ended.add(run[0])
            _end_run(world, job, message)
        elif _may_not_publish(world, *run):
            return REFUSED
    if job is None:
        if message.unique is not None:
            other, leader = unique.make_way(world, message.unique)
            if other is not None:
                return f'!{message.unique.conflict} {other.key}'
        job = _new_job(world, message, key)
        world.jobs[job.key] = job
        unique.lock(world, job)
    _give_features(world, job, message)
    if leader:
        dependencies.follow(world, job, leader, arrival)
    if depends:
        dependencies.depend(world, job, depends, arrival)
    _place(world, job, message, arrival)
    return job.key


def _end_run(world: World, job: Job, message: Outgoing) -> None:
    """The owner's next run takes the place of this one, in one step."""
    world.tell(job, 'retried')
    throttles.leave(world, job)
    throttles.free(world, job)
    job.past = f'{job.token};{job.past}'[:200]
    job.token, job.lost, job.once, job.heir = None, 0, False, ''
    job.queue, job.rank, job.envelope = message.queue, message.rank, message.envelope


def _may_not_publish(world: World, token: str, key: str) -> bool:
    job = world.jobs.get(key)
    return token in world.fenced or (job is not None and job.had_run(token))


def _new_job(world: World, message: Outgoing, key: str) -> Job:
    """A completed job makes room; the id of a live one means a key of its own."""
    other = world.jobs.get(message.id)
    name = message.id
    if other is not None and other.state == 'completed':
        del world.jobs[message.id]
    elif other is not None:
        free = key.startswith('~') and key.endswith(f'~{message.id}') and key not in world.jobs
        name = key if free else f'~0~{message.id}'
    job = Job(name, message.queue, message.rank, message.envelope)
    if message.unique is not None:
        job.unique = message.unique.key, message.unique.life
    return job


def _give_features(world: World, job: Job, message: Outgoing) -> None:
    """Beside those that it has from the run before."""
    if message.lane is not None:
        job.lane = lane_of(message.lane) if message.lane else None
    if message.marks is not None:
        job.tags += [tag for tag in message.marks.tags if tag not in job.tags]
        if message.marks.track is not None and not job.tracked:
            job.tracked = True
            world.tell(job, 'put')
        if message.marks.retain is not None and job.keep is None:
            job.keep = message.marks.retain, message.marks.limit


def _place(world: World, job: Job, message: Outgoing, arrival: int) -> None:
    relative = message.due.startswith('+')
    job.at = world.now + int(message.due) if relative else int(message.due)
    if job.unmet:
        job.state, job.at = 'waiting', max(world.now, job.at)
    elif job.at > world.now:
        job.state = 'delayed'
    else:
        throttles.enter(world, job, arrival, published=bool(message.lane))


def lane_of(text: str) -> Lane:
    """What :func:`kombu_reliable.transport.throttles.take_lane` has made."""
    said = json.loads(text)
    wants: dict[str, Limit | None] = {}
    for name, *fields in said['t']:
        wants[name] = None
        if fields:
            concurrency, _, burst, rate = fields
            most = int(concurrency) if concurrency else None
            wants[name] = Limit(most, rate or None, int(burst) if burst else None)
    return Lane(said['d'], wants, 'f' in said)
