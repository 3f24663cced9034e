"""Cancel, move and reschedule against workers that claim the same jobs at the same moment."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from kombu_reliable.client import connect_client
from kombu_reliable.envelope import pack_id
from kombu_reliable.errors import ReliableError
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.types import Outgoing, Settlement, Status, Verdict
from kombu_reliable.urls import parse_url
from tests.support.servers import Server
from tests.support.wait import wait_for

QUEUES = ('q', 'r')
ROUND = 200
STEP = 4  # jobs that are published, and acted on, at a time
OPTIONS = Options(lease=0.5, delivery_limit=0)


@dataclass
class Story:
    """What everybody was told about a job."""

    #: When each claim was sent that delivered it.
    claimed: list[float] = field(default_factory=list)
    acks: list[Status] = field(default_factory=list)
    #: What a cancel answered, and when its answer had come.
    canceled: list[tuple[str, float]] = field(default_factory=list)


class Race:
    def __init__(self, store: Store, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.stories: dict[str, Story] = {}
        self.round: list[str] = []
        #: At which the publisher and those who act meet, or the workers would always win.
        self.start = threading.Barrier(4)
        self.ended = threading.Event()
        self.refusals: Counter[str] = Counter()
        self._tokens = itertools.count()
        self._numbers = itertools.count(1)

    def publish(self, ids: list[str]) -> None:
        self.stories.update((id, Story()) for id in ids)
        for at in range(0, len(ids), 100):
            messages = [
                Outgoing(
                    pack_id(id),
                    self.random.choice(QUEUES),
                    self.random.choice((0, 5)),
                    self.random.choice(('0', '+3', '+10', '+30')),
                    id.encode(),
                )
                for id in ids[at : at + 100]
            ]
            self.store.run(self.store.operations.publish(f'l{next(self._numbers)}', 1, messages))

    # -- those who race ------------------------------------------------------------

    def work(self, seed: int) -> None:
        """A worker: acks some, gives others back, forgets a few."""
        dice = random.Random(seed)
        operations = self.store.operations
        while not self.ended.is_set():
            sent = time.monotonic()
            token = f't{next(self._tokens)}'
            queues = dice.sample(QUEUES, 2)
            claimed = self.store.run(
                operations.claim(f'w{seed}', token, dice.randint(1, 4), queues)
            )
            for one in claimed.deliveries:
                story = self.stories[one.envelope.decode()]
                story.claimed.append(sent)
                time.sleep(0.004 * dice.random())
                luck = dice.random()
                if luck < 0.01:
                    continue
                verdict = Verdict.ACK
                if luck < 0.7:
                    verdict = Verdict.RELEASE if luck < 0.35 else Verdict.REQUEUE
                settlement = Settlement(verdict, one.queue, one.id, one.token)
                (status,) = self.store.run(operations.settle([settlement]))
                if verdict is Verdict.ACK:
                    story.acks.append(status)
            if not claimed.deliveries:
                time.sleep(0.001)

    def _each(self, seed: int, act: Callable[[str], None]) -> None:
        """Goes along with the publisher, a little out of order."""
        dice = random.Random(seed)
        for at in range(0, ROUND, STEP):
            ids = self.round[at : at + STEP]
            dice.shuffle(ids)
            self.start.wait(60)
            for id in ids:
                try:
                    act(id)
                except ReliableError as error:
                    self.refusals[type(error).__name__] += 1

    def cancel(self, seed: int) -> None:
        def act(id: str) -> None:
            if int(id) % 2:  # the others show that nothing is lost
                answer = self.store.jobs.cancel(id)
                self.stories[id].canceled.append((answer, time.monotonic()))

        self._each(seed, act)

    def move(self, seed: int) -> None:
        dice = random.Random(seed)
        self._each(seed, lambda id: self.store.jobs.move(id, dice.choice(QUEUES)))

    def reschedule(self, seed: int) -> None:
        dice = random.Random(seed)

        def act(id: str) -> None:
            self.store.jobs.reschedule(id, self.store.now() + dice.randint(-5, 30))

        self._each(seed, act)

    # -- those who look ------------------------------------------------------------

    def places(self) -> tuple[Counter[str], set[str]]:
        """How many places each job is in, and those that are there at all, at one moment."""
        keys, jobs = self.store.keys, [pack_id(id) for id in self.round]
        with self.store.client.pipeline(transaction=True) as pipe:
            for queue in QUEUES:
                for key in (keys.ready(queue), keys.delayed(queue), keys.leased(queue)):
                    pipe.zrange(key, 0, -1)
            for job in jobs:
                pipe.exists(keys.job(job))
            replies = pipe.execute()
        spots = len(QUEUES) * 3
        found = Counter(id.decode() for members in replies[:spots] for id in members)
        alive = {job for job, there in zip(jobs, replies[spots:], strict=True) if there}
        return found, alive

    def watch(self) -> None:
        while not self.ended.is_set():
            found, alive = self.places()
            assert set(found) == alive
            assert set(found.values()) <= {1}
            time.sleep(0.01)


@contextlib.contextmanager
def everybody(race: Race) -> Iterator[Callable[[Callable[[int], None]], Future[None]]]:
    """Workers and a watcher in the background; what is yielded starts others."""
    race.ended.clear()
    with ThreadPoolExecutor(8) as pool:
        background = [pool.submit(race.work, seed) for seed in (1, 2)]
        background.append(pool.submit(race.watch))
        try:
            yield lambda act: pool.submit(act, race.random.randrange(10**6))
        finally:
            race.ended.set()
    for future in background:
        future.result()


@pytest.mark.parametrize(
    'races',
    [1_000, pytest.param(10_000, marks=[pytest.mark.matrix, pytest.mark.timeout(600)])],
)
def test_whoever_acts_on_a_job_races_with_those_who_claim_it(
    server: Server, database: int, races: int
) -> None:
    url = parse_url(f'reliable+redis://127.0.0.1:{server.port}/{database}')
    store = Store(connect_client(url, OPTIONS), Operations(Keys(database), OPTIONS))
    store.load_scripts()
    race = Race(store, seed=races)
    for first in range(0, races, ROUND):
        race.round = [str(number) for number in range(first, first + ROUND)]
        with everybody(race) as start:
            actors = [start(act) for act in (race.cancel, race.move, race.reschedule)]
            for at in range(0, ROUND, STEP):
                race.publish(race.round[at : at + STEP])
                race.start.wait(60)
            for actor in actors:
                actor.result()
            wait_for(lambda: not race.places()[1], 60, 'end of all jobs')
    for id, story in race.stories.items():
        check(id, story)
    answers = Counter(answer for story in race.stories.values() for answer, _ in story.canceled)
    assert answers['gone'] > races / 50, 'the cancels came too late to race'
    assert answers['requested'] > races / 100
    assert race.refusals['WrongState'] > races / 50
    assert race.refusals.total() < 2 * races * 0.95, 'most moves came too late to race'
    kinds = (store.keys.job(''), store.keys.extra(''), store.keys.twins(''))
    assert [key for key in store.client.scan_iter() if key.decode().startswith(kinds)] == []


def check(id: str, story: Story) -> None:
    ends = [(answer, at) for answer, at in story.canceled if answer in ('gone', 'requested')]
    done = story.acks.count(Status.DONE)
    assert len(ends) + done == 1, f'job {id} ended {len(ends) + done} times: {story}'
    for _, at in ends:
        late = [sent for sent in story.claimed if sent > at]
        assert not late, f'job {id} was started after it was canceled: {story}'
    assert Status.UNHELD not in story.acks, f'job {id}: {story}'
