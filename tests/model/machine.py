"""Makes the same calls of the scripts and of the rules, and compares what they answer.

Producers, workers and operators are in the ``steps_*`` files; here is what they share.  Each method
that calls a script notes itself, so that the very same call can be sent again at any later time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import redis
from hypothesis.stateful import RuleBasedStateMachine, invariant

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.scripts import Sources, packaged
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.job_operations import JobOperations
from kombu_reliable.types import Claimed, Delivery, Outgoing, Settlement, Verdict
from tests.model import invariants, leases, publishing
from tests.model.snapshot import Snapshot
from tests.model.world import Job, State, World

START = 1_700_000_000_000
LEASE = 1000
# All times are multiples of 10 ms but for this one: whether something goes at the very
# millisecond of its retention or at the next is nobody's promise.
DEAD_FOR = 12_345
OPTIONS = Options(
    lease=LEASE / 1000, delivery_limit=3, failed_retention=DEAD_FOR / 1000, failed_limit=2
)
#: More would only cost time, and some steps of the scripts are bounded.
MOST_JOBS = 24


class Machine(RuleBasedStateMachine):
    """What all steps use."""

    QUEUES = ('q', 'r')
    WORKERS = ('ann', 'bob', 'cid')
    TAGS = ('red', 'blue')
    UNIQUE_KEYS = ('one', 'zwei\0\U0001f600')
    THROTTLES = ('T', 'U', 'V', 'queue:q')

    def __init__(self, client: redis.Redis, sources: Sources = packaged) -> None:
        super().__init__()
        client.flushdb()
        self.client = client
        self.keys = Keys()
        self.store = Store(client, Operations(self.keys, OPTIONS, START, sources))
        self.world = World(START, LEASE, OPTIONS.delivery_limit, DEAD_FOR, OPTIONS.failed_limit)
        #: Per publisher the last call: number of the first message, and the messages.
        self.calls: dict[str, tuple[int, list[Outgoing]]] = {}
        #: What the workers hold, as they believe, and every delivery that there ever was.
        self.held: list[tuple[str, Delivery]] = []
        self.past: list[Delivery] = []
        #: When each worker was told to claim again, and queues whose marker somebody has popped.
        self.told: dict[str, float | None] = {}
        self.popped: set[str] = set()
        self.tokens = 0
        #: Every call so far.
        self.history: list[Callable[[], Any]] = []
        self._event = '0-0'
        self._snapshot: Snapshot | None = None

    # -- time -----------------------------------------------------------------------------------

    @property
    def now(self) -> int:
        return self.world.now

    def let_pass(self, ms: int) -> None:
        self.world.now += ms
        self.store.operations.now = self.world.now

    def dues(self, queue: str) -> list[int]:
        """When delays and leases of a queue end."""
        dues = [job.at for job in self.world.those(queue, 'delayed')]
        dues += [max(job.at, self.world.hold) for job in self.world.those(queue, 'leased')]
        return dues

    # -- calls ------------------------------------------------------------------------------------

    @property
    def jobs(self) -> JobOperations:
        return JobOperations(self.store.operations)

    def run(self, call: Any, again: Callable[[], Any]) -> Any:
        """Sends a call, and remembers how the same can be done again."""
        self._snapshot = None
        self.history.append(again)
        return self.store.run(call)

    def look(self) -> Snapshot:
        if self._snapshot is None:
            self._snapshot = Snapshot(self.client, self.keys, self._event)
        return self._snapshot

    def pick(self, number: int) -> str:
        """The key of some job, or of one that is not there; the rare ones first."""
        jobs = sorted(self.world.jobs.values(), key=_how_common)
        known = [*(job.key for job in jobs), 'unknown']
        return known[number % len(known)]

    def publish(self, lane: str, first: int, batch: Sequence[Outgoing]) -> tuple[str, ...]:
        call = self.store.operations.publish(lane, first, batch)
        answer: tuple[str, ...] = self.run(call, lambda: self.publish(lane, first, batch))
        expected = publishing.publish(self.world, lane, first, batch, answer)
        assert list(answer) == expected
        return answer

    def publish_next(self, lane: str, batch: Sequence[Outgoing]) -> tuple[str, ...]:
        absolute = str(self.now + 400)
        batch = [one._replace(due=absolute) if one.due == 'absolute' else one for one in batch]
        first, last = self.calls.get(lane, (0, []))
        self.calls[lane] = first + len(last), list(batch)
        return self.publish(lane, first + len(last), batch)

    def claim(
        self, worker: str, credit: int, queues: list[str], settlements: Sequence[Settlement] = (),
        idle: int = 100, token: str = '',
    ) -> Claimed:  # fmt: skip
        if not token:
            self.tokens += 1
            token = f't{self.tokens}'
        found: Any = self.client.zrange(self.keys.alarms, '-inf', self.now, byscore=True)  # type: ignore[call-overload]
        self.world.turn_to = [name.decode() for name in found]
        call = self.store.operations.claim(worker, token, credit, queues, settlements, idle)
        self._snapshot = None  # a claim is never sent again later: its token is its own
        answer: Claimed = self.store.run(call)
        assert not answer.problem
        self.popped.difference_update(queues)
        look = self.look()
        self.world.still_there = {
            key for queue in self.QUEUES for key in look.waiting_to_start(queue)
        }
        statuses, deliveries = leases.claim(self.world, token, credit, queues, settlements, idle)
        assert list(answer.statuses) == statuses
        assert list(answer.deliveries) == deliveries
        self._what_is_left_is_said(answer, queues, credit, idle)
        self.past += answer.deliveries
        self.held += [(worker, one) for one in answer.deliveries]
        if worker:
            wake_in = answer.wake_in
            self.told[worker] = None if wake_in is None else self.now + wake_in * 1000
        return answer

    def _what_is_left_is_said(
        self, answer: Claimed, queues: list[str], credit: int, idle: int
    ) -> None:
        """A marker that a claim leaves means work, and so does its answer."""
        look, left, kept = self.look(), False, False
        to_release = look.alarms.get('', self.now + 1) <= self.now
        for queue in queues:
            work = {
                self.keys.ready(queue) in look.names, self.keys.tickets(queue) in look.names
            }  # fmt: skip
            closed = queue in look.set(self.keys.closed)
            marked = look.is_marked(queue)
            assert marked == (not closed and any(work)) or (marked and to_release), queue
            left = left or (not closed and self.keys.ready(queue) in look.names)
            kept = kept or (not closed and any(work))
        if idle >= credit and not answer.kept:
            assert left <= answer.left <= kept

    def lose_leases(self) -> None:
        """Time passes, and nobody renews."""
        for _ in range(3):
            self.let_pass(400)
            self.claim('cid', 0, ['q'])
            self.redis_is_as_the_rules_say()

    def renew(self, held: Sequence[Delivery]) -> None:
        triples = [(one.queue, one.id, one.token) for one in held]
        call = self.store.operations.renew(triples)
        answer = self.run(call, lambda: self.renew(held))
        assert list(answer) == leases.renew(self.world, held)

    def settle(self, verdict: Verdict, deliveries: Sequence[Delivery]) -> None:
        self.settle_all([settlement(verdict, one) for one in deliveries])

    def settle_all(self, batch: Sequence[Settlement]) -> None:
        call = self.store.operations.settle(batch)
        answer = self.run(call, lambda: self.settle_all(batch))
        assert list(answer) == leases.settle(self.world, batch)

    def act(self, name: str, key: str, *args: Any, expect: Callable[[], str]) -> str:
        """An operation that answers one word for a job."""
        call = getattr(self.jobs, name)([key], *args)
        (answer,) = self.run(call, lambda: self.act(name, key, *args, expect=expect))
        self.world.arrivals.begin_call()
        assert answer == expect(), (name, key)
        return str(answer)

    def ask(self, call: Any, expect: Callable[[], Any]) -> Any:
        """A call that answers a number or a flag."""
        call = call._replace(now=str(self.now))
        answer = self.run(call, lambda: self.ask(call, expect))
        self.world.arrivals.begin_call()
        assert answer == expect()
        return answer

    # -- what is always true --------------------------------------------------------------------

    @invariant()
    def redis_is_as_the_rules_say(self) -> None:
        found = self.look()
        invariants.check(self, found)
        self._what_befell_jobs_was_told(found)

    def _what_befell_jobs_was_told(self, found: Snapshot) -> None:
        """Each once.  That a throttle holds a job back is told when somebody notices."""
        told = sorted((name, key) for _, name, key in found.now_told if name != 'throttled')
        assert told == sorted(self.world.told)
        if found.now_told:
            self._event = found.now_told[-1][0]
            self._snapshot = None
        self.world.told.clear()

    # -- the end ---------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self._finish()
        finally:
            del self.store  # gives its connection back; this object lives until it is collected
            self.history.clear()

    def _finish(self) -> None:
        """Overridden by who knows how to end everything."""


def _how_common(job: Job) -> int:
    if job.token is not None and job.state != 'leased':
        return 0
    common: tuple[State, ...] = ('failed', 'waiting', 'completed', 'throttled')
    return common.index(job.state) if job.state in common else len(common)


def settlement(verdict: Verdict, one: Delivery) -> Settlement:
    return Settlement(verdict, one.queue, one.id, one.token, 'why')
