"""Jobs, and what there is besides them.  How one finds them, but nothing that happens to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from kombu_reliable.store.limits import Limit

State = Literal['ready', 'throttled', 'delayed', 'leased', 'waiting', 'failed', 'completed']
STATES: tuple[State, ...] = get_args(State)
#: A job in one of these has not ended.
LIVE: tuple[State, ...] = ('ready', 'throttled', 'delayed', 'leased', 'waiting')
#: A higher rank goes first, inside a rank who came first.
Place = tuple[int, int]
FOREVER = float('inf')


@dataclass(frozen=True)
class Lane:
    """What holds a job back: the throttles that it names, each with its limit if it brings one."""

    digest: str
    wants: dict[str, Limit | None]
    #: Jobs of other lanes have their turn between two of this one.
    fair: bool


@dataclass
class Job:
    key: str
    queue: str
    rank: int
    envelope: bytes
    #: Order of arrival.  A job that comes back keeps its place.
    arrival: int = 0
    state: State = 'ready'
    #: When it is due, when its lease ends, when it died, when it goes.
    at: int = 0
    #: The delivery that holds it; after its lease ended, until somebody else claims the job.
    token: str | None = None
    #: Deliveries that ended without an outcome.
    lost: int = 0
    #: Tokens of earlier runs that ended with the publish of their next run, the newest first.
    past: str = ''
    #: Its owner has said that it must not be delivered again.
    once: bool = False
    #: It was canceled and left to its owner.
    unwanted: bool = False
    lane: Lane | None = None
    #: The throttles of which it has a slot.
    slots: set[str] = field(default_factory=set)
    #: What it waits for, and for whom only because of a unique key.
    unmet: set[str] = field(default_factory=set)
    behind: str = ''
    #: How the work ended for which it is about to make room.
    heir: str = ''
    #: Its unique key, and for how many ms it has it.
    unique: tuple[str, int] | None = None
    tags: list[str] = field(default_factory=list)
    tracked: bool = False
    #: For how many ms it is kept once it has completed, and how many of its queue.
    keep: tuple[int, int] | None = None

    @property
    def place(self) -> Place:
        return -self.rank, self.arrival

    @property
    def id(self) -> str:
        """By what it was published; its key differs if another live job had that."""
        return self.key.split('~', 2)[2] if self.is_twin else self.key

    @property
    def is_twin(self) -> bool:
        return self.key.startswith('~')

    def had_run(self, token: str) -> bool:
        return f'{token};' in self.past


@dataclass
class Edge:
    """A job waits for another one; those with a lower policy hear of its end first."""

    policy: int
    arrival: int


@dataclass
class End:
    """What is still to be told to those who wait for a key."""

    outcome: str
    key: str
    #: Those who waited when it ended, in order; '' for who awaits it, see ``dependencies.await_``.
    dependents: list[tuple[str, int]]


class Arrivals:
    """Numbers in order.  Those who have waited for others draw theirs from a block of the call."""

    def __init__(self) -> None:
        self.last = 0
        self._block: Iterator[int] = iter(())

    def begin_call(self) -> None:
        self._block = iter(())

    def next(self) -> int:
        self.last += 1
        return self.last

    def of_started(self) -> int:
        number = next(self._block, None)
        if number is None:
            first, self.last = self.last + 1, self.last + 16
            number, self._block = first, iter(range(first + 1, self.last + 1))
        return number


@dataclass
class World:
    """What the rules know.  Times are in ms."""

    now: int
    lease: int
    delivery_limit: int
    dead_for: int
    dead_limit: int
    jobs: dict[str, Job] = field(default_factory=dict)
    #: The last number of each publisher.
    numbers: dict[str, int] = field(default_factory=dict)
    arrivals: Arrivals = field(default_factory=Arrivals)
    #: Tokens whose job was taken from them.
    fenced: set[str] = field(default_factory=set)
    #: When a claim or a renewal was last heard, and until when nobody loses a lease.
    seen: int | None = None
    hold: int = 0
    paused: set[str] = field(default_factory=set)
    #: What befell tracked jobs in this step.
    told: list[tuple[str, str]] = field(default_factory=list)
    #: Who waits for a key; keys whose job made room for others; until when what is expected.
    dependents: dict[str, dict[str, Edge]] = field(default_factory=dict)
    awaited: set[str] = field(default_factory=set)
    expected: dict[tuple[str, str], int] = field(default_factory=dict)
    ends: deque[End] = field(default_factory=deque)
    #: Limits that somebody has set, and until when; those that jobs brought with them.
    limits: dict[str, tuple[Limit, float]] = field(default_factory=dict)
    defaults: dict[str, Limit] = field(default_factory=dict)
    #: When the next job would start if all had started at an even pace.
    pace: dict[str, float] = field(default_factory=dict)
    #: The place at which it is the turn of a lane.
    turns: dict[tuple[str, str], Place] = field(default_factory=dict)
    #: Who has a unique key, and until when.
    locks: dict[str, tuple[str, float]] = field(default_factory=dict)
    #: The server's choices, see the package: whom a claim turns to, and what it has left alone.
    turn_to: list[str] = field(default_factory=list)
    still_there: set[str] = field(default_factory=set)

    def those(self, queue: str, *states: State) -> list[Job]:
        """The jobs of a queue in a state, in order: by place, or by time."""
        found = [job for job in self.jobs.values() if job.queue == queue and job.state in states]
        by_place = states[0] in ('ready', 'throttled')
        order: Any = (lambda job: job.place) if by_place else (lambda job: (job.at, job.key))
        return sorted(found, key=order)

    def get(self, key: str, *states: State) -> Job | None:
        job = self.jobs.get(key)
        return job if job is not None and job.state in states else None

    def held_by(self, key: str, token: str) -> Job | None:
        job = self.jobs.get(key)
        return job if job is not None and job.token == token else None

    def newest_twin(self, key: str) -> Job | None:
        twins = [job for job in self.jobs.values() if job.is_twin and job.id == key]
        return max(twins, key=lambda job: int(job.key.split('~')[1]), default=None)

    def tell(self, job: Job, event: str) -> None:
        if job.tracked:
            self.told.append((event, job.key))
