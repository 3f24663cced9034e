"""Random graphs of jobs, and a few lines of plain Python that know what must become of them.

Between the steps of the test, claims work through everything that ends have left to do; the
order of that, and its steps, are the subject of ``test_dependencies.py``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import pytest
import redis
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from kombu_reliable.errors import DependencyCycle
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.operations import CYCLE
from kombu_reliable.types import Dependencies, Policy, Verdict
from tests.conftest import START
from tests.test_dependencies import CONSTANT, Graph
from tests.test_model import LONG, _settings

State = Literal['ready', 'delayed', 'leased', 'waiting', 'dead']

IDS = ('a', 'b', 'c', 'd', 'e')
QUEUES = ('q', 'r')
MINUTE = 60_000
OPTIONS = Options(delivery_limit=0, lease=36_000)

ids = st.sampled_from(IDS)
some_ids = st.lists(ids, max_size=3, unique=True)
queues = st.sampled_from(QUEUES)
policies = st.sampled_from(tuple(Policy))
withins = st.sampled_from((0, 0, MINUTE, 5 * MINUTE))
numbers = st.integers(0, 99)


@dataclass
class Edge:
    policy: Policy
    #: When it is too late for the dependency to come.
    deadline: int | None = None


@dataclass
class Job:
    queue: str
    due: int
    state: State = 'waiting'
    unmet: dict[str, Edge] = field(default_factory=dict)


@dataclass
class Rules:
    """What becomes of whom when something ends."""

    now: int = START
    jobs: dict[str, Job] = field(default_factory=dict)
    #: Ids whose job has made room for others.
    awaited: set[str] = field(default_factory=set)

    def those(self, queue: str, state: State) -> set[str]:
        return {id for id, job in self.jobs.items() if (job.queue, job.state) == (queue, state)}

    def leads_to(self, on: list[str], id: str) -> bool:
        """Whether one of ``on`` is the job, or waits for it."""
        return id in on or any(
            self.leads_to(list(self.jobs[one].unmet), id) for one in on if one in self.jobs
        )

    def depend(self, id: str, on: list[str], policy: Policy, within: int) -> None:
        for one in on:
            other = self.jobs.get(one)
            dead = other is not None and other.state == 'dead'
            if (other is not None and not (dead and policy is Policy.IGNORE)) or (
                other is None and (one in self.awaited or within)
            ):
                coming = other is None and one not in self.awaited
                self.jobs[id].unmet[one] = Edge(policy, self.now + within if coming else None)
        for one in on:
            other = self.jobs.get(one)
            if other is not None and other.state == 'dead':
                self.fail_dependents(one)

    def start_if_free(self, id: str) -> None:
        job = self.jobs[id]
        if job.state == 'waiting' and not job.unmet:
            job.state = 'delayed' if job.due > self.now else 'ready'

    def edges_to(self, id: str) -> list[tuple[str, Edge]]:
        return [(one, job.unmet[id]) for one, job in self.jobs.items() if id in job.unmet]

    def meet(self, id: str, dependency: str) -> None:
        del self.jobs[id].unmet[dependency]
        self.start_if_free(id)

    def succeed(self, id: str) -> None:
        self.jobs.pop(id, None)
        self.awaited.discard(id)
        for one, _ in self.edges_to(id):
            self.meet(one, id)

    def bury(self, id: str) -> None:
        self.jobs[id].state = 'dead'
        self.jobs[id].unmet.clear()
        self.fail_dependents(id)

    def fail_dependents(self, id: str) -> None:
        for one, edge in self.edges_to(id):
            if edge.policy is Policy.IGNORE:
                self.meet(one, id)
            elif edge.policy is Policy.FAIL:
                self.bury(one)

    def go(self, gone: set[str]) -> None:
        for id in gone:
            self.jobs.pop(id, None)
        for id in gone:
            for one, edge in self.edges_to(id):
                if edge.policy is Policy.IGNORE:
                    self.meet(one, id)
                else:
                    self.bury(one)

    def let_time_pass(self, ms: int) -> None:
        self.now += ms
        for job in self.jobs.values():
            if job.state == 'delayed' and job.due <= self.now:
                job.state = 'ready'
        for id in list(self.jobs):
            for one, edge in list(self.jobs[id].unmet.items()):
                if edge.deadline is None or edge.deadline > self.now:
                    continue
                edge.deadline = None
                if one in self.jobs or one in self.awaited:
                    continue
                if edge.policy is Policy.IGNORE:
                    self.meet(id, one)
                elif one in self.jobs[id].unmet:
                    self.bury(id)


class Graphs(RuleBasedStateMachine):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        client.flushdb()
        self.graph = Graph(Store(client, Operations(Keys(), OPTIONS, START)))
        self.rules = Rules()

    @rule(
        id=ids, on=some_ids, policy=policies, within=withins, queue=queues,
        due=st.sampled_from((0, 0, MINUTE)),
    )  # fmt: skip
    def publish(
        self, id: str, on: list[str], policy: Policy, within: int, queue: str, due: int
    ) -> None:
        if id in self.rules.jobs:
            return
        answer = self.graph.add(id, on, policy, within, queue, f'+{due}' if due else '0')
        if self.rules.leads_to(on, id):
            assert answer == CYCLE
            return
        assert answer == id
        self.rules.jobs[id] = Job(queue, self.rules.now + due)
        self.rules.depend(id, on, policy, within)
        self.rules.start_if_free(id)

    @precondition(lambda self: self.rules.jobs)
    @rule(number=numbers, on=some_ids, policy=policies, within=withins)
    def add(self, number: int, on: list[str], policy: Policy, within: int) -> None:
        id = sorted(self.rules.jobs)[number % len(self.rules.jobs)]
        depends = Dependencies(tuple(on), policy, (within,) * len(on))
        if not on:
            return
        if self.rules.jobs[id].state != 'waiting':
            assert not self.graph.edges.add(id, depends)
        elif self.rules.leads_to(on, id):
            with pytest.raises(DependencyCycle):
                self.graph.edges.add(id, depends)
        else:
            assert self.graph.edges.add(id, depends)
            self.rules.depend(id, on, policy, within)

    @precondition(lambda self: self.rules.jobs)
    @rule(number=numbers, on=some_ids)
    def remove(self, number: int, on: list[str]) -> None:
        id = sorted(self.rules.jobs)[number % len(self.rules.jobs)]
        unmet = self.rules.jobs[id].unmet
        wanted = [one for one in on if one in unmet]
        assert self.graph.edges.remove(id, on) == len(wanted)
        for one in wanted:
            del unmet[one]
        if wanted:
            self.rules.start_if_free(id)

    @rule(queue=queues, count=st.integers(1, 3))
    def claim(self, queue: str, count: int) -> None:
        for id in self.graph.start(count, queue).split():
            assert self.rules.jobs[id].state == 'ready', id
            self.rules.jobs[id].state = 'leased'

    @precondition(lambda self: self.graph.held)
    @rule(
        number=numbers, verdict=st.sampled_from([v for v in Verdict if v is not Verdict.ONCE]),
        twice=st.booleans(),
    )  # fmt: skip
    def end(self, number: int, verdict: Verdict, twice: bool) -> None:
        id = sorted(self.graph.held)[number % len(self.graph.held)]
        held = self.graph.held[id]
        self.graph.end(id, verdict)
        if twice:
            self.graph.settle(verdict, held)
        if verdict is Verdict.ACK:
            self.rules.succeed(id)
        elif verdict is Verdict.CANCEL:
            self.rules.awaited.discard(id)
            self.rules.go({id})
        elif verdict is Verdict.FAIL:
            self.rules.bury(id)
        elif verdict is Verdict.REPLACE:
            del self.rules.jobs[id]
            self.rules.awaited.add(id)
        else:
            self.rules.jobs[id].state = 'ready'

    @rule(queue=queues)
    def replay(self, queue: str) -> None:
        for id in sorted(self.rules.those(queue, 'dead')):
            (job,) = self.graph.store.jobs.look([id])
            self.graph.store.jobs.replay(job)
            self.rules.jobs[id].state = 'ready'

    @rule(queue=queues)
    def purge(self, queue: str) -> None:
        gone = {one for state in get_args(State)[:2] for one in self.rules.those(queue, state)}
        gone |= self.rules.those(queue, 'waiting')
        assert self.graph.store.purge(queue) == len(gone)
        self.rules.awaited -= gone
        self.rules.go(gone)

    @rule(minutes=st.sampled_from((1, 2, 6)))
    def wait(self, minutes: int) -> None:
        self.graph.live(minutes * MINUTE)
        self.rules.let_time_pass(minutes * MINUTE)

    @invariant()
    def redis_is_as_the_rules_say(self) -> None:
        keys, client = self.graph.keys, self.graph.client
        for _ in range(20):
            self.graph.attend()
            if not client.exists(keys.releases):
                break
        spell = {
            'ready': keys.ready, 'delayed': keys.delayed, 'leased': keys.leased,
            'waiting': keys.waiting, 'dead': keys.dead,
        }  # fmt: skip
        for queue in QUEUES:
            for state in get_args(State):
                found = {id.decode() for id in client.zrange(spell[state](queue), 0, -1)}
                assert found == self.rules.those(queue, state), (queue, state)
            if self.rules.those(queue, 'ready'):
                assert self.graph.marked(queue)
        wanted = set(self.rules.awaited)
        for id, job in self.rules.jobs.items():
            assert self.graph.edges.unmet(id) == sorted(job.unmet)
            wanted.update(job.unmet)
        assert {id.decode() for id in client.smembers(keys.wanted)} == wanted

    def teardown(self) -> None:
        """Once all jobs are gone nothing is left."""
        for queue in QUEUES:
            self.purge(queue)
            self.redis_is_as_the_rules_say()
            self.replay(queue)
            self.purge(queue)
        while self.graph.held:
            self.end(0, Verdict.ACK, False)
        for _ in range(3):
            self.redis_is_as_the_rules_say()
            for queue in QUEUES:
                self.replay(queue)
                self.purge(queue)
        for id in sorted(self.rules.awaited):
            self.publish(id, [], Policy.WAIT, 0, 'q', 0)
        self.claim('q', 10)
        while self.graph.held:
            self.end(0, Verdict.ACK, False)
        self.redis_is_as_the_rules_say()
        assert not self.rules.jobs
        assert not self.graph.left() - CONSTANT - {'groups'}


@pytest.mark.timeout(0 if LONG else 600)
def test_dependencies_follow_the_rules(client: redis.Redis, backend: Any, request: Any) -> None:
    if backend is None and not os.environ.get('KR_MODEL_STEPS'):
        pytest.skip('the same scripts, much slower')
    run_state_machine_as_test(
        lambda: Graphs(client), settings=_settings(request.config, fake=False)
    )
