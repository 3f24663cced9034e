"""What producers do: they publish, with every feature, lose replies, and publish again."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from kombu_reliable.store.limits import Limit
from kombu_reliable.transport.throttles import FAIR_KEY, THROTTLES, take_lane
from kombu_reliable.types import (
    Delivery,
    Dependencies,
    Marks,
    Outgoing,
    Policy,
    Unique,
    Verdict,
)
from tests.model.machine import MOST_JOBS, START, Machine

IDS = ('a', 'b', 'c', 'd', 'e', 'f')

ids = st.sampled_from(IDS)
rarely = st.sampled_from((False, False, False, True))
some_ids = st.lists(ids, min_size=1, max_size=3, unique=True).map(tuple)
lanes = st.sampled_from(('x', 'y'))
picks = st.integers(0, 1) | st.integers(0, 99)
queues = st.sampled_from(Machine.QUEUES)
ranks = st.sampled_from((0, 0, 7, 255))
dues = st.sampled_from(('0', '0', '0', '0', '+10', '+300', '+1500', 'absolute', str(START - 50)))

# All rates allow the same lead over an even pace, so that it does not matter when exactly the
# pace of the last limit is brought down to that of the next.
RATES = (Limit(rate='10/s', burst=1), Limit(rate='20/s', burst=2))
limits = st.sampled_from(
    (Limit(concurrency=1), Limit(concurrency=1), Limit(concurrency=2), Limit(concurrency=0),
     *RATES, replace(RATES[0], concurrency=2), Limit())
)  # fmt: skip
scarce = st.sampled_from((Limit(concurrency=1), Limit(concurrency=2)))
names = st.sampled_from(Machine.THROTTLES[:3])
wants = st.one_of(
    st.dictionaries(names, st.none() | limits, min_size=1, max_size=3),
    st.dictionaries(names, scarce, min_size=1, max_size=2),
    st.dictionaries(names, st.sampled_from(RATES), min_size=1, max_size=1),
)
turns = st.sampled_from((None, None, None, 'ann', 'bob'))


def lane_of(wanted: dict[str, Limit | None], turn: str | None) -> str | None:
    """What the transport makes of the headers."""
    entries = [
        {'name': name}
        if limit is None
        else {
            'name': name, 'concurrency': limit.concurrency, 'rate': limit.rate,
            'burst': limit.burst,
        }
        for name, limit in wanted.items()
    ]  # fmt: skip
    return take_lane({THROTTLES: entries, **({FAIR_KEY: turn} if turn else {})})


lane_texts = st.builds(lane_of, wants, turns)
fair_texts = st.builds(
    lane_of, st.just({}) | st.dictionaries(names, scarce, max_size=1), st.sampled_from(('x', 'y'))
)
policies = st.sampled_from(tuple(Policy))
withins = st.sampled_from((0, 0, 700, 3000))
dependencies = st.builds(
    lambda on, policy, within: Dependencies(on, policy, (within,) * len(on)),
    some_ids, policies, withins,
)  # fmt: skip
uniques = st.builds(
    Unique,
    key=st.sampled_from(Machine.UNIQUE_KEYS),
    life=st.sampled_from((0, 0, 20_000)),
    conflict=st.sampled_from(('skip', 'raise', 'replace', 'replace')),
)
tags = st.lists(st.sampled_from(Machine.TAGS), max_size=2, unique=True).map(tuple)
marks = st.builds(
    Marks,
    tags=tags,
    track=st.sampled_from((None, 'task')),
    retain=st.sampled_from((None, None, 500, 5_000)),
    limit=st.sampled_from((1, 3)),
)
#: Hypothesis would fill in what is not named, for a named tuple.
plain = st.builds(
    lambda *given: Outgoing(*given), ids, queues, ranks, dues, st.sampled_from((b'1', b'two'))
)
at_once = plain.map(lambda one: [one._replace(due='0')])
batches = at_once | st.lists(plain, min_size=1, max_size=3)
#: Most have one feature, some have several.
featured = st.builds(
    Outgoing._replace,
    plain,
    depends=st.none() | dependencies,
    lane=st.none() | lane_texts,
    unique=st.none() | uniques,
    marks=st.none() | marks,
)


def room(machine: Machine) -> bool:
    return len(machine.world.jobs) < MOST_JOBS


def run_of(delivery: Delivery, one: Outgoing) -> Outgoing:
    """The next run of a delivered job."""
    job = delivery.id.rpartition('~')[2]
    return one._replace(id=job, run=(delivery.token, delivery.id))


class Producers(Machine):
    @precondition(room)
    @rule(lane=lanes, batch=batches, lost=rarely)
    def publish_plain(self, lane: str, batch: list[Outgoing], lost: bool) -> None:
        self.publish_next(lane, batch)
        if lost:
            self.publish(lane, *self.calls[lane])

    @precondition(room)
    @rule(lane=lanes, batch=st.lists(plain | featured, min_size=1, max_size=3))
    def publish_featured(self, lane: str, batch: list[Outgoing]) -> None:
        self.publish_next(lane, batch)

    @precondition(room)
    @rule(lane=lanes, message=plain, depends=dependencies)
    def publish_dependent(self, lane: str, message: Outgoing, depends: Dependencies) -> None:
        self.publish_next(lane, [message._replace(depends=depends)])

    @precondition(room)
    @rule(
        lane=lanes, message=plain, text=lane_texts, count=st.integers(1, 3), now=st.booleans()
    )  # fmt: skip
    def publish_throttled(
        self, lane: str, message: Outgoing, text: str, count: int, now: bool
    ) -> None:
        due = '0' if now else message.due
        self.publish_next(lane, [message._replace(lane=text, due=due)] * count)

    @precondition(room)
    @rule(
        lane=lanes, queue=queues, id=ids, name=names, beside=names, rank=ranks,
        limit=st.sampled_from((*RATES, Limit(concurrency=1))), count=st.integers(2, 5),
    )  # fmt: skip
    def publish_side_by_side(
        self, lane: str, queue: str, id: str, name: str, beside: str, rank: int, limit: Limit,
        count: int,
    ) -> None:  # fmt: skip
        """Into two lanes that share a throttle, one after the other."""
        texts = lane_of({name: limit}, None), lane_of({name: limit, beside: None}, None)
        batch = [Outgoing(id, queue, rank, '0', b'1', lane=texts[at % 2]) for at in range(count)]
        self.publish_next(lane, batch)

    @precondition(room)
    @rule(lane=lanes, queue=queues, rank=ranks, id=ids, text=fair_texts, count=st.integers(1, 3))
    def publish_fair(
        self, lane: str, queue: str, rank: int, id: str, text: str, count: int
    ) -> None:
        self.publish_next(lane, [Outgoing(id, queue, rank, '0', b'1', lane=text)] * count)

    @precondition(room)
    @rule(lane=lanes, message=plain, unique=uniques)
    def publish_unique(self, lane: str, message: Outgoing, unique: Unique) -> None:
        self.publish_next(lane, [message._replace(unique=unique)])

    @precondition(room)
    @rule(lane=lanes, message=plain, marks=marks)
    def publish_marked(self, lane: str, message: Outgoing, marks: Marks) -> None:
        self.publish_next(lane, [message._replace(marks=marks)])

    @precondition(lambda self: self.calls)
    @rule(lane=lanes, more=st.just([]) | batches)
    def publish_again(self, lane: str, more: list[Outgoing]) -> None:
        """The reply was lost; or a batch that was stored in part is completed."""
        if lane in self.calls:
            first, last = self.calls[lane]
            more = [one for one in more if one.due != 'absolute' and room(self)]
            self.calls[lane] = first, [*last, *more]
            self.publish(lane, first, [*last, *more])

    @precondition(lambda self: self.held)
    @rule(lane=lanes, message=plain | featured, pick=picks, settled=st.booleans())
    def publish_next_run(self, lane: str, message: Outgoing, pick: int, settled: bool) -> None:
        """What a retry does; then the worker settles the run, unless it dies before."""
        held = self.held[pick % len(self.held)]
        self.publish_next(lane, [run_of(held[1], message)])
        if settled:
            self.held.remove(held)
            self.settle(Verdict.ACK, [held[1]])

    @precondition(lambda self: self.past and room(self))
    @rule(lane=lanes, batch=batches, some=st.lists(picks, min_size=1, max_size=3))
    def publish_next_runs(self, lane: str, batch: list[Outgoing], some: list[int]) -> None:
        """By owners, by former owners, and by both in one call."""
        runs = [self.past[-1 - pick % len(self.past)] for pick in some]
        self.publish_next(lane, [run_of(one, new) for one, new in zip(runs, batch, strict=False)])
