"""Cancel, move, pause and their like: rules of the model, and the steps that compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from kombu_reliable.store.job_operations import JobOperations
from kombu_reliable.types import Delivery
from tests.model import Job, Model, State

if TYPE_CHECKING:
    from kombu_reliable.store import Store

QUEUES = ('q', 'r')
LATER = (-500, 0, 10, 300, 1500)

picks = st.integers(0, 99)
queues = st.sampled_from(QUEUES)


@dataclass
class ActingModel(Model):
    """The model, for somebody who acts on its jobs."""

    paused: set[str] = field(default_factory=set)

    def claim(self, now: int, token: str, credit: int, queues: Any) -> tuple[list[Delivery], bool]:
        return super().claim(now, token, credit, [one for one in queues if one not in self.paused])

    def _disown(self, job: Job) -> None:
        """Taken from an owner that lost its lease and could have come back."""
        if job.token is not None:
            self.fenced.add(job.token)
            job.token = None
            job.lost += 1

    def cancel(self, key: str) -> str:
        job = self.jobs.get(key)
        if job is None or job.state == 'dead':
            return 'unknown' if job is None else 'failed'
        del self.jobs[key]
        if job.token is None:
            return 'gone'
        self.fenced.add(job.token)
        return 'requested'

    def move(self, key: str, queue: str) -> str:
        if refused := self._refused(key, 'leased'):
            return refused
        job = self.jobs[key]
        if job.queue != queue:
            job.queue, job.noted = queue, True
            self._disown(job)
        return 'done'

    def prioritize(self, key: str, rank: int) -> str:
        if refused := self._refused(key, 'leased'):
            return refused
        self.jobs[key].rank = rank
        return 'done'

    def reschedule(self, now: int, key: str, due: int) -> str:
        if refused := self._refused(key, 'leased', 'dead'):
            return refused
        job = self.jobs[key]
        if due > now:
            job.state, job.at, job.noted = 'delayed', due, True
            self._disown(job)
        elif job.state == 'delayed':
            job.state, job.noted = 'ready', True
            self._arrive(job)
        return 'done'

    def replay(self, key: str) -> str:
        if refused := self._refused(key, 'ready', 'delayed', 'leased'):
            return refused
        job = self.jobs[key]
        job.state, job.lost, job.once = 'ready', 0, False
        self._arrive(job)
        return 'done'

    def discard(self, key: str) -> str:
        if refused := self._refused(key, 'ready', 'delayed', 'leased'):
            return refused
        del self.jobs[key]
        return 'done'

    def _refused(self, key: str, *states: State) -> str:
        job = self.jobs.get(key)
        if job is None:
            return 'unknown'
        names = {'dead': 'failed'}
        return names.get(job.state, job.state) if job.state in states else ''

    def empty(self, queue: str, state: State) -> int:
        doomed = self.those(queue, state)
        for job in doomed:
            del self.jobs[job.key]
        return len(doomed)


class Actions:
    """Steps of the machine in ``test_model.py``."""

    store: Store
    model: ActingModel
    client: Any
    now: int

    def _ask(self, name: str, pick: int, *args: Any) -> tuple[str, str]:
        """What the server answers for some job, or for one that is not there."""
        known = [*self.model.jobs, 'unknown']
        key = known[pick % len(known)]
        call = getattr(JobOperations(self.store.operations), name)([key], *args)
        (answer,) = self.store.run(call)
        return key, answer

    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        key, answer = self._ask('cancel', pick, 'why', True)
        assert answer == self.model.cancel(key)

    @rule(pick=picks, queue=queues)
    def move(self, pick: int, queue: str) -> None:
        key, answer = self._ask('move', pick, queue)
        assert answer == self.model.move(key, queue)

    @rule(pick=picks, rank=st.sampled_from((0, 7, 255)))
    def prioritize(self, pick: int, rank: int) -> None:
        key, answer = self._ask('prioritize', pick, rank)
        assert answer == self.model.prioritize(key, rank)

    @rule(pick=picks, later=st.sampled_from(LATER))
    def reschedule(self, pick: int, later: int) -> None:
        key, answer = self._ask('reschedule', pick, self.now + later)
        assert answer == self.model.reschedule(self.now, key, self.now + later)

    @rule(pick=picks)
    def replay(self, pick: int) -> None:
        key, answer = self._ask('replay', pick)
        assert answer == self.model.replay(key)

    @rule(pick=picks)
    def discard(self, pick: int) -> None:
        key, answer = self._ask('discard', pick)
        assert answer == self.model.discard(key)

    @rule(queue=queues, paused=st.booleans())
    def pause_queue(self, queue: str, paused: bool) -> None:
        changed = self.store.run(JobOperations(self.store.operations).pause(queue, paused))
        assert changed == ((queue in self.model.paused) != paused)
        (self.model.paused.add if paused else self.model.paused.discard)(queue)

    @rule(queue=queues, state=st.sampled_from(('ready', 'delayed', 'failed')))
    def empty(self, queue: str, state: str) -> None:
        deleted = self.store.run(JobOperations(self.store.operations).empty(queue, state))
        names: dict[str, State] = {'ready': 'ready', 'delayed': 'delayed', 'failed': 'dead'}
        assert deleted == self.model.empty(queue, names[state])

    # -- what is always true --------------------------------------------------------

    @invariant()
    def what_is_looked_up_is_as_the_model_says(self) -> None:
        keys = sorted(self.model.jobs)
        names = {'dead': 'failed'}
        for key in keys[:2]:
            (state, _, _, queue, *_) = self.store.run(
                JobOperations(self.store.operations).inspect([key])
            )
            job = self.model.jobs[key]
            assert (state.decode(), queue.decode()) == (names.get(job.state, job.state), job.queue)

    @invariant()
    def every_dead_letter_is_in_its_group(self) -> None:
        keys = self.store.keys
        groups = [name.decode() for name in self.client.zrange(keys.groups, 0, -1)]
        members = [
            id.decode() for name in groups for id in self.client.zrange(keys.group(name), 0, -1)
        ]
        dead = [job.key for job in self.model.jobs.values() if job.state == 'dead']
        assert sorted(members) == sorted(dead)

    def explained_by_actions(self) -> Iterator[str]:
        """Keys of what the other steps know nothing of."""
        keys = self.store.keys
        if self.model.paused:
            yield keys.paused
            yield keys.closed
        for job in self.model.jobs.values():
            if job.key.startswith('~'):
                yield keys.twins(job.key.rpartition('~')[2])
        for name in self.client.zrange(keys.groups, 0, -1):
            yield keys.groups
            yield keys.group(name.decode())
