"""What people and programs do who look after jobs, queues and throttles."""

from __future__ import annotations

import json

from hypothesis import strategies as st
from hypothesis.stateful import rule

from kombu_reliable.store.limits import Limit
from kombu_reliable.types import Dependencies, QueueCounts, Verdict
from tests.model import acting, dependencies, invariants, marks, throttles
from tests.model.machine import DEAD_FOR, Machine
from tests.model.steps_producers import dependencies as dependency_lists
from tests.model.steps_producers import limits, picks, queues, ranks, some_ids, tags
from tests.model.world import FOREVER, STATES, State

LATER = (-500, 0, 10, 300, 1500)
MOST_TAGS = 1
names = st.sampled_from(Machine.THROTTLES)


class Operators(Machine):
    @rule(pick=picks, cascade=st.booleans(), spare=st.booleans())
    def cancel(self, pick: int, cascade: bool, spare: bool) -> None:
        key = self.pick(pick)
        self.act(
            'cancel', key, 'why', cascade, spare,
            expect=lambda: acting.cancel(self.world, key, cascade=cascade, spare=spare),
        )  # fmt: skip

    @rule(pick=picks, queue=queues)
    def move(self, pick: int, queue: str) -> None:
        key = self.pick(pick)
        self.act('move', key, queue, expect=lambda: acting.move(self.world, key, queue))

    @rule(pick=picks, rank=ranks)
    def prioritize(self, pick: int, rank: int) -> None:
        key = self.pick(pick)
        self.act('prioritize', key, rank, expect=lambda: acting.prioritize(self.world, key, rank))

    @rule(pick=picks, later=st.sampled_from(LATER))
    def reschedule(self, pick: int, later: int) -> None:
        key, due = self.pick(pick), self.now + later
        self.act('reschedule', key, due, expect=lambda: acting.reschedule(self.world, key, due))

    @rule(pick=picks)
    def replay(self, pick: int) -> None:
        key = self.pick(pick)
        self.act('replay', key, expect=lambda: acting.replay(self.world, key))

    @rule()
    def replay_one(self) -> None:
        """Most jobs are no dead letters."""
        dead = [job.key for job in self.world.jobs.values() if job.state == 'failed']
        for key in dead[:1]:
            self.act('replay', key, expect=lambda: acting.replay(self.world, key))

    @rule(pick=picks)
    def discard(self, pick: int) -> None:
        key = self.pick(pick)
        self.act('discard', key, expect=lambda: acting.discard(self.world, key))

    # -- dependencies, tags, tracking -----------------------------------------------------------

    @rule(pick=picks, on=dependency_lists)
    def depend(self, pick: int, on: Dependencies) -> None:
        key = self.pick(pick)
        call = self.store.operations.depend(key, on)
        self.ask(call, lambda: dependencies.add(self.world, key, on))

    @rule(pick=picks, on=some_ids)
    def undepend(self, pick: int, on: tuple[str, ...]) -> None:
        key = self.pick(pick)
        call = self.store.operations.undepend(key, on)
        self.ask(call, lambda: dependencies.remove(self.world, key, on))

    @rule(pick=picks, some=tags, give=st.booleans())
    def tag(self, pick: int, some: tuple[str, ...], give: bool) -> None:
        key = self.pick(pick)
        args = (int(give), json.dumps(some), MOST_TAGS, '', key)
        self.ask(
            self.store.operations.call('tag', list, *args),
            lambda: [marks.tag(self.world, key, some, give, MOST_TAGS).encode()],
        )

    @rule(pick=picks, on=st.booleans())
    def track(self, pick: int, on: bool) -> None:
        key = self.pick(pick)
        call = self.store.operations.call('track', list, int(on), 'task', '', key)
        self.ask(call, lambda: [marks.track(self.world, key, on).encode()])

    # -- queues -----------------------------------------------------------------------------------

    @rule(queue=queues, paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        call = self.jobs.pause(queue, paused)
        self.ask(call, lambda: acting.pause(self.world, queue, paused))

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        self._snapshot = None
        assert self.store.purge(queue) == acting.purge(self.world, queue)

    @rule(
        queue=queues,
        state=st.sampled_from(('ready', 'throttled', 'delayed', 'waiting', 'failed', 'completed')),
    )
    def empty(self, queue: str, state: State) -> None:
        call = self.jobs.empty(queue, state)
        self.ask(call, lambda: acting.empty(self.world, queue, state))

    @rule(queue=queues)
    def count(self, queue: str) -> None:
        counts = {state: len(self.world.those(queue, state)) for state in STATES}
        expected = QueueCounts(
            ready=counts['ready'], delayed=counts['delayed'], leased=counts['leased'],
            dead=counts['failed'], waiting=counts['waiting'], throttled=counts['throttled'],
            completed=counts['completed'], paused=queue in self.world.paused,
        )  # fmt: skip
        assert self.store.counts(queue) == expected

    @rule(pick=picks)
    def inspect(self, pick: int) -> None:
        key = self.pick(pick)
        if job := self.world.jobs.get(key):
            (state, _, _, queue, *_) = self.store.run(self.jobs.inspect([key]))
            assert (state.decode(), queue.decode()) == (job.state, job.queue)

    # -- throttles ----------------------------------------------------------------------------------

    @rule(name=names, limit=limits, life=st.sampled_from((0, 0, 300)))
    def set_limit(self, name: str, limit: Limit, life: int) -> None:
        def expect() -> int:
            was = name in self.world.limits
            until = self.now + life if life else FOREVER
            throttles.set_limit(self.world, name, limit, until)
            return int(was)

        call = self.store.operations.call('set_limit', int, name, 'set', life, *limit.fields)
        self.ask(call, expect)

    @rule(name=names)
    def delete_limit(self, name: str) -> None:
        call = self.store.operations.call('set_limit', int, name, 'delete')
        self.ask(call, lambda: int(throttles.delete_limit(self.world, name)))

    @rule(name=names, pick=picks)
    def free_slot(self, name: str, pick: int) -> None:
        key = self.pick(pick)
        if held := sorted(throttles.held(self.world, name)):
            key = held[pick % len(held)]
        call = self.store.operations.call('free_slot', int, name, key)
        self.ask(call, lambda: int(throttles.free_slot(self.world, name, key)))

    # -- the end ------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Without limits everything runs, and once the work is done nothing is left."""
        if self.world.seen is None and not self.world.jobs:
            return
        for queue in self.QUEUES:
            self.pause(queue, False)
        for name in self.THROTTLES:
            self.set_limit(name, Limit(), 0)
        for _ in range(40):
            self.let_pass(400)
            found = self.claim('ann', 100, list(self.QUEUES)).deliveries
            if found:
                self.settle(Verdict.ACK, found)
            for job in list(self.world.jobs.values()):
                if job.state == 'waiting':
                    self.undepend_all(job.key, job.unmet)
            self.redis_is_as_the_rules_say()
            if not self.world.jobs and not self.world.awaited:
                break
        for name in self.THROTTLES:
            self.delete_limit(name)
        self.let_pass(DEAD_FOR)
        for _ in range(6):
            self.let_pass(400)
            self.claim('ann', 0, list(self.QUEUES))
            self.redis_is_as_the_rules_say()
        self._nothing_is_left()

    def undepend_all(self, key: str, on: set[str]) -> None:
        some = sorted(on)
        call = self.store.operations.undepend(key, some)
        self.ask(call, lambda: dependencies.remove(self.world, key, some))

    def _nothing_is_left(self) -> None:
        assert not self.world.jobs
        assert not self.world.awaited
        left = self.look().names - invariants.constants(self)
        assert not left
