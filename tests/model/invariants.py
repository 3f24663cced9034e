"""What must be true after every step, whatever the rules say about single jobs.

Each function compares a snapshot with the world of the rules.  ``check`` calls them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model import throttles
from tests.model.snapshot import Snapshot
from tests.model.world import FOREVER, STATES, Job, World

if TYPE_CHECKING:
    from tests.model.machine import Machine

#: The deputy wakes so much later, in ms; see lua/lib/timekeeper.lua.
GRACE = 20
#: Queues share their claims for what is kept, in ms; see lua/lib/retention.lua.
GRID = 1000


def check(machine: Machine, found: Snapshot) -> None:
    world = machine.world
    every_job_is_in_its_place(machine, found)
    owners_and_leases_agree(machine, found)
    claimable_work_has_a_marker(machine, found)
    no_alarm_is_late(machine, found)
    somebody_watches_the_clock(machine, found)
    waiting_jobs_wait_for_the_right_ones(machine, found)
    slots_are_held_by_jobs_that_run(machine, found)
    no_lane_is_stranded(machine, found)
    unique_keys_belong_to_living_jobs(machine, found)
    marks_are_those_of_the_jobs(machine, found)
    assert found.set(machine.keys.paused) == world.paused
    assert set(found.members(machine.keys.fenced)) == world.fenced
    every_key_is_explained(machine, found)


# -- jobs ----------------------------------------------------------------------------------------


def every_job_is_in_its_place(machine: Machine, found: Snapshot) -> None:
    for queue in machine.QUEUES:
        for state in STATES:
            expected = [job.key for job in machine.world.those(queue, state)]
            assert found.members(found.place(queue, state)) == expected, (queue, state)


def owners_and_leases_agree(machine: Machine, found: Snapshot) -> None:
    jobs = machine.world.jobs
    expected = {key: job.token for key, job in jobs.items() if job.token is not None}
    assert found.tokens == expected
    for queue in machine.QUEUES:
        leases = found.scores(found.place(queue, 'leased'))
        assert leases == {job.key: job.at for job in machine.world.those(queue, 'leased')}
        assert set(leases) <= set(found.tokens)


def marks_are_those_of_the_jobs(machine: Machine, found: Snapshot) -> None:
    keys, jobs = machine.keys, machine.world.jobs.values()
    counts = {tag: sum(tag in job.tags for job in jobs) for tag in machine.TAGS}
    for tag in machine.TAGS:
        expected = {job.key for job in jobs if tag in job.tags}
        assert set(found.members(keys.tag(tag))) == expected, tag
    assert found.scores(keys.tags) == {tag: count for tag, count in counts.items() if count}
    assert set(found.members(keys.tracked)) == {job.key for job in jobs if job.tracked}
    groups = found.members(keys.groups)
    members = [key for name in groups for key in found.members(keys.group(name))]
    assert sorted(members) == sorted(job.key for job in jobs if job.state == 'failed')


# -- waking and clocks ---------------------------------------------------------------------------


def _is_open(world: World, queue: str) -> bool:
    return queue not in world.paused and throttles.room_in(world, queue) != 0


def claimable_work_has_a_marker(machine: Machine, found: Snapshot) -> None:
    world = machine.world
    for queue in machine.QUEUES:
        marked = found.is_marked(queue)
        if queue in world.paused:  # a marker there is, or was, for who watches the clock
            held_back = world.those(queue, 'throttled')
            assert not marked or '' in found.alarms or held_back, queue
        if not _is_open(world, queue) or marked or queue in machine.popped:
            continue
        looks = _is_due(found, '', world)  # the next claim does
        assert not world.those(queue, 'ready') or (looks and _is_limited(world, queue)), queue
        if not looks:
            held_back = world.those(queue, 'throttled')
            assert not any(throttles.startable(world, job) for job in held_back), queue


def _is_limited(world: World, queue: str) -> bool:
    return throttles.of_queue(queue) in world.limits


def _is_due(found: Snapshot, name: str, world: World) -> bool:
    return name in found.alarms and found.alarms[name] <= world.now


def no_alarm_is_late(machine: Machine, found: Snapshot) -> None:
    world = machine.world
    for queue in machine.QUEUES:
        dues = [float(due) for due in machine.dues(queue)]
        dues += [job.at + world.dead_for + 1 for job in world.those(queue, 'failed')]
        dues += [-(-job.at // GRID) * GRID for job in world.those(queue, 'completed')]
        assert not dues or found.alarms.get(queue, FOREVER) <= min(dues), queue
    dues = [max(at, world.hold) for at in world.expected.values()]
    dues += [until for _, until in world.limits.values() if until < FOREVER]
    dues += _paces(machine, found)
    dues += [world.now] * bool(world.ends)
    assert not dues or found.alarms.get('', FOREVER) <= min(dues), (found.alarms, dues)


def _paces(machine: Machine, found: Snapshot) -> list[float]:
    """When rates let parked lanes start, and work of a queue that they have closed."""
    world, moments = machine.world, []
    for queue in machine.QUEUES:
        name = throttles.of_queue(queue)
        closed = queue in found.set(machine.keys.closed) and queue not in world.paused
        if closed and _is_limited(world, queue):
            most = throttles.limit_of(world, name).concurrency
            if most is None or most > len(world.those(queue, 'leased')):
                moment = throttles.next_start(world, name)
                moments += [float(moment)] * (moment > world.now)
        for lane in throttles.lanes(world, queue):
            parked = found.fields(machine.keys.lane_info(lane + queue)).get('p')
            if parked is None or throttles.full(world, parked):
                continue
            if not _tickets_with(machine, found, queue, parked):  # else the next claim looks
                moment = throttles.next_start(world, parked)
                moments += [float(moment)] * (moment > world.now)
    return moments


def somebody_watches_the_clock(machine: Machine, found: Snapshot) -> None:
    """The next due time is some worker's to act on, or a marker wakes one who will be told."""
    world = machine.world
    if machine.popped or any(map(found.is_marked, machine.QUEUES)):
        return
    closed = found.set(machine.keys.closed)
    watched = [queue for queue in machine.QUEUES if _is_open(world, queue)]
    # One that is still closed goes on with the next look at the limits, which was to be by now.
    dues = [
        found.alarms[''] if queue in closed else float(due)
        for queue in watched for due in machine.dues(queue)
    ]  # fmt: skip
    dues += [] if world.paused else _paces(machine, found)
    if dues:
        moments = [moment for moment in machine.told.values() if moment is not None]
        assert moments, 'no worker was told to wake'
        assert min(moments) <= min(dues) + GRACE, (world.now, moments, dues, found.alarms)


# -- dependencies --------------------------------------------------------------------------------


def waiting_jobs_wait_for_the_right_ones(machine: Machine, found: Snapshot) -> None:
    world, keys = machine.world, machine.keys
    for job in world.jobs.values():
        assert found.set(keys.unmet(job.key)) == job.unmet, job.key
        assert bool(job.unmet) == (job.state == 'waiting'), job.key
    wanted = set(world.awaited)
    for key, edges in world.dependents.items():
        wanted.add(key)
        expected = set(edges) | ({''} if key in world.awaited else set())
        assert set(found.members(keys.dependents(key))) == expected, key
    assert found.set(keys.wanted) == wanted
    expected_by = {f'{len(key)}:{key}{id}': at for (key, id), at in world.expected.items()}
    assert found.scores(keys.expected) == expected_by
    assert bool(world.ends) <= (keys.releases in found.names)


# -- throttles -----------------------------------------------------------------------------------


def slots_are_held_by_jobs_that_run(machine: Machine, found: Snapshot) -> None:
    world, keys = machine.world, machine.keys
    for name in machine.THROTTLES:
        held = throttles.held(world, name)
        assert set(found.members(keys.held(name))) == held, name
        assert set(found.members(keys.pending(name))) == throttles.pending(world, name), name
        fields = found.fields(keys.limits(name))
        is_set = 'set' in fields and int(float(fields.get('until') or 0) or world.now + 1)
        names = ('c', 'text') if is_set and is_set > world.now else ('dc', 'dtext')
        limit = throttles.limit_of(world, name)
        assert fields.get(names[0], '') == limit.fields[0], (name, fields, limit)
        assert fields.get(names[1], '') == limit.fields[3], name


def no_lane_is_stranded(machine: Machine, found: Snapshot) -> None:
    """A lane has a ticket or is parked; a throttle with room shows the first of its lanes."""
    world = machine.world
    for queue in machine.QUEUES:
        lanes = throttles.lanes(world, queue)
        tickets = found.scores(machine.keys.tickets(queue))
        assert set(tickets) <= {lane + queue for lane in lanes}, queue
        for lane, jobs in lanes.items():
            name = lane + queue
            assert found.members(machine.keys.lane(name)) == [job.key for job in jobs]
            parked = found.fields(machine.keys.lane_info(name)).get('p')
            if parked is None:
                at = tickets[name]
            else:
                assert name not in tickets
                _is_parked_well(machine, found, queue, name, jobs[0], parked)
                at = found.scores(machine.keys.parked_lanes(parked, queue))[name]
            if not jobs[0].lane or not jobs[0].lane.fair:
                assert at == found.scores(machine.keys.throttled(queue))[jobs[0].key], name


def _tickets_with(machine: Machine, found: Snapshot, queue: str, name: str) -> list[float]:
    """The places of the lanes of a throttle that the next claim looks at."""
    tickets = found.scores(machine.keys.tickets(queue))
    return [
        tickets[lane + queue]
        for lane, jobs in throttles.lanes(machine.world, queue).items()
        if jobs[0].lane and name in jobs[0].lane.wants and lane + queue in tickets
    ]


def _is_parked_well(
    machine: Machine, found: Snapshot, queue: str, name: str, first: Job, parked: str
) -> None:
    world, keys = machine.world, machine.keys
    assert first.lane is not None
    assert parked in first.lane.wants
    assert queue in found.members(keys.parked(parked))
    if not throttles.has_room(world, parked) or _is_due(found, '', world):
        return
    shown = _tickets_with(machine, found, queue, parked)
    place = found.scores(keys.parked_lanes(parked, queue))[name]
    assert shown, (name, parked)
    assert first.lane.fair or min(shown) < place, (name, parked)


# -- unique keys ---------------------------------------------------------------------------------


def unique_keys_belong_to_living_jobs(machine: Machine, found: Snapshot) -> None:
    for key in machine.UNIQUE_KEYS:
        lock = found.text(machine.keys.unique(key))
        id, until = machine.world.locks.get(key, ('', 0.0))
        if until < FOREVER and not lock:
            continue  # one whose life has ended may be there or not
        assert (lock.split(';', 2)[2] if lock else '') == id, key


# -- keys ----------------------------------------------------------------------------------------


def constants(machine: Machine) -> set[str]:
    """The keys that stay when all is done."""
    keys = machine.keys
    rates = {keys.rates(name) for name in machine.THROTTLES}
    return {keys.meta, keys.producers, keys.fenced, keys.events, keys.noticed} | rates


def every_key_is_explained(machine: Machine, found: Snapshot) -> None:
    keys, world = machine.keys, machine.world
    allowed = constants(machine) | {keys.alarms, keys.closed, keys.throttle_alarms}
    needed: set[str] = set()
    allowed |= {keys.wake(queue) for queue in machine.QUEUES}
    for job in world.jobs.values():
        needed.add(keys.job(job.key))
        allowed.add(keys.extra(job.key))
        needed.add(found.place(job.queue, job.state))
        if job.is_twin:
            needed.add(keys.twins(job.id))
        if job.token is not None:
            needed.add(keys.owners)
        needed |= {keys.tag(tag) for tag in job.tags} | ({keys.tags} if job.tags else set())
        if job.tracked:
            needed.add(keys.tracked)
        if job.state == 'failed':
            needed.add(keys.groups)
        if job.unmet:
            needed.add(keys.unmet(job.key))
        if job.lane:
            allowed |= _keys_of_lane(machine, job)
    allowed |= {keys.group(name) for name in found.members(keys.groups)}
    needed |= {keys.dependents(key) for key in world.dependents | dict.fromkeys(world.awaited)}
    needed |= {keys.wanted} if world.dependents or world.awaited else set()
    needed |= {keys.expected} if world.expected else set()
    needed |= {keys.paused} if world.paused else set()
    for name in world.limits:
        needed |= {keys.limits(name), keys.throttles}
        allowed |= {keys.limited}
    allowed |= {keys.unique(key) for key in world.locks}
    if keys.releases in found.names:
        allowed.add(keys.releases)
        allowed |= {name for name in found.names if ':dep:!' in name}
    assert needed <= found.names
    assert found.names <= needed | allowed


def _keys_of_lane(machine: Machine, job: Job) -> set[str]:
    keys, world = machine.keys, machine.world
    assert job.lane is not None
    found = set()
    if job.state == 'throttled':
        name = job.lane.digest + job.queue
        found |= {keys.lane(name), keys.lane_info(name), keys.tickets(job.queue)}
        found |= {keys.parked(one) for one in job.lane.wants}
        found |= {keys.parked_lanes(one, job.queue) for one in job.lane.wants}
    for name in job.lane.wants:
        if throttles.held(world, name) or throttles.pending(world, name):
            found |= {keys.limits(name), keys.held(name), keys.pending(name), keys.throttles}
    return found
