"""Drives the scripts and the model of :mod:`tests.throttle_model` with the same random calls.

``KR_MODEL_STEPS=200000 pytest tests/test_throttle_model.py`` searches longer, along new paths.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.job_operations import JobOperations
from kombu_reliable.store.limits import Limit
from kombu_reliable.transport.throttles import THROTTLES, take_lane
from kombu_reliable.types import Claimed, Delivery, Outgoing, Settlement, Verdict
from tests.conftest import START
from tests.throttle_model import Job, Set, ThrottleModel

LONG = int(os.environ.get('KR_MODEL_STEPS', 0))
STEPS_PER_EXAMPLE = 50
LEASE = 1000
OPTIONS = Options(lease=LEASE / 1000, delivery_limit=1000)
QUEUES = ('q', 'r')
NAMES = ('T', 'U', 'V')
FOREVER = float('inf')
LONGEST_WAIT = 10_000

# All allow the same lead over an even pace, so that it does not matter when exactly the pace of
# the last limit is brought down to that of the next.
limits = st.sampled_from(
    [
        Limit(concurrency=1), Limit(concurrency=1), Limit(concurrency=2), Limit(concurrency=3),
        Limit(concurrency=0), Limit(rate='10/s', burst=3), Limit(rate='20/s', burst=6),
        Limit(concurrency=2, rate='10/s', burst=3), Limit(),
    ]
)  # fmt: skip
wants = st.one_of(
    st.dictionaries(st.sampled_from(NAMES), st.none() | limits, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(NAMES), limits, min_size=1, max_size=1),
    st.just({}),
)
scarce = st.dictionaries(
    st.sampled_from(NAMES), st.sampled_from([Limit(concurrency=1), Limit(concurrency=2)]),
    min_size=1, max_size=2,
)  # fmt: skip
queues = st.sampled_from(QUEUES)
ranks = st.sampled_from((0, 0, 0, 7, 255))
names = st.sampled_from(NAMES)
picks = st.integers(0, 999)
verdicts = st.sampled_from(
    (Verdict.ACK, Verdict.ACK, Verdict.FAIL, Verdict.REQUEUE, Verdict.RELEASE)
)


def lane_of(wanted: dict[str, Limit | None]) -> str | None:
    entries = [
        {'name': name}
        if limit is None
        else {
            'name': name, 'concurrency': limit.concurrency,
            'rate': limit.rate, 'burst': limit.burst,
        }
        for name, limit in wanted.items()
    ]  # fmt: skip
    return take_lane({THROTTLES: entries}) if wanted else None


def digest_of(wanted: dict[str, Limit | None]) -> str:
    text = lane_of(wanted)
    assert text is not None
    return text.split('"')[3]


class Throttles(RuleBasedStateMachine):
    """Producers, workers, and somebody who turns the limits."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushdb()
        self.client: Any = client
        self.keys = Keys()
        self.store = Store(client, Operations(self.keys, OPTIONS, START))
        self.model = ThrottleModel(LEASE)
        self.model.now = START
        self.held: list[Delivery] = []
        self.past: list[Delivery] = []
        #: Tokens of runs that ended with a next run: their settlements are still under way.
        self.retried: set[str] = set()
        self.told: float | None = None
        self.found: dict[str, dict[str, Any]] = {}
        self.number = self.ids = self.tokens = 0

    def _run(self, name: str, *args: Any) -> Any:
        return self.store.run(getattr(JobOperations(self.store.operations), name)(*args))

    def _wait(self, ms: int) -> None:
        self.model.now += ms
        self.store.operations.now = self.model.now

    def _pick(self, pick: int, *states: str) -> Job | None:
        found = [job for job in self.model.jobs.values() if job.state in states]
        return found[pick % len(found)] if found else None

    # -- producers ------------------------------------------------------------------

    def _publish(self, message: Outgoing) -> None:
        self.number += 1
        answer = self.store.run(self.store.operations.publish('x', self.number, [message]))
        assert answer == (message.id,)

    @rule(queue=queues, rank=ranks, delay=st.sampled_from((0, 0, 0, 150)), wanted=wants,
          count=st.integers(1, 4))  # fmt: skip
    def publish(
        self, queue: str, rank: int, delay: int, wanted: dict[str, Limit | None], count: int
    ) -> None:
        for _ in range(count):
            self.ids += 1
            key = f'j{self.ids}'
            due = f'+{delay}' if delay else '0'
            self._publish(Outgoing(key, queue, rank, due, b'', lane=lane_of(wanted)))
            self.model.publish(key, queue, rank, delay, wanted)

    @precondition(lambda self: self.held)
    @rule(pick=picks, queue=queues, delay=st.sampled_from((0, 150)), wanted=st.none() | wants)
    def retry(
        self, pick: int, queue: str, delay: int, wanted: dict[str, Limit | None] | None
    ) -> None:
        delivery = self.held.pop(pick % len(self.held))
        job = self.model.jobs.get(delivery.id)
        if job is None or job.token != delivery.token:
            return
        wanted_before = job.wants
        said = None if wanted is None else lane_of(wanted) or ''
        due = f'+{delay}' if delay else '0'
        run = (delivery.token, delivery.id)
        self.retried.add(delivery.token)
        self._publish(Outgoing(job.key, queue, job.rank, due, b'', run=run, lane=said))
        del self.model.jobs[job.key]
        self.model.tidy()
        wants_now = wanted_before if wanted is None else wanted
        self.model.publish(job.key, queue, job.rank, delay, wants_now, wanted is not None)

    # -- workers --------------------------------------------------------------------

    def _claim(self, credit: int, idle: int, queues: list[str]) -> Claimed:
        self.tokens += 1
        token = f't{self.tokens}'
        alarms = [name.decode() for name in self.client.zrange(self.keys.alarms, 0, -1)]
        call = self.store.operations.claim('w', token, credit, queues, (), idle)
        answer = self.store.run(call)
        assert not answer.problem
        self.model.hear()
        self.model.let_time_work(alarms)
        expected = self.model.claim(token, credit, idle, queues)
        assert [delivery.id for delivery in answer.deliveries] == expected
        self.told = None if answer.wake_in is None else self.model.now + answer.wake_in * 1000
        self.held += answer.deliveries
        self.past += answer.deliveries
        return answer

    @rule(credit=st.integers(0, 5), idle=st.sampled_from((0, 1, 2, 9, 9)),
          asked=st.lists(queues, min_size=1, max_size=2, unique=True))  # fmt: skip
    def claim(self, credit: int, idle: int, asked: list[str]) -> None:
        answer = self._claim(credit, min(idle, credit), asked)
        waiting = [job for queue in asked for job in self.model.those(queue, 'throttled')]
        startable = any(map(self.model.startable, waiting))
        ready = any(self.model.those(queue, 'ready') for queue in asked)
        assert answer.left or answer.kept or not (startable or ready)

    @precondition(lambda self: self.held)
    @rule(verdict=verdicts, picks=st.lists(picks, min_size=1, max_size=3))
    def settle(self, verdict: Verdict, picks: list[int]) -> None:
        for pick in picks:
            if self.held:
                self._settle(verdict, self.held.pop(pick % len(self.held)))

    @precondition(lambda self: self.past)
    @rule(verdict=verdicts, pick=picks)
    def settle_stale(self, verdict: Verdict, pick: int) -> None:
        self._settle(verdict, self.past[-1 - pick % len(self.past)])

    def _settle(self, verdict: Verdict, delivery: Delivery) -> None:
        one = Settlement(verdict, delivery.queue, delivery.id, delivery.token, 'why')
        found = self.model.jobs.get(delivery.id)
        if found is not None and found.queue != delivery.queue:
            return  # it was moved since
        (status,) = self.store.run(self.store.operations.settle([one]))
        expected = self.model.settle(verdict, delivery)
        assert (status == 1) == (expected == 1) or delivery.token in self.retried

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        one = self.held[pick % len(self.held)]
        found = self.model.jobs.get(one.id)
        if found is not None and found.queue != one.queue:
            return
        (status,) = self.store.run(self.store.operations.renew([(one.queue, one.id, one.token)]))
        self.model.hear()
        expected = self.model.renew(one)
        assert (status == 1) == (expected == 1) or one.token in self.retried

    @precondition(lambda self: self.held)
    @rule()
    def crash(self) -> None:
        self.held.clear()

    # Steps of their own, so that random runs are mostly about jobs that wait for each other.

    @rule(queue=queues, wanted=scarce, rank=ranks, credit=st.integers(1, 3))
    def publish_and_claim(
        self, queue: str, wanted: dict[str, Limit | None], rank: int, credit: int
    ) -> None:
        self.publish(queue, rank, 0, wanted, 2)
        self._claim(credit, credit, [queue])

    @rule(queue=queues, wanted=scarce, rank=ranks)
    def publish_scarce(self, queue: str, wanted: dict[str, Limit | None], rank: int) -> None:
        self.publish(queue, rank, 0, wanted, 2)

    @precondition(lambda self: self.held)
    @rule(pick=picks, credit=st.integers(0, 3), queue=queues)
    def settle_and_claim(self, pick: int, credit: int, queue: str) -> None:
        self._settle(Verdict.ACK, self.held.pop(pick % len(self.held)))
        self.redis_is_as_the_model_says()
        self._claim(credit, credit, [queue])

    # -- operators ------------------------------------------------------------------

    @rule(name=names, limit=limits, expires=st.sampled_from((None, None, 0.3)))
    def set_limit(self, name: str, limit: Limit, expires: float | None) -> None:
        self.store.throttles.set(name, limit.concurrency, limit.rate, limit.burst, expires)
        until = FOREVER if expires is None else self.model.now + expires * 1000
        self.model.set[name] = Set(limit, until)

    @rule(name=names)
    def delete_limit(self, name: str) -> None:
        assert self.store.throttles.delete(name) == (self.model.set.pop(name, None) is not None)

    @rule(name=names, pick=picks)
    def release(self, name: str, pick: int) -> None:
        if held := sorted(self.model.held(name)):
            key = held[pick % len(held)]
            assert self.store.throttles.release(name, key)
            self.model.jobs[key].slots.discard(name)

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        if job := self._pick(pick, 'throttled', 'leased', 'delayed', 'ready'):
            self._run('cancel', [job.key], '', True)
            del self.model.jobs[job.key]

    @rule(pick=picks, queue=queues)
    def move(self, pick: int, queue: str) -> None:
        if job := self._pick(pick, 'throttled', 'delayed'):
            assert self._run('move', [job.key], queue) == ('done',)
            if job.queue != queue:
                state, job.queue, job.token = job.state, queue, None
                if state == 'throttled':
                    job.state = 'delayed'
                    self.model.tidy()
                    self.model.enter(job)

    @rule(pick=picks, rank=ranks)
    def prioritize(self, pick: int, rank: int) -> None:
        if job := self._pick(pick, 'throttled', 'delayed', 'ready'):
            assert self._run('prioritize', [job.key], rank) == ('done',)
            job.rank = rank

    @rule(pick=picks, delay=st.sampled_from((0, 150)))
    def reschedule(self, pick: int, delay: int) -> None:
        if job := self._pick(pick, 'throttled', 'delayed'):
            assert self._run('reschedule', [job.key], self.model.now + delay) == ('done',)
            if delay:
                job.state, job.at, job.token = 'delayed', self.model.now + delay, None
            elif job.state == 'delayed':
                job.arrival = self.model.arrive()
                self.model.enter(job)

    @rule(pick=picks)
    def replay(self, pick: int) -> None:
        if job := self._pick(pick, 'dead'):
            assert self._run('replay', [job.key]) == ('done',)
            job.arrival = self.model.arrive()
            self.model.enter(job)

    @rule(queue=queues, state=st.sampled_from(('throttled', 'delayed', 'failed')))
    def purge(self, queue: str, state: str) -> None:
        self.store.jobs.purge(queue, [state])
        name: Any = 'dead' if state == 'failed' else state
        for job in self.model.those(queue, name):
            del self.model.jobs[job.key]

    # -- time -----------------------------------------------------------------------

    @rule(ms=st.sampled_from((1, 20, 50, 100, 400, 2000)))
    def wait(self, ms: int) -> None:
        self._wait(ms)

    @rule(count=st.integers(1, 4))
    def live(self, count: int) -> None:
        """Time passes while a full worker lives: leases end."""
        for _ in range(count):
            self._wait(400)
            self._claim(0, 0, ['q'])

    @precondition(lambda self: self.told is not None)
    @rule(credit=st.integers(1, 5))
    def wake(self, credit: int) -> None:
        """A worker claims when it was told to."""
        if self.told is None or self.told > self.model.now + LONGEST_WAIT:
            return  # the end of a dead letter
        self._wait(max(0, round(self.told) - self.model.now))
        self._claim(credit, credit, list(QUEUES))

    # -- what is always true ----------------------------------------------------------

    @invariant()
    def redis_is_as_the_model_says(self) -> None:
        self.model.tidy()
        self._look()
        for queue in QUEUES:
            assert self._zrange(self.keys.ready(queue)) == self._places(queue, 'ready')
            assert self._zrange(self.keys.throttled(queue)) == self._places(queue, 'throttled')
        for name in NAMES:
            assert set(self._zrange(self.keys.held(name))) == self.model.held(name), name
            assert set(self._zrange(self.keys.pending(name))) == self.model.pending(name), name
            self._limits_are_as_they_should(name)
        lanes = self._lanes()
        self._no_lane_is_stranded(lanes)
        self._work_has_a_marker()
        self._times_are_kept(lanes)
        self._every_key_is_explained(lanes)

    def _places(self, queue: str, state: Any) -> list[str]:
        return [job.key for job in self.model.those(queue, state)]

    def _look(self) -> None:
        """Reads all sorted sets and hashes at once."""
        keys = self._names()
        with self.client.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.type(key)
            kinds = pipe.execute()
            for key, kind in zip(keys, kinds, strict=True):
                if kind == b'zset':
                    pipe.zrange(key, 0, -1, withscores=True)
                elif kind == b'hash':
                    pipe.hgetall(key)
                else:
                    pipe.exists(key)
            values = pipe.execute()
        self.found = {
            key: {name.decode(): value for name, value in dict(found).items()}
            if isinstance(found, list | dict)
            else {}
            for key, found in zip(keys, values, strict=True)
        }

    def _names(self) -> list[str]:
        found: Any = self.client.execute_command('KEYS', '*')
        return [name.decode() for name in found]

    def _zrange(self, key: str) -> list[str]:
        return list(self.found.get(key, {}))

    def _value(self, key: str, member: str) -> Any:
        return self.found.get(key, {}).get(member)

    def _limits_are_as_they_should(self, name: str) -> None:
        found = self.store.throttles.get(name)
        if found is None:
            used = self.model.held(name) or self.model.pending(name) or self.model.is_set(name)
            assert not used, name
            return
        limit = self.model.limit(name)
        assert found.concurrency == (0 if limit.stopped else limit.concurrency), name
        assert found.rate == limit.rate, name

    def _lanes(self) -> dict[str, list[Job]]:
        found: dict[str, list[Job]] = {}
        for queue in QUEUES:
            for job in self.model.those(queue, 'throttled'):
                found.setdefault(digest_of(job.wants) + queue, []).append(job)
        return found

    def _no_lane_is_stranded(self, lanes: dict[str, list[Job]]) -> None:
        """A lane has a ticket or is parked; a throttle with room shows the first of its lanes."""
        for lane, jobs in lanes.items():
            queue = jobs[0].queue
            assert self._zrange(self.keys.lane(lane)) == [job.key for job in jobs]
            first = self._value(self.keys.throttled(queue), jobs[0].key)
            parked = self._value(self.keys.lane_info(lane), 'p')
            ticket = self._value(self.keys.tickets(queue), lane)
            if parked is None:
                assert ticket == first, lane
                continue
            name = parked.decode()
            assert ticket is None and name in jobs[0].wants
            spot = self.keys.parked_lanes(name, queue)
            assert self._value(spot, lane) == first
            assert queue in self._zrange(self.keys.parked(name))
            if self.model.has_room(name) and name not in self._expired():
                shown = [
                    other[0].place
                    for key, other in lanes.items()
                    if other[0].queue == queue
                    and name in other[0].wants
                    and self._value(self.keys.tickets(queue), key) is not None
                ]
                late = self._alarm_is_due()
                assert late or (shown and min(shown) < jobs[0].place), (lane, name)

    def _expired(self) -> set[str]:
        return {name for name, one in self.model.set.items() if one.until <= self.model.now}

    def _alarm_is_due(self) -> bool:
        at = self._value(self.keys.alarms, '')
        return at is not None and at <= self.model.now

    def _work_has_a_marker(self) -> None:
        if self._alarm_is_due():
            return  # the next claim does what time demands
        for queue in QUEUES:
            startable = any(map(self.model.startable, self.model.those(queue, 'throttled')))
            if startable or self.model.those(queue, 'ready'):
                assert self.keys.wake(queue) in self.found, queue

    def _times_are_kept(self, lanes: dict[str, list[Job]]) -> None:
        alarm = self._value(self.keys.alarms, '')
        for lane in lanes:
            parked = self._value(self.keys.lane_info(lane), 'p')
            name = parked.decode() if parked else ''
            if not name or self.model.full(name):
                continue
            at = self.model.next_token(name)
            if at > self.model.now:
                assert alarm is not None and alarm <= at
                marked = any(self.keys.wake(queue) in self.found for queue in QUEUES)
                assert marked or (self.told is not None and self.told <= at + 20)
        for one in self.model.set.values():
            if one.until != FOREVER:
                assert alarm is not None and alarm <= one.until

    def _every_key_is_explained(self, lanes: dict[str, list[Job]]) -> None:
        keys = self.keys
        found = set(self.found)
        always = {keys.meta, keys.producers, keys.alarms, keys.fenced, keys.owners, keys.groups,
                  keys.throttles, keys.throttle_alarms}  # fmt: skip
        for queue in QUEUES:
            always |= {keys.wake(queue), keys.ready(queue), keys.delayed(queue), keys.leased(queue)}
            always |= {keys.dead(queue), keys.throttled(queue), keys.tickets(queue)}
            always |= {keys.parked_lanes(name, queue) for name in NAMES if self._waits(name, queue)}
        always |= {keys.group('why')}
        for name in NAMES:
            always.add(keys.rates(name))
            if self.model.held(name) or self.model.pending(name) or name in self.model.set:
                always |= {keys.limits(name), keys.held(name), keys.pending(name)}
                always.add(keys.parked(name))
        for lane in lanes:
            always |= {keys.lane(lane), keys.lane_info(lane)}
        for key in self.model.jobs:
            always |= {keys.job(key), keys.extra(key)}
        assert found <= always

    def _waits(self, name: str, queue: str) -> bool:
        return any(name in job.wants for job in self.model.those(queue, 'throttled'))

    # -- the end --------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self._finish()
        finally:
            del self.store  # gives its connection back; this object lives until it is collected

    def _finish(self) -> None:
        """Without limits everything runs, and nothing is left."""
        for name in NAMES:
            self.store.throttles.set(name)
            self.model.set[name] = _unlimited()
        for _ in range(12):
            self._wait(400)
            for delivery in self._claim(100, 100, list(QUEUES)).deliveries:
                self._settle(Verdict.ACK, delivery)
        for name in NAMES:
            self.store.throttles.delete(name)
        for queue in QUEUES:
            self.store.jobs.purge(queue, ['failed'])
        keys = self.keys
        found = set(self._names())
        rates = {keys.rates(name) for name in NAMES}
        assert found <= {keys.meta, keys.producers, keys.fenced, keys.alarms, *rates}


def _unlimited() -> Any:
    return Set(Limit(), FOREVER)


def _drive(client: redis.Redis, steps: int, config: pytest.Config) -> None:
    chosen = settings(
        max_examples=max(1, (LONG or steps) // STEPS_PER_EXAMPLE),
        stateful_step_count=STEPS_PER_EXAMPLE,
        derandomize=not LONG and config.getoption('--hypothesis-seed') is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    machine: Any = lambda: Throttles(client)  # noqa: E731
    run_state_machine_as_test(machine, settings=chosen)


@pytest.mark.timeout(0 if LONG else 600)  # to make a found failure short takes minutes
def test_throttles_follow_the_model(client: redis.Redis, backend: Any, request: Any) -> None:
    _drive(client, 300 if backend is None else 1_000, request.config)


@pytest.mark.matrix
@pytest.mark.timeout(0)
def test_throttles_follow_the_model_for_long(server: Any, database: int, request: Any) -> None:
    with server.client(db=database) as client:
        _drive(client, 10_000, request.config)
