"""What the transport promises, as plain Python: the rules that the Lua scripts must follow.

There is no Redis in here, no sorted set, no alarm and no wake marker, only jobs and rules.
``test_model.py`` drives the model and the scripts with the same calls and compares.
Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from kombu_reliable.store.operations import REFUSED
from kombu_reliable.types import Delivery, Outgoing, Settlement, Status, Verdict

State = Literal['delayed', 'ready', 'leased', 'dead']
HELD, UNHELD, FENCED = Status.DONE, Status.UNHELD, Status.FENCED


@dataclass
class Job:
    key: str
    queue: str
    rank: int
    envelope: bytes
    #: Order of arrival in the ready queue.  A job that comes back keeps its place.
    arrival: int = 0
    state: State = 'ready'
    #: When it becomes ready, when its lease ends, when it died.
    at: int = 0
    #: The delivery that holds it; after its lease ended, until somebody else claims the job.
    token: str | None = None
    #: Deliveries that ended without an outcome.
    lost: int = 0
    #: Tokens of earlier runs that ended with the publish of their next run, the newest first.
    past: str = ''
    #: Its owner has said that it must not be delivered again.
    once: bool = False
    #: Something has befallen it, which is noted with it.
    noted: bool = False

    def had_run(self, token: str) -> bool:
        return f'{token};' in self.past


@dataclass
class Model:
    lease: int
    delivery_limit: int
    dead_for: int
    dead_limit: int
    jobs: dict[str, Job] = field(default_factory=dict)
    lanes: dict[str, int] = field(default_factory=dict)
    arrivals: int = 0
    #: Tokens whose job was taken from them.
    fenced: set[str] = field(default_factory=set)
    #: When a claim or a renewal was last heard, and until when nobody loses a lease.
    seen: int | None = None
    hold: int = 0
    #: In which order a claim turns to the queues.  An alarm may be early, so what falls due in
    #: several queues between two claims becomes ready in an order that the server knows alone.
    alarms: list[str] = field(default_factory=list)

    # -- looking --------------------------------------------------------------------

    def those(self, queue: str, state: State) -> list[Job]:
        """The jobs of a queue in a state, in order."""
        jobs = [job for job in self.jobs.values() if (job.queue, job.state) == (queue, state)]
        if state == 'ready':
            return sorted(jobs, key=lambda job: (-job.rank, job.arrival))
        return sorted(jobs, key=lambda job: (job.at, job.key))

    # -- publishing -----------------------------------------------------------------

    def publish(
        self, now: int, lane: str, first: int, messages: Sequence[Outgoing], keys: Sequence[str]
    ) -> list[str]:
        """Stores what the lane has not stored before; ``keys`` are the server's answer."""
        answer: list[str] = []
        ended: set[str] = set()
        for number, (message, key) in enumerate(zip(messages, keys, strict=True), first):
            if number <= self.lanes.get(lane, -1):
                answer.append('')
                continue
            self.lanes[lane] = number
            if message.run is not None and message.run[0] not in ended:
                if self._end_run(now, message, *message.run):
                    ended.add(message.run[0])
                    answer.append(message.run[1])
                    continue
                if self._may_not_publish(*message.run):
                    answer.append(REFUSED)
                    continue
            answer.append(self._own_key(message.id, key) if message.id in self.jobs else message.id)
            self._store(now, answer[-1], message)
        return answer

    def _end_run(self, now: int, message: Outgoing, token: str, key: str) -> bool:
        """The owner's next run takes the place of this one, in one step."""
        job = self.jobs.get(key)
        if job is None or job.token != token:
            return False
        self._store(now, key, message)
        self.jobs[key].past = f'{token};{job.past}'[:200]
        return True

    def _may_not_publish(self, token: str, key: str) -> bool:
        job = self.jobs.get(key)
        return token in self.fenced or (job is not None and job.had_run(token))

    def _own_key(self, id: str, key: str) -> str:
        """A live id gets a key of its own: which one is the server's choice, if it is free."""
        free = key.startswith('~') and key.endswith(f'~{id}') and key not in self.jobs
        return key if free else f'~?~{id}'

    def _store(self, now: int, key: str, message: Outgoing) -> None:
        job = Job(key, message.queue, message.rank, message.envelope)
        self.jobs[key] = job
        self._arrive(job)
        relative = message.due.startswith('+')
        job.at = now + int(message.due) if relative else int(message.due)
        if job.at > now:
            job.state = 'delayed'

    def _arrive(self, job: Job) -> None:
        self.arrivals += 1
        job.arrival = self.arrivals

    # -- time -----------------------------------------------------------------------

    def _hear(self, now: int) -> None:
        """After a long silence everybody gets one lease of time to come back."""
        if self.seen is not None and now - self.seen > self.lease / 2:
            self.hold = now + self.lease
            self.seen = now
        elif self.seen is None or now - self.seen >= self.lease / 20:
            self.seen = now

    def _let_time_work(self, now: int) -> None:
        for queue in self.alarms:
            for job in self.those(queue, 'delayed'):
                if job.at <= now:
                    job.state = 'ready'
                    self._arrive(job)
            for job in self.those(queue, 'leased'):
                if job.at <= now and now >= self.hold:
                    # and keeps its token, until somebody claims it
                    job.state, job.noted = 'ready', True
            for job in self.those(queue, 'dead'):
                if job.at + self.dead_for <= now:
                    del self.jobs[job.key]

    # -- deliveries -----------------------------------------------------------------

    def claim(
        self, now: int, token: str, credit: int, queues: Sequence[str]
    ) -> tuple[list[Delivery], bool]:
        """The messages leased, and whether claimable ones are left."""
        self._hear(now)
        self._let_time_work(now)
        deliveries: list[Delivery] = []
        for queue in queues:
            for job in self.those(queue, 'ready')[: credit - len(deliveries)]:
                if job.token is not None:
                    job.lost += 1
                    self.fenced.add(job.token)
                if job.once or (self.delivery_limit and job.lost >= self.delivery_limit):
                    self._bury(job, now)
                    continue
                job.state, job.at = 'leased', now + self.lease
                job.token = f'{token}.{len(deliveries) + 1}'
                deliveries.append(Delivery(queue, job.key, job.token, job.lost + 1, job.envelope))
        return deliveries, any(self.those(queue, 'ready') for queue in queues)

    def _status(self, key: str, token: str) -> Status:
        job = self.jobs.get(key)
        if job is not None and (job.token == token or job.had_run(token)):
            return HELD
        taken = job is not None and job.token is not None
        return FENCED if taken or token in self.fenced else UNHELD

    def _holds(self, key: str, token: str) -> bool:
        return key in self.jobs and self.jobs[key].token == token

    def renew(self, now: int, held: Sequence[Delivery]) -> list[Status]:
        self._hear(now)
        answer = []
        for delivery in held:
            answer.append(self._status(delivery.id, delivery.token))
            if self._holds(delivery.id, delivery.token):
                job = self.jobs[delivery.id]
                job.state, job.at = 'leased', now + self.lease
        return answer

    def settle(self, now: int, settlements: Sequence[Settlement]) -> list[Status]:
        answer = []
        for one in settlements:
            answer.append(self._status(one.id, one.token))
            if self._holds(one.id, one.token):
                self._end(self.jobs[one.id], one.verdict, now)
        return answer

    def _end(self, job: Job, verdict: Verdict, now: int) -> None:
        if verdict is Verdict.ONCE:
            job.once = True
            return
        job.token = None
        if verdict in (Verdict.ACK, Verdict.REPLACE, Verdict.CANCEL):
            del self.jobs[job.key]
        elif verdict is Verdict.FAIL:
            self._bury(job, now)
        else:
            job.state, job.once = 'ready', False
            if verdict is Verdict.REQUEUE:
                job.lost, job.noted = job.lost + 1, True

    def _bury(self, job: Job, now: int) -> None:
        job.state, job.at, job.token, job.noted = 'dead', now, None, True
        for oldest in self.those(job.queue, 'dead')[: -self.dead_limit]:
            del self.jobs[oldest.key]

    # -- maintenance ----------------------------------------------------------------

    def purge(self, queue: str) -> int:
        """Deletes the ready jobs; if there are none, the delayed ones."""
        jobs = self.those(queue, 'ready') or self.those(queue, 'delayed')
        for job in jobs:
            del self.jobs[job.key]
        return len(jobs)
