"""One run: production under troubles, then peace, then the verdict."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos.kinds import WORKER_KILLS, Kind
from benchmarks.chaos.ledger import Tail
from benchmarks.chaos.remains import Broker, broker_of
from benchmarks.chaos.settings import Settings
from benchmarks.chaos.troubles import Deck
from benchmarks.chaos.verdict import Verdict, judge
from benchmarks.chaos.world import World

__all__ = ('Outcome', 'run')

#: Producers wait while so many tasks have not ended.
BRAKE = 2000

#: Seconds between two looks at the clock, and between two lines of progress.
TURN, PROGRESS = 0.03, 5.0

#: The first tasks have ended within so long, in seconds, or nothing works at all.
START = 60.0


@dataclass
class Outcome:
    """What came of a run.

    Args:
        settings: of it.
        verdict: from the ledger.
        seconds: until the last task had ended.
        draining: how long it took after the last publish.
        left: jobs that have not ended.
        leaks: keys that should not be there.
        surprises: what else should not have happened.
        orphans: processes of killed workers that did not end.
    """

    settings: Settings
    verdict: Verdict
    seconds: float
    draining: float
    left: dict[str, int] = field(default_factory=dict)
    leaks: list[str] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    orphans: int = 0

    @property
    def faults(self) -> dict[str, int]:
        """What should be nothing."""
        return {
            **self.verdict.faults,
            'jobs that did not end': sum(self.left.values()),
            'keys left over': len(self.leaks),
            'surprises': len(self.surprises),
            'orphans that stay': self.orphans,
        }

    @property
    def good(self) -> bool:
        return not any(self.faults.values())


class Tally:
    """Counts lines of the ledger as they come, without reading them."""

    def __init__(self, path: Path, word: bytes) -> None:
        self._tail, self._word = Tail(path), word
        self.count = 0

    def look(self) -> int:
        self.count += self._tail.new().count(self._word)
        return self.count


class Storm:
    """Lets things go wrong until enough has."""

    def __init__(self, world: World, say: Callable[[str], None]) -> None:
        self._world = world
        self._say = say
        self._stored = Tally(world.ledger.submitted, b'"event": "stored"')
        self._done = Tally(world.ledger.ran, b'"how": "done"')
        self._begun = time.monotonic()
        self._shown = self._begun
        self._brake = world.ledger.directory / 'brake'

    def produce(self) -> None:
        """Until as many tasks, kills and seconds have passed as were asked for."""
        world, settings = self._world, self._world.settings
        deck, calm = Deck(random.Random(settings.seed)), time.monotonic() + START
        due = None
        while not self._enough():
            world.turn()
            stored, done = self._stored.look(), self._done.look()
            self._brake_if(stored - done > BRAKE)
            now = time.monotonic()
            if due is None:
                if done:
                    due = now
                elif now > calm:
                    raise SystemExit(f'nothing runs; see the logs in {world.ledger.directory}')
            elif now >= due:
                deck.draw()(world)
                due = now + world.rng.expovariate(1 / settings.pace)
            self._progress()
            time.sleep(TURN)

    def _brake_if(self, needed: bool) -> None:
        if needed:
            self._brake.touch()
        else:
            self._brake.unlink(missing_ok=True)

    def _kills(self) -> tuple[int, int]:
        counts = self._world.counts
        servers = counts[Kind.SERVER_KILLED] + counts[Kind.POWER_LOST]
        return sum(counts[kind] for kind in WORKER_KILLS), servers

    def _share(self) -> float:
        """How much of what was asked for is there."""
        settings, (workers, servers) = self._world.settings, self._kills()
        return min(
            (time.monotonic() - self._begun) / settings.seconds if settings.seconds else 1.0,
            self._stored.count / settings.tasks if settings.tasks else 1.0,
            workers / settings.kills if settings.kills else 1.0,
            servers / settings.server_kills if settings.server_kills else 1.0,
        )

    def _enough(self) -> bool:
        return self._share() >= 1.0

    def _progress(self) -> None:
        now = time.monotonic()
        if now - self._shown < PROGRESS:
            return
        self._shown = now
        workers, servers = self._kills()
        passed, share = now - self._begun, self._share()
        left = f'about {passed / share - passed:.0f} s left' if share > 0.01 else ''
        self._say(
            f'[{passed:5.0f} s] stored {self._stored.count:,}, done {self._done.count:,}; '
            f'{sum(self._world.counts.values())} troubles, of which {workers} kills of workers '
            f'and {servers} of the server; {left}'
        )

    def drain(self, broker: Broker) -> dict[str, int]:
        """Until nothing waits, or nothing moves any more; returns what waits."""
        world = self._world
        world.make_peace()
        patience = 3 * world.settings.lease + 30
        moved, count = time.monotonic(), -1
        while True:
            world.turn()
            now = time.monotonic()
            if self._done.look() != count:
                moved, count = now, self._done.count
            producing = [one for one in world.crew.there() if one.place in world.producers]
            waiting = broker.waiting()
            if not producing and not waiting and not world.crew.there('stopping', 'frozen'):
                return {}
            if now - moved > patience:
                return waiting
            if now - self._shown > PROGRESS:
                self._shown = now
                self._say(f'[{now - self._begun:5.0f} s] peace; still there: {waiting}')
            time.sleep(0.2)

    def disband(self) -> None:
        """Workers end in order; who does not is killed, and that is told."""
        world = self._world
        for member in world.crew.there():
            member.state, member.since = 'stopping', time.monotonic()
            member.process.terminate()
        world.keep_empty()
        while world.crew.there('up', 'stopping', 'frozen'):
            world.turn()
            time.sleep(0.05)


def run(settings: Settings, directory: Path, say: Callable[[str], None]) -> Outcome:
    """Runs the chaos and judges it.

    Args:
        settings: of it.
        directory: for the ledger and the logs; empty.
        say: is told how it goes.
    """
    with World(settings, directory) as world:
        storm = Storm(world, say)
        begun = time.monotonic()
        storm.produce()
        peace = time.monotonic()
        with broker_of(world) as broker:
            left = storm.drain(broker)
            drained = time.monotonic()
            say(f'[{drained - begun:5.0f} s] drained; what is left in the server?')
            dead = broker.dead()
            broker.clear()
            storm.disband()
            leaks = broker.leaks()
        orphans = len(list(world.crew.leftovers()))
        surprises = world.surprises
    say('reading the ledger')
    submissions, runs, troubles = world.ledger.read()
    durable = settings.appendfsync == 'always'
    verdict = judge(submissions, runs, troubles, dead, settings.lease, durable)
    return Outcome(
        settings, verdict, drained - begun, drained - peace, left, leaks, surprises, orphans
    )
