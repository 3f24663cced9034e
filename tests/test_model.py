"""Drives the Lua scripts and the model of :mod:`tests.model` with the same random calls.

``KR_MODEL_STEPS=200000 pytest tests/test_model.py`` searches longer, along new paths each time;
``--hypothesis-seed`` fixes or varies the paths of any run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

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
from kombu_reliable.types import Claimed, Delivery, Outgoing, Settlement, Verdict
from tests.conftest import START
from tests.model import State
from tests.model_actions import ActingModel, Actions

LONG = int(os.environ.get('KR_MODEL_STEPS', 0))
STEPS_PER_EXAMPLE = 40
LEASE = 1000
GRACE = 20  # of lua/lib/timekeeper.lua

QUEUES = ('q', 'r')
WORKERS = ('ann', 'bob', 'cid')
LANES = ('x', 'y')
IDS = ('a', 'b', 'c', 'd')

# All times are multiples of 10 ms but for this one: whether something goes at the very
# millisecond of its retention or at the next is nobody's promise.
DEAD_FOR = 12_345

OPTIONS = Options(
    lease=LEASE / 1000, delivery_limit=3, failed_retention=DEAD_FOR / 1000, failed_limit=1
)

messages = st.builds(
    Outgoing,
    id=st.sampled_from(IDS),
    queue=st.sampled_from(QUEUES),
    rank=st.sampled_from((0, 7, 255)),
    due=st.sampled_from(('0', '0', '0', '+10', '+300', '+1500', 'absolute', str(START - 50))),
    envelope=st.binary(min_size=1, max_size=4),
)
batches = st.lists(messages, min_size=1, max_size=3)
lanes = st.sampled_from(LANES)
workers = st.sampled_from(WORKERS)
credits_ = st.integers(0, 4)
queue_lists = st.lists(st.sampled_from(QUEUES), min_size=1, max_size=2, unique=True)
# What a replaced job leaves behind for its dependents has tests of its own.
verdicts = st.sampled_from([verdict for verdict in Verdict if verdict is not Verdict.REPLACE])
picks = st.lists(st.integers(0, 99), min_size=1, max_size=3)
pauses = st.sampled_from((0, 10, 20, 30, 200, 490, 500, 510, 1000, 2500, 13_000))


def place(keys: Keys, queue: str, state: State) -> str:
    spell = {
        'ready': keys.ready, 'delayed': keys.delayed, 'leased': keys.leased, 'dead': keys.dead
    }  # fmt: skip
    return spell[state](queue)


@dataclass
class Snapshot:
    """What there is in Redis."""

    keys: set[str]
    places: dict[tuple[str, State], list[str]]
    tokens: dict[str, str]
    alarms: dict[str, float]
    markers: set[str]

    @classmethod
    def take(cls, client: redis.Redis, keys: Keys) -> Snapshot:
        spots = [(queue, state) for queue in QUEUES for state in get_args(State)]
        with client.pipeline(transaction=False) as pipe:
            pipe.keys()
            pipe.hgetall(keys.owners)
            pipe.zrange(keys.alarms, 0, -1, withscores=True)
            for queue, state in spots:
                pipe.zrange(place(keys, queue, state), 0, -1)
            names, owners, alarms, *members = pipe.execute()
        found = {name.decode() for name in names}
        return cls(
            keys=found,
            places={
                spot: [id.decode() for id in ids] for spot, ids in zip(spots, members, strict=True)
            },
            tokens={id.decode(): text.decode().split(';')[0] for id, text in owners.items()},
            alarms={queue.decode(): at for queue, at in alarms},
            markers={queue for queue in QUEUES if keys.wake(queue) in found},
        )


class Transport(Actions, RuleBasedStateMachine):
    """Producers and workers, as the server sees them."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushdb()
        self.client = client
        self.keys = Keys()
        self.store = Store(client, Operations(self.keys, OPTIONS, START))
        self.model = ActingModel(LEASE, OPTIONS.delivery_limit, DEAD_FOR, OPTIONS.failed_limit)
        #: Per lane the last call: number of the first message, and the messages.
        self.calls: dict[str, tuple[int, list[Outgoing]]] = {}
        #: What the workers hold, as they believe, and every delivery that there ever was.
        self.held: list[tuple[str, Delivery]] = []
        self.past: list[Delivery] = []
        #: When each worker was told to claim again.
        self.told: dict[str, float | None] = {}
        self.tokens = 0

    @property
    def now(self) -> int:
        assert self.store.operations.now is not None
        return self.store.operations.now

    # -- producers ------------------------------------------------------------------

    def _publish(self, lane: str, first: int, batch: list[Outgoing]) -> None:
        answer = self.store.run(self.store.operations.publish(lane, first, batch))
        assert list(answer) == self.model.publish(self.now, lane, first, batch, answer)
        self.calls[lane] = (first, batch)

    def _dated(self, batch: list[Outgoing]) -> list[Outgoing]:
        absolute = str(self.now + 400)
        return [replace(one, due=absolute) if one.due == 'absolute' else one for one in batch]

    @rule(lane=lanes, batch=batches)
    def publish(self, lane: str, batch: list[Outgoing]) -> None:
        first, last = self.calls.get(lane, (0, []))
        self._publish(lane, first + len(last), self._dated(batch))

    @precondition(lambda self: self.calls)
    @rule(lane=lanes)
    def publish_again(self, lane: str) -> None:
        """The reply was lost."""
        if lane in self.calls:
            self._publish(lane, *self.calls[lane])

    @precondition(lambda self: self.calls)
    @rule(lane=lanes, batch=batches)
    def publish_again_with_more(self, lane: str, batch: list[Outgoing]) -> None:
        if lane in self.calls:
            first, last = self.calls[lane]
            self._publish(lane, first, last + self._dated(batch))

    @staticmethod
    def _run_of(delivery: Delivery, one: Outgoing) -> Outgoing:
        job = delivery.id.rpartition('~')[2]
        return replace(one, id=job, run=(delivery.token, delivery.id))

    @precondition(lambda self: self.held)
    @rule(lane=lanes, message=messages, pick=st.integers(0, 99), settled=st.booleans())
    def publish_next_run(self, lane: str, message: Outgoing, pick: int, settled: bool) -> None:
        """What a retry does; then the worker settles the run, unless it dies before."""
        held = self.held[pick % len(self.held)]
        self.publish(lane, [self._run_of(held[1], message)])
        if settled:
            self.held.remove(held)
            self._settle(Verdict.ACK, [held[1]])

    @precondition(lambda self: self.past)
    @rule(lane=lanes, batch=batches, picks=picks)
    def publish_next_runs(self, lane: str, batch: list[Outgoing], picks: list[int]) -> None:
        """By owners, by former owners, and by both in one call."""
        runs = [self.past[-1 - pick % len(self.past)] for pick in picks]
        self.publish(lane, list(map(self._run_of, runs, batch)))

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        assert self.store.run(self.store.operations.purge(queue)) == self.model.purge(queue)

    # -- workers --------------------------------------------------------------------

    def _new_token(self) -> str:
        self.tokens += 1
        return f't{self.tokens}'

    def _claim(
        self,
        worker: str,
        token: str,
        credit: int,
        queues: list[str],
        settlements: Sequence[Settlement] = (),
    ) -> Claimed:
        found: Any = self.client.zrange(self.keys.alarms, 0, -1)
        self.model.alarms = [name.decode() for name in found]
        call = self.store.operations.claim(worker, token, credit, queues, settlements)
        answer = self.store.run(call)
        assert list(answer.statuses) == self.model.settle(self.now, settlements)
        deliveries, left = self.model.claim(self.now, token, credit, queues)
        assert list(answer.deliveries) == deliveries
        assert answer.left == left
        for queue in queues:  # a marker that a claim leaves means work
            marked = bool(self.client.exists(self.keys.wake(queue)))
            work = queue not in self.model.paused and self.model.those(queue, 'ready')
            assert marked == bool(work), queue
        return answer

    def _receive(self, worker: str, answer: Claimed) -> None:
        self.held += [(worker, delivery) for delivery in answer.deliveries]
        self.past += answer.deliveries
        wake_in = answer.wake_in
        self.told[worker] = None if wake_in is None else self.now + wake_in * 1000

    @rule(worker=workers, credit=credits_, queues=queue_lists)
    def claim(self, worker: str, credit: int, queues: list[str]) -> None:
        self._receive(worker, self._claim(worker, self._new_token(), credit, queues))

    @precondition(lambda self: self.past)
    @rule(
        worker=workers, credit=credits_, queues=queue_lists, picks=picks,
        verdicts=st.lists(verdicts, min_size=3, max_size=3), pick=st.integers(0, 99),
    )  # fmt: skip
    def settle_and_claim(
        self, worker: str, credit: int, queues: list[str], picks: list[int],
        verdicts: list[Verdict], pick: int,
    ) -> None:  # fmt: skip
        """What a busy worker does: ends some deliveries, old ones too, and takes others."""
        ended = [self.past[-1 - number % len(self.past)] for number in picks]
        if self.held:
            ended[0] = self.held.pop(pick % len(self.held))[1]
        batch = [
            Settlement(verdict, one.queue, one.id, one.token, 'why')
            for one, verdict in zip(ended, verdicts, strict=False)
        ]
        self._receive(worker, self._claim(worker, self._new_token(), credit, queues, batch))

    @rule(worker=workers, credit=credits_, queues=queue_lists)
    def claim_twice(self, worker: str, credit: int, queues: list[str]) -> None:
        """The first reply was lost: what it leased is nobody's, and comes back."""
        token = self._new_token()
        self._claim(worker, token, credit, queues)
        self._receive(worker, self._claim(worker, token, credit, queues))

    def _renew(self, deliveries: list[Delivery]) -> None:
        triples = [(one.queue, one.id, one.token) for one in deliveries]
        answer = self.store.run(self.store.operations.renew(triples))
        assert list(answer) == self.model.renew(self.now, deliveries)

    @precondition(lambda self: self.held)
    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        """What a keeper does: all of one worker's messages, if there are any."""
        if mine := [delivery for owner, delivery in self.held if owner == worker]:
            self._renew(mine)

    @precondition(lambda self: self.past)
    @rule(picks=picks)
    def renew_stale(self, picks: list[int]) -> None:
        self._renew([self.past[-1 - pick % len(self.past)] for pick in picks])

    def _settle(self, verdict: Verdict, deliveries: list[Delivery]) -> None:
        batch = [Settlement(verdict, one.queue, one.id, one.token, 'why') for one in deliveries]
        answer = self.store.run(self.store.operations.settle(batch))
        assert list(answer) == self.model.settle(self.now, batch)

    @precondition(lambda self: self.held)
    @rule(verdict=verdicts, pick=st.integers(0, 99))
    def settle(self, verdict: Verdict, pick: int) -> None:
        _, delivery = self.held.pop(pick % len(self.held))
        self._settle(verdict, [delivery])

    @precondition(lambda self: self.past)
    @rule(verdict=verdicts, picks=picks)
    def settle_stale(self, verdict: Verdict, picks: list[int]) -> None:
        """Settled before, taken over by others, or, with luck, still held."""
        self._settle(verdict, [self.past[-1 - pick % len(self.past)] for pick in picks])

    @precondition(lambda self: self.held)
    @rule(worker=workers)
    def release(self, worker: str) -> None:
        """A worker shuts down in order."""
        self._settle(Verdict.RELEASE, [one for owner, one in self.held if owner == worker])
        self.crash(worker)

    @precondition(lambda self: self.held)
    @rule(worker=workers)
    def crash(self, worker: str) -> None:
        self.held = [(owner, delivery) for owner, delivery in self.held if owner != worker]

    # -- time -----------------------------------------------------------------------

    @rule(ms=pauses)
    def pause(self, ms: int) -> None:
        """Nobody is heard; for more than half a lease, that is silence."""
        self.store.operations.now = self.now + ms

    @rule(count=st.integers(1, 4), worker=workers)
    def idle(self, count: int, worker: str) -> None:
        """Time passes while a full worker lives: leases end."""
        for _ in range(count):
            self.store.operations.now = self.now + 400
            self._receive(worker, self._claim(worker, self._new_token(), 0, ['q']))

    @precondition(lambda self: any(self.told.values()))
    @rule(worker=workers, late=st.sampled_from((0, 0, 10, 30)), credit=credits_, queues=queue_lists)
    def wake(self, worker: str, late: int, credit: int, queues: list[str]) -> None:
        """A worker claims when it was told to, or a little later."""
        if moment := self.told.get(worker):
            self.store.operations.now = max(self.now, round(moment) + late)
            self.claim(worker, credit, queues)

    # -- what is always true --------------------------------------------------------

    @invariant()
    def redis_is_as_the_model_says(self) -> None:
        found = Snapshot.take(self.client, self.keys)
        self._every_job_is_in_its_place(found)
        self._owners_are_those_who_may_renew(found)
        self._claimable_work_has_a_marker(found)
        self._no_alarm_is_late(found)
        self._somebody_watches(found)
        self._every_key_is_explained(found)

    def _every_job_is_in_its_place(self, found: Snapshot) -> None:
        for (queue, state), ids in found.places.items():
            expected = [job.key for job in self.model.those(queue, state)]
            assert ids == expected, (queue, state)

    def _owners_are_those_who_may_renew(self, found: Snapshot) -> None:
        assert found.tokens == {
            key: job.token for key, job in self.model.jobs.items() if job.token is not None
        }

    def _claimable_work_has_a_marker(self, found: Snapshot) -> None:
        for queue in QUEUES:
            if self.model.those(queue, 'ready') and queue not in self.model.paused:
                assert queue in found.markers

    def _next_due(self, queue: str) -> int | None:
        moments = [job.at for job in self.model.those(queue, 'delayed')]
        moments += [max(job.at, self.model.hold) for job in self.model.those(queue, 'leased')]
        return min(moments, default=None)

    def _no_alarm_is_late(self, found: Snapshot) -> None:
        for queue in QUEUES:
            due = self._next_due(queue)
            if due is not None:
                assert found.alarms[queue] <= due, queue

    def _somebody_watches(self, found: Snapshot) -> None:
        """The next due time is some worker's to act on, or a marker wakes one who will be told."""
        watched = [queue for queue in QUEUES if queue not in self.model.paused]
        dues = [due for queue in watched if (due := self._next_due(queue)) is not None]
        if dues and not found.markers:
            moments = [moment for moment in self.told.values() if moment is not None]
            assert moments, 'no worker was told to wake'
            assert min(moments) <= min(dues) + GRACE

    def _every_key_is_explained(self, found: Snapshot) -> None:
        keys = self.keys
        constant = {keys.meta, keys.producers, keys.alarms, keys.fenced, *map(keys.wake, QUEUES)}
        assert found.keys - constant == {*self._explained(), *self.explained_by_actions()}

    def _explained(self) -> Iterator[str]:
        """The keys that the jobs account for."""
        for job in self.model.jobs.values():
            yield self.keys.job(job.key)
            yield place(self.keys, job.queue, job.state)
            if job.lost or job.past or job.once or job.noted:
                yield self.keys.extra(job.key)
            if job.token is not None:
                yield self.keys.owners

    def teardown(self) -> None:
        try:
            self._finish()
        finally:
            del self.store  # gives its connection back; this object lives until it is collected

    def _finish(self) -> None:
        """Once the work is done and time has passed, the keyspace is what it was."""
        if self.model.seen is None:
            return
        for queue in QUEUES:
            self.pause_queue(queue, False)
        for ms in [400] * 8 + [DEAD_FOR + 10]:
            self.store.operations.now = self.now + ms
            answer = self._claim('ann', self._new_token(), 100, list(QUEUES))
            if answer.deliveries:
                self._settle(Verdict.ACK, list(answer.deliveries))
        assert not self.model.jobs
        keys = self.keys
        constant = {keys.meta, keys.producers, keys.fenced}
        assert Snapshot.take(self.client, keys).keys <= constant


def _settings(config: pytest.Config, fake: bool) -> settings:
    """CI takes the same paths each time; a long run or a given seed takes others."""
    steps = LONG or (12_000 if fake else 8_000)
    return settings(
        max_examples=max(1, steps // STEPS_PER_EXAMPLE),
        stateful_step_count=STEPS_PER_EXAMPLE,
        derandomize=not LONG and config.getoption('--hypothesis-seed') is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(0 if LONG else 600)  # to make a found failure short takes minutes
def test_scripts_follow_the_model(client: redis.Redis, backend: Any, request: Any) -> None:
    run_state_machine_as_test(
        lambda: Transport(client), settings=_settings(request.config, fake=backend is None)
    )
