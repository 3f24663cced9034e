"""What people and programs do who look after jobs, queues and throttles."""

from __future__ import annotations

import json
from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kombu_reliable.store.limits import Limit
from kombu_reliable.types import Dependencies, QueueCounts, Verdict
from tests.model import acting, dependencies, invariants, marks, throttles
from tests.model.machine import DEAD_FOR, Machine
from tests.model.steps_producers import dependencies as dependency_lists
from tests.model.steps_producers import limits, picks, queues, ranks, rarely, tags
from tests.model.world import FOREVER, STATES, State

LATER = (-500, 0, 10, 300, 1500)
MOST_TAGS = 1
names = st.sampled_from(Machine.THROTTLES)


class Operators(Machine):
    # Few rules with many ways, so that random runs are mostly about work.

    @precondition(lambda self: self.world.jobs)
    @rule(
        pick=picks, way=st.sampled_from(('move', 'prioritize', 'reschedule')), queue=queues,
        rank=ranks, later=st.sampled_from(LATER), lost=rarely,
    )  # fmt: skip
    def change(self, pick: int, way: str, queue: str, rank: int, later: int, lost: bool) -> None:
        if lost and self.held:
            self.lose_leases()
        key, world = self.pick(pick), self.world
        if way == 'move':
            self.act('move', key, queue, expect=lambda: acting.move(world, key, queue))
        elif way == 'prioritize':
            self.act('prioritize', key, rank, expect=lambda: acting.prioritize(world, key, rank))
        else:
            due = self.now + later
            self.act('reschedule', key, due, expect=lambda: acting.reschedule(world, key, due))
        self._look_at(key)

    @precondition(lambda self: self.world.jobs)
    @rule(
        pick=picks, way=st.sampled_from(('cancel', 'cancel', 'discard')), cascade=st.booleans(),
        spare=st.booleans(),
    )  # fmt: skip
    def end(self, pick: int, way: str, cascade: bool, spare: bool) -> None:
        key, world = self.pick(pick), self.world
        if way == 'discard':
            self.act('discard', key, expect=lambda: acting.discard(world, key))
        else:
            self.act(
                'cancel', key, 'why', cascade, spare,
                expect=lambda: acting.cancel(world, key, cascade=cascade, spare=spare),
            )  # fmt: skip

    @precondition(lambda self: self.world.jobs)
    @rule(pick=picks, any_job=st.booleans())
    def replay(self, pick: int, any_job: bool) -> None:
        found = [job for job in self.world.jobs.values() if job.state == 'failed']
        # Those with a unique key, which are rare, first.
        dead = [job.key for job in sorted(found, key=lambda job: job.unique is None)]
        key = dead[pick % len(dead)] if dead and not any_job else self.pick(pick)
        self.act('replay', key, expect=lambda: acting.replay(self.world, key))

    @precondition(lambda self: self.held)
    @rule(pick=picks)
    def fail_and_replay(self, pick: int) -> None:
        """A run fails, and somebody gives it another chance; those with a unique key, which are
        rare, first."""
        self.held.sort(key=lambda one: not self._is_unique(one[1].id))
        _, delivery = self.held.pop(
            0 if self._is_unique(self.held[0][1].id) else pick % len(self.held)
        )
        self.settle(Verdict.FAIL, [delivery])
        key = delivery.id
        self.act('replay', key, expect=lambda: acting.replay(self.world, key))

    def _is_unique(self, key: str) -> bool:
        job = self.world.jobs.get(key)
        return job is not None and job.unique is not None

    def _look_at(self, key: str) -> None:
        if job := self.world.jobs.get(key):
            (state, _, _, queue, *_) = self.store.run(self.jobs.inspect([key]))
            assert (state.decode(), queue.decode()) == (job.state, job.queue)

    # -- dependencies, tags, tracking -----------------------------------------------------------

    @precondition(lambda self: any(job.unmet for job in self.world.jobs.values()))
    @rule(pick=picks, on=dependency_lists, more=st.booleans())
    def change_dependencies(self, pick: int, on: Dependencies, more: bool) -> None:
        waiting = [job for job in self.world.jobs.values() if job.unmet]
        key = waiting[pick].key if pick < len(waiting) else self.pick(pick)
        if more:
            call = self.store.operations.depend(key, on)
            self.ask(call, lambda: dependencies.add(self.world, key, on))
        else:
            call = self.store.operations.undepend(key, on.on)
            self.ask(call, lambda: dependencies.remove(self.world, key, on.on))

    @precondition(lambda self: self.world.jobs)
    @rule(pick=picks, some=tags, on=st.booleans(), tag=st.booleans())
    def change_marks(self, pick: int, some: tuple[str, ...], on: bool, tag: bool) -> None:
        key = self.pick(pick)
        if tag:
            args = (int(on), json.dumps(some), MOST_TAGS, '', key)
            self.ask(
                self.store.operations.call('tag', list, *args),
                lambda: [marks.tag(self.world, key, some, on, MOST_TAGS).encode()],
            )
        else:
            call = self.store.operations.call('track', list, int(on), 'task', '', key)
            self.ask(call, lambda: [marks.track(self.world, key, on).encode()])

    # -- queues -----------------------------------------------------------------------------------

    @rule(queue=queues, paused=st.booleans())
    def pause(self, queue: str, paused: bool) -> None:
        call = self.jobs.pause(queue, paused)
        self.ask(call, lambda: acting.pause(self.world, queue, paused))

    @rule(queue=queues, state=st.sampled_from(('', 'ready', 'throttled', 'delayed', 'waiting',
                                               'failed', 'completed')))  # fmt: skip
    def empty(self, queue: str, state: State | Literal['']) -> None:
        if state:
            call = self.jobs.empty(queue, state)
            self.ask(call, lambda: acting.empty(self.world, queue, state))
        else:
            self._snapshot = None
            assert self.store.purge(queue) == acting.purge(self.world, queue)
        self._counts_agree(queue)

    def _counts_agree(self, queue: str) -> None:
        counts = {state: len(self.world.those(queue, state)) for state in STATES}
        expected = QueueCounts(
            ready=counts['ready'], delayed=counts['delayed'], leased=counts['leased'],
            dead=counts['failed'], waiting=counts['waiting'], throttled=counts['throttled'],
            completed=counts['completed'], paused=queue in self.world.paused,
        )  # fmt: skip
        assert self.store.counts(queue) == expected

    # -- throttles -------------------------------------------------------------------------------

    @rule(name=names, limit=limits, life=st.sampled_from((0, 0, 300)))
    def set_limit(self, name: str, limit: Limit, life: int) -> None:
        def expect() -> int:
            was = name in self.world.limits
            until = self.now + life if life else FOREVER
            throttles.set_limit(self.world, name, limit, until)
            return int(was)

        call = self.store.operations.call('set_limit', int, name, 'set', life, *limit.fields)
        self.ask(call, expect)

    @precondition(lambda self: self.world.limits)
    @rule(name=names)
    def delete_limit(self, name: str) -> None:
        call = self.store.operations.call('set_limit', int, name, 'delete')
        self.ask(call, lambda: int(throttles.delete_limit(self.world, name)))

    @precondition(lambda self: any(job.slots for job in self.world.jobs.values()))
    @rule(name=names, pick=picks)
    def free_slot(self, name: str, pick: int) -> None:
        key = self.pick(pick)
        if held := sorted(throttles.held(self.world, name)):
            key = held[pick % len(held)]
        call = self.store.operations.call('free_slot', int, name, key)
        self.ask(call, lambda: int(throttles.free_slot(self.world, name, key)))

    # -- the end ---------------------------------------------------------------------------------

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
