"""What throttles do, in plain Python: the rules, without lanes, tickets or alarms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kombu_reliable.store.limits import DEFAULT_BURST, Limit, interval
from kombu_reliable.types import Delivery, Status, Verdict

State = Literal['ready', 'throttled', 'delayed', 'leased', 'dead']


@dataclass
class Job:
    """A job; ``at`` is its due time, or the end of its lease."""

    key: str
    queue: str
    rank: int
    arrival: int
    wants: dict[str, Limit | None]
    state: State
    at: int = 0
    #: Of the last owner, until somebody else claims it.
    token: str | None = None
    #: The throttles of which it has a slot.
    slots: set[str] = field(default_factory=set)

    @property
    def place(self) -> tuple[int, int]:
        return -self.rank, self.arrival

    @property
    def lane(self) -> tuple[str, frozenset[str]]:
        return self.queue, frozenset(self.wants)


@dataclass
class Set:
    """What somebody has set, and until when."""

    limit: Limit
    until: float


class ThrottleModel:
    """Jobs, and the throttles that they name.

    Args:
        lease: in ms.
    """

    def __init__(self, lease: int) -> None:
        self.lease = lease
        self.now = 0
        self.jobs: dict[str, Job] = {}
        self.arrivals = 0
        self.defaults: dict[str, Limit] = {}
        self.set: dict[str, Set] = {}
        #: When the next job would start if all had started at an even pace.
        self.pace: dict[str, float] = {}
        self.seen: int | None = None
        self.hold = 0

    # -- looking --------------------------------------------------------------------

    def those(self, queue: str, state: State) -> list[Job]:
        """The jobs of a queue in a state, by place, delayed and leased ones by time."""
        found = [job for job in self.jobs.values() if (job.queue, job.state) == (queue, state)]
        timed = state in ('delayed', 'leased')
        return sorted(found, key=lambda job: (job.at, job.key) if timed else job.place)

    def held(self, name: str) -> set[str]:
        return {job.key for job in self.jobs.values() if name in job.slots}

    def pending(self, name: str) -> set[str]:
        return {
            job.key for job in self.jobs.values() if job.state == 'throttled' and name in job.wants
        }

    def is_set(self, name: str) -> bool:
        return name in self.set and self.set[name].until > self.now

    def limit(self, name: str) -> Limit:
        return self.set[name].limit if self.is_set(name) else self.defaults.get(name, Limit())

    def full(self, name: str) -> bool:
        limit = self.limit(name)
        most = 0 if limit.stopped else limit.concurrency
        return most is not None and len(self.held(name)) >= most

    def next_token(self, name: str) -> float:
        """When the rate of a throttle lets the next job start."""
        limit = self.limit(name)
        if limit.rate is None or limit.stopped:
            return self.now
        between, burst = interval(limit.rate), limit.burst or DEFAULT_BURST
        pace = max(self.now, self.pace.get(name, self.now))
        return max(self.now, math.ceil(pace - (burst - 1) * between))

    def has_room(self, name: str) -> bool:
        return not self.full(name) and self.next_token(name) <= self.now

    def startable(self, job: Job) -> bool:
        return all(map(self.has_room, job.wants))

    # -- how jobs come and go -----------------------------------------------------------

    def arrive(self) -> int:
        self.arrivals += 1
        return self.arrivals

    def enter(self, job: Job, published: bool = False) -> None:
        """It could start if its throttles let it."""
        alone = not any(
            other.lane == job.lane and other.state == 'throttled' and other is not job
            for other in self.jobs.values()
        ) and job.state != 'throttled'  # fmt: skip
        job.state = 'throttled' if job.wants else 'ready'
        for name, limit in job.wants.items():
            known = name in self.defaults
            if limit is not None and (published or (alone and not known)):
                self.defaults[name] = limit

    def publish(
        self,
        key: str,
        queue: str,
        rank: int,
        delay: int,
        wants: dict[str, Limit | None],
        said: bool = True,
    ) -> None:
        """``said``: with its wants; what a next run keeps of the run before is no news."""
        job = Job(key, queue, rank, self.arrive(), wants, 'delayed', self.now + delay)
        self.jobs[key] = job
        if not delay:
            self.enter(job, published=said)

    def tidy(self) -> None:
        """A throttle that nobody uses is forgotten."""
        for name in list(self.defaults):
            if not self.held(name) and not self.pending(name) and name not in self.set:
                del self.defaults[name]

    def hear(self) -> None:
        if self.seen is not None and self.now - self.seen > self.lease / 2:
            self.hold = self.now + self.lease
            self.seen = self.now
        elif self.seen is None or self.now - self.seen >= self.lease / 20:
            self.seen = self.now

    def let_time_work(self, queues: Iterable[str]) -> None:
        for queue in queues:
            for job in self.those(queue, 'delayed'):
                if job.at <= self.now:
                    job.arrival = self.arrive()
                    self.enter(job)
            for job in self.those(queue, 'leased') if self.now >= self.hold else []:
                if job.at <= self.now:
                    self.enter(job)
                    job.slots.clear()
        for name in [name for name, one in self.set.items() if one.until <= self.now]:
            del self.set[name]

    def claim(self, token: str, credit: int, idle: int, queues: Sequence[str]) -> list[str]:
        """Returns the keys of the jobs in the order in which they are delivered."""
        delivered: list[str] = []
        for queue in queues:
            while len(delivered) < credit:
                found = self.those(queue, 'ready')
                if len(delivered) < idle:
                    found += [job for job in self.those(queue, 'throttled') if self.startable(job)]
                if not found:
                    break
                job = min(found, key=lambda job: job.place)
                delivered.append(job.key)
                self._start(job, f'{token}.{len(delivered)}')
        return delivered

    def _start(self, job: Job, token: str) -> None:
        job.state, job.token, job.at = 'leased', token, self.now + self.lease
        job.slots = set(job.wants)
        for name in job.wants:
            limit = self.limit(name)
            if limit.rate is not None and not limit.stopped:
                pace = max(self.now, self.pace.get(name, self.now))
                self.pace[name] = pace + interval(limit.rate)

    def settle(self, verdict: Verdict, delivery: Delivery) -> Status:
        job = self.jobs.get(delivery.id)
        if job is None or job.token is None:
            return Status.UNHELD
        if job.token != delivery.token:
            return Status.FENCED
        job.token = None
        if verdict is Verdict.ACK:
            del self.jobs[job.key]
        elif verdict is Verdict.FAIL:
            job.state = 'dead'
        else:
            self.enter(job)
        job.slots.clear()
        return Status.DONE

    def renew(self, delivery: Delivery) -> Status:
        job = self.jobs.get(delivery.id)
        if job is None or job.token is None:
            return Status.UNHELD
        if job.token != delivery.token:
            return Status.FENCED
        if job.state == 'throttled':
            job.slots = set(job.wants)
        job.state, job.at = 'leased', self.now + self.lease
        return Status.DONE
