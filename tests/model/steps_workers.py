"""What workers do: claim, renew, settle, and die; and time passes."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kombu_reliable.store.job_operations import JobOperations
from kombu_reliable.types import Verdict
from tests.model import unique
from tests.model.machine import Machine, settlement
from tests.model.steps_producers import picks, queues, rarely

workers = st.sampled_from(Machine.WORKERS)
credits_ = st.integers(0, 4)
idles = st.sampled_from((0, 1, 2, 100, 100, 100))
queue_lists = st.lists(queues, min_size=1, max_size=2, unique=True)
verdicts = st.sampled_from((*Verdict, Verdict.ACK, Verdict.ACK, Verdict.FAIL))
some = st.lists(picks, min_size=1, max_size=3)
pauses = st.sampled_from((0, 10, 20, 30, 50, 100, 200, 490, 500, 510, 1000, 2500, 13_000))


class Workers(Machine):
    @rule(worker=workers, credit=credits_, asked=queue_lists, idle=idles)
    def claim_some(self, worker: str, credit: int, asked: list[str], idle: int) -> None:
        self.claim(worker, credit, asked, idle=idle)

    @rule(worker=workers, twice=st.integers(0, 3))
    def claim_all(self, worker: str, twice: int) -> None:
        """Twice if the first reply was lost: what it leased is nobody's, and comes back."""
        count = len(self.held)
        self.claim(worker, 6, list(self.QUEUES))
        if twice == 3:
            del self.held[count:]
            self.claim(worker, 6, list(self.QUEUES), token=f't{self.tokens}')

    @precondition(lambda self: self.past)
    @rule(
        worker=workers, credit=credits_, asked=queue_lists, idle=idles, numbers=some,
        ways=st.lists(verdicts, min_size=3, max_size=3), pick=picks,
    )  # fmt: skip
    def settle_and_claim(
        self, worker: str, credit: int, asked: list[str], idle: int, numbers: list[int],
        ways: list[Verdict], pick: int,
    ) -> None:  # fmt: skip
        """What a busy worker does: ends some deliveries, old ones too, and takes others."""
        ended = [self.past[-1 - number % len(self.past)] for number in numbers]
        if self.held:
            ended[0] = self.held.pop(pick % len(self.held))[1]
        batch = [settlement(way, one) for one, way in zip(ended, ways, strict=False)]
        self.claim(worker, credit, asked, batch, idle)

    @rule(queue=queues, worker=workers, credit=credits_, dies=st.booleans())
    def ring(self, queue: str, worker: str, credit: int, dies: bool) -> None:
        """A sleeper pops the marker, and claims, unless it dies just then."""
        if self.client.zpopmin(self.keys.wake(queue)):
            self.popped.add(queue)
            self._snapshot = None
            self.redis_is_as_the_rules_say()
            if not dies:
                self.claim(worker, credit, list(self.QUEUES))

    @precondition(lambda self: self.held)
    @rule(worker=workers)
    def renew_all(self, worker: str) -> None:
        """What a keeper does: all of one worker's messages, if there are any."""
        if mine := [delivery for owner, delivery in self.held if owner == worker]:
            self.renew(mine)

    @precondition(lambda self: self.held)
    @rule(verdict=verdicts, pick=picks)
    def settle_one(self, verdict: Verdict, pick: int) -> None:
        _, delivery = self.held.pop(pick % len(self.held))
        self.settle(verdict, [delivery])

    @precondition(lambda self: self.past)
    @rule(verdict=st.none() | verdicts, numbers=some, lost=rarely)
    def come_late(self, verdict: Verdict | None, numbers: list[int], lost: bool) -> None:
        """Settles or renews what was settled, taken over by others, or, with luck, still held."""
        if lost:
            self.lose_leases()
        stale = [self.past[-1 - number % len(self.past)] for number in numbers]
        if verdict is None:
            self.renew(stale)
        else:
            self.settle(verdict, stale)

    @precondition(lambda self: self.held)
    @rule(worker=workers, crash=st.booleans())
    def leave(self, worker: str, crash: bool) -> None:
        """A worker shuts down in order, or dies."""
        if not crash:
            self.settle(Verdict.RELEASE, [one for owner, one in self.held if owner == worker])
        self.held = [(owner, delivery) for owner, delivery in self.held if owner != worker]

    @precondition(lambda self: any(job.unique for job in self.world.jobs.values()) and self.past)
    @rule(pick=picks)
    def start_unique(self, pick: int) -> None:
        """The run of a job begins that has its unique key only until then."""
        one = self.past[-1 - pick % len(self.past)]
        call = JobOperations(self.store.operations).unlock(one.id, one.token)
        self._snapshot = None
        assert (self.store.run(call) > 0) == unique.unlock(self.world, one.id, one.token)

    @precondition(lambda self: self.history)
    @rule(pick=picks)
    def replay_call(self, pick: int) -> None:
        """The very same call arrives again: its reply was lost, or the network held it back."""
        self.history[-1 - pick % len(self.history)]()

    # -- time -----------------------------------------------------------------------------------

    @rule(ms=pauses)
    def wait(self, ms: int) -> None:
        """Nobody is heard; for more than half a lease, that is silence."""
        self.let_pass(ms)

    @rule(count=st.integers(1, 4), worker=workers, others=workers)
    def live_on(self, count: int, worker: str, others: str) -> None:
        """Time passes while a full worker lives, and another one renews: leases end."""
        for _ in range(count):
            self.let_pass(400)
            self.claim(worker, 0, ['q'])
            if mine := [delivery for owner, delivery in self.held if owner == others]:
                self.renew(mine)
            self.redis_is_as_the_rules_say()

    @precondition(lambda self: any(self.told.values()))
    @rule(worker=workers, late=st.sampled_from((0, 0, 10, 30)), credit=credits_, asked=queue_lists)
    def wake(self, worker: str, late: int, credit: int, asked: list[str]) -> None:
        """A worker claims when it was told to, or a little later."""
        if moment := self.told.get(worker):
            self.let_pass(max(0, round(moment) + late - self.now))
            self.claim(worker, credit, asked)
