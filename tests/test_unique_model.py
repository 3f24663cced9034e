"""Random steps with unique keys against a plain model of their rules.

``KR_MODEL_STEPS=10000`` takes as many steps, along other paths each time.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kombu_reliable import DuplicateJob
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.types import Delivery, Outgoing, Settlement, Unique, Verdict

LONG = int(os.environ.get('KR_MODEL_STEPS', '0'))
STEPS_PER_EXAMPLE = 40
LEASE = 30_000
START = 1_700_000_000_000
QUEUES = ('q', 'r')
KEYS = ('one', 'zwei\0\U0001f600')
PLACES = ('ready', 'delayed', 'waiting', 'leased', 'failed')

picks = st.integers(0, 99)


@dataclass
class Job:
    id: str
    key: str
    life: int
    queue: str
    due: int
    state: str = ''
    #: Behind whom it waits.
    leader: str = ''
    delivery: Delivery | None = None


class Rules:
    """What should happen, in a few lines."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        #: Who has a key, and until when.
        self.locks: dict[str, tuple[str, float]] = {}

    def holder(self, key: str, now: int) -> Job | None:
        id, until = self.locks.get(key, ('', 0.0))
        return self.jobs[id] if id and now < until else None

    def lock(self, job: Job, now: int) -> None:
        self.locks[job.key] = (job.id, now + job.life if job.life else float('inf'))

    def free(self, job: Job) -> None:
        if self.locks.get(job.key, ('', 0))[0] == job.id:
            del self.locks[job.key]

    def rest(self, job: Job, now: int) -> None:
        """Where a job is that nobody holds."""
        late = job.due > now
        job.state = 'waiting' if job.leader else 'delayed' if late else 'ready'

    def publish(self, job: Job, conflict: str, now: int) -> str:
        holder = self.holder(job.key, now)
        if holder and conflict != 'replace':
            return f'!{conflict} {holder.id}'
        if holder and holder.state == 'leased':
            job.leader = holder.id
        elif holder:
            job.leader = holder.leader
            self.end(holder, now)
        self.jobs[job.id] = job
        self.rest(job, now)
        self.lock(job, now)
        return job.id

    def release_those_behind(self, job: Job, now: int) -> None:
        for other in self.jobs.values():
            if other.leader == job.id:
                other.leader = ''
                self.rest(other, now)

    def end(self, job: Job, now: int) -> None:
        self.free(job)
        del self.jobs[job.id]
        self.release_those_behind(job, now)

    def fail(self, job: Job, now: int) -> None:
        self.free(job)
        job.state, job.delivery = 'failed', None
        self.release_those_behind(job, now)

    def replay(self, job: Job, now: int) -> Job | None:
        """Returns who is in the way."""
        holder = self.holder(job.key, now)
        if holder is None:
            job.due, job.delivery = now, None
            self.rest(job, now)
            self.lock(job, now)
        return holder

    def promote(self, now: int) -> None:
        for job in self.jobs.values():
            if job.state == 'delayed' and job.due <= now:
                job.state = 'ready'

    def those(self, *states: str, queue: str = '') -> list[Job]:
        found = (job for job in self.jobs.values() if job.state in states)
        return [job for job in found if not queue or job.queue == queue]


class Uniques(RuleBasedStateMachine):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushdb()
        self.client: Any = client
        self.store = Store(client, Operations(Keys(), Options(delivery_limit=0), START))
        self.rules = Rules()
        self.numbers = itertools.count()

    @property
    def now(self) -> int:
        assert self.store.operations.now is not None
        return self.store.operations.now

    def name(self) -> str:
        return f'={next(self.numbers)}'

    def pick(self, number: int, *states: str) -> Job | None:
        found = self.rules.those(*states)
        return found[number % len(found)] if found else None

    def _publish(self, message: Outgoing) -> str:
        call = self.store.operations.publish(f'l{next(self.numbers)}', 1, [message])
        return self.store.run(call)[0]

    def _claim(self, queue: str, credit: int) -> list[Delivery]:
        call = self.store.operations.claim('w', f't{next(self.numbers)}', credit, [queue])
        return list(self.store.run(call).deliveries)

    def _settle(self, job: Job, verdict: Verdict) -> None:
        assert job.delivery is not None
        one = job.delivery
        settled = Settlement(verdict, job.queue, one.id, one.token, 'rejected')
        assert self.store.run(self.store.operations.settle([settled])) == (1,)

    # -- steps -------------------------------------------------------------------

    @rule(
        key=st.sampled_from(KEYS),
        conflict=st.sampled_from(('skip', 'raise', 'replace', 'replace')),
        life=st.sampled_from((0, 0, 700, 3000)),
        delay=st.sampled_from((0, 0, 0, 500, 2000)),
        queue=st.sampled_from(QUEUES),
    )
    def publish(self, key: str, conflict: str, life: int, delay: int, queue: str) -> None:
        job = Job(self.name(), key, life, queue, self.now + delay)
        message = Outgoing(
            job.id, queue, 0, f'+{delay}', b'envelope', unique=Unique(key, life, conflict)
        )
        assert self._publish(message) == self.rules.publish(job, conflict, self.now)

    @rule(queue=st.sampled_from(QUEUES), credit=st.integers(1, 3))
    def claim(self, queue: str, credit: int) -> None:
        ready = self.rules.those('ready', queue=queue)
        found = self._claim(queue, credit)
        assert len(found) == min(credit, len(ready))
        for one in found:
            job = self.rules.jobs[one.id]
            assert job in ready
            job.state, job.delivery = 'leased', one

    @rule(
        number=picks,
        verdict=st.sampled_from(
            (Verdict.ACK, Verdict.ACK, Verdict.FAIL, Verdict.CANCEL, Verdict.REPLACE,
             Verdict.REQUEUE, Verdict.RELEASE)
        ),
    )  # fmt: skip
    def settle(self, number: int, verdict: Verdict) -> None:
        job = self.pick(number, 'leased')
        if job is None:
            return
        self._settle(job, verdict)
        if verdict is Verdict.FAIL:
            self.rules.fail(job, self.now)
        elif verdict in (Verdict.REQUEUE, Verdict.RELEASE):
            job.state, job.delivery = 'ready', None
        else:
            if verdict is Verdict.REPLACE:
                # Those behind it wait for the next job with this id: here it comes, and ends.
                self._publish(Outgoing(job.id, 'other', 0, '0', b''))
                for one in self._claim('other', 10):
                    ended = Settlement(Verdict.ACK, 'other', one.id, one.token)
                    self.store.run(self.store.operations.settle([ended]))
            self.rules.end(job, self.now)

    @rule(number=picks, delay=st.sampled_from((0, 500)), unique=st.booleans())
    def next_run(self, number: int, delay: int, unique: bool) -> None:
        job = self.pick(number, 'leased')
        if job is None or job.delivery is None:
            return
        run = (job.delivery.token, job.id)
        again = Unique(KEYS[0], 500, 'skip') if unique else None
        message = Outgoing(job.id, job.queue, 0, f'+{delay}', b'', run=run, unique=again)
        assert self._publish(message) == job.id
        job.due, job.delivery = self.now + delay, None
        self.rules.rest(job, self.now)

    @rule(number=picks)
    def start(self, number: int) -> None:
        job = self.pick(number, 'leased')
        if job is None or job.delivery is None:
            return
        has = self.rules.locks.get(job.key, ('', 0))[0] == job.id
        assert self.store.jobs.unlock(job.id, job.delivery.token) == has
        self.rules.free(job)

    @rule(number=picks)
    def cancel(self, number: int) -> None:
        job = self.pick(number, 'ready', 'delayed', 'waiting', 'leased')
        if job is not None:
            assert self.store.jobs.cancel(job.id[1:]) in ('gone', 'requested')
            self.rules.end(job, self.now)

    @rule(number=picks)
    def replay(self, number: int) -> None:
        job = self.pick(number, 'failed')
        if job is None:
            return
        holder = self.rules.replay(job, self.now)
        try:
            self.store.jobs.replay(job.id[1:])
            assert holder is None
        except DuplicateJob as error:
            assert holder is not None
            assert error.id == holder.id[1:]

    @rule(number=picks)
    def discard(self, number: int) -> None:
        job = self.pick(number, 'failed')
        if job is not None:
            self.store.jobs.discard(job.id[1:])
            self.rules.end(job, self.now)

    @rule(number=picks, queue=st.sampled_from(QUEUES))
    def move(self, number: int, queue: str) -> None:
        job = self.pick(number, 'ready', 'delayed', 'waiting', 'failed')
        if job is not None:
            self.store.jobs.move(job.id[1:], queue)
            job.queue = queue

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        self.store.purge(queue)
        for job in self.rules.those('ready', 'delayed', 'waiting', queue=queue):
            self.rules.end(job, self.now)

    @rule(ms=st.sampled_from((100, 600, 1000)))
    def wait(self, ms: int) -> None:
        self.store.operations.now = self.now + ms
        self._claim('other', 0)
        self.rules.promote(self.now)
        for job in self.rules.those('leased'):  # they are renewed
            assert job.delivery is not None
            held = [(job.queue, job.id, job.delivery.token)]
            assert self.store.run(self.store.operations.renew(held)) == (1,)

    @rule(number=picks)
    def lose(self, number: int) -> None:
        """The worker of one job dies."""
        doomed = self.pick(number, 'leased')
        if doomed is None:
            return
        end = self.now + LEASE + 1
        doomed.delivery, dead = None, doomed.delivery
        while self.now < end:
            self.store.operations.now = min(end, self.now + LEASE // 3)
            for job in self.rules.those('leased'):
                if job.delivery is not None:
                    held = [(job.queue, job.id, job.delivery.token)]
                    self.store.run(self.store.operations.renew(held))
            self._claim('other', 0)
        assert dead is not None
        doomed.state = 'ready'
        self.rules.promote(self.now)

    # -- comparisons -------------------------------------------------------------

    @invariant()
    def redis_is_as_the_rules_say(self) -> None:
        for _ in range(3):
            self._claim('other', 0)  # works off what ends mean for others
        keys = self.store.keys
        places = (keys.ready, keys.delayed, keys.waiting, keys.leased, keys.dead)
        spell = dict(zip(PLACES, places, strict=True))
        for queue in QUEUES:
            for state in PLACES:
                found = {id.decode() for id in self.client.zrange(spell[state](queue), 0, -1)}
                assert found == {job.id for job in self.rules.those(state, queue=queue)}, state
        for key in KEYS:
            lock = self.client.get(keys.unique(key))
            holder = self.rules.locks.get(key)
            if holder is None:
                assert lock is None, key
            else:  # one whose life has ended may be there or not
                assert lock is None or lock.decode().split(';', 2)[2] == holder[0]
                assert lock is not None or holder[1] < float('inf')

    def teardown(self) -> None:
        """Once all jobs have ended nothing is left."""
        try:
            for _ in range(20):
                for queue in QUEUES:
                    self.purge(queue)
                    for job in self.rules.those('leased', 'failed', queue=queue):
                        if job.state == 'failed':
                            self.store.jobs.discard(job.id[1:])
                        else:
                            self._settle(job, Verdict.ACK)
                        self.rules.end(job, self.now)
                self.redis_is_as_the_rules_say()
            assert not self.rules.jobs
            keys = self.store.keys
            constant = {keys.meta, keys.producers, keys.alarms, keys.fenced}
            constant |= {keys.wake(queue) for queue in (*QUEUES, 'other')}
            assert {key.decode() for key in self.client.keys('*')} <= constant
        finally:
            del self.store


def _settings(config: pytest.Config) -> settings:
    """CI takes the same paths each time; a long run or a given seed takes others."""
    return settings(
        max_examples=max(1, (LONG or 1_500) // STEPS_PER_EXAMPLE),
        stateful_step_count=STEPS_PER_EXAMPLE,
        derandomize=not LONG and config.getoption('--hypothesis-seed') is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(0 if LONG else 600)
def test_unique_keys_follow_the_rules(client: redis.Redis, backend: Any, request: Any) -> None:
    if backend is None and not LONG:
        pytest.skip('the same scripts, much slower')
    run_state_machine_as_test(lambda: Uniques(client), settings=_settings(request.config))
