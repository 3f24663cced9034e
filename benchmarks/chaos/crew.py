"""The processes that come and go: workers, and those who publish."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.chaos.settings import QUEUES

__all__ = ('PLACES', 'Crew', 'Member', 'Place', 'worker_place')

ROOT = Path(__file__).parents[2]

State = Literal['up', 'frozen', 'stopping', 'ended']


@dataclass(frozen=True)
class Place:
    """One of the workers, or of the producers, whoever has the place at the moment."""

    name: str
    command: tuple[str, ...]
    #: Whether it reaches the server through the proxy.
    behind: bool = False
    clock: str = ''
    #: Whether its pool has processes that can be killed.
    processes: bool = True


def worker_place(name: str, pool: str, slots: int, behind: bool = False, clock: str = '') -> Place:
    processes = pool == 'prefork'
    queues = QUEUES if processes else QUEUES[:1]
    command = (
        '-m', 'celery', '-A', 'benchmarks.chaos.app', 'worker', '-l', 'INFO',
        '-P', pool, '-c', str(slots), '-Q', ','.join(queues),
    )  # fmt: skip
    return Place(name, command, behind, clock, processes)


PLACES = (
    worker_place('w1', 'prefork', 3),
    worker_place('w2', 'prefork', 2, behind=True),
    worker_place('w3', 'threads', 8),
    worker_place('w4', 'prefork', 2, clock='steps'),
    worker_place('w5', 'prefork', 4, behind=True),
    worker_place('w6', 'prefork', 2, clock='ahead'),
)


@dataclass
class Member:
    """One incarnation of a worker or a producer."""

    place: Place
    name: str
    process: subprocess.Popen[bytes]
    log: Path
    state: State = 'up'
    #: A worker that consumes.
    ready: bool = False
    #: When it was asked to end, and whether it had to be killed for taking too long.
    since: float = 0.0
    overdue: bool = False

    @property
    def lives(self) -> bool:
        return self.state != 'ended'

    def signal(self, number: signal.Signals, *, group: bool = True) -> None:
        """To its whole process group, or to the main process alone."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def children(self) -> list[int]:
        """The processes of its pool."""
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(self.process.pid).children()]
        return []


class Crew:
    """Starts members in places, and knows who is there.

    Args:
        directory: of the ledger; logs go there as well.
        environment: of all of them.
        brokers: the URL of the server, and the one through the proxy.
        rng: chooses seeds for producers.
    """

    def __init__(
        self,
        directory: Path,
        environment: dict[str, str],
        brokers: tuple[str, str],
        rng: random.Random,
    ) -> None:
        self._directory = directory
        self._environment = environment
        self._brokers = brokers
        self._rng = rng
        self._numbers: dict[str, int] = {}
        #: Everybody who was ever there.
        self.members: list[Member] = []

    def start(self, place: Place) -> Member:
        number = self._numbers[place.name] = self._numbers.get(place.name, 0) + 1
        name = f'{place.name}.{number}'
        log = self._directory / f'{name}.log'
        command = [sys.executable, *place.command]
        if 'celery' in command:
            command += ['-n', f'{name}@chaos']
        else:
            command += ['--seed', str(self._rng.random())]
        environment = {
            **self._environment,
            'CHAOS_BROKER': self._brokers[place.behind],
            'CHAOS_WORKER': name,
            'CHAOS_CLOCK': place.clock,
        }
        with log.open('wb') as output:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        member = Member(place, name, process, log)
        self.members.append(member)
        return member

    def there(self, *states: State) -> list[Member]:
        return [one for one in self.members if one.state in (states or ('up',))]

    def leftovers(self) -> Iterator[psutil.Process]:
        """Processes of members that have ended.  A number may be somebody else's by now, so
        whoever is counted has our surroundings."""
        groups = {one.process.pid for one in self.members if not one.lives}
        mark = str(self._directory)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(process.pid) in groups and (
                    process.environ().get('CHAOS_LEDGER') == mark
                ):
                    yield process

    def close(self) -> None:
        """Ends everybody."""
        for member in self.members:
            if member.process.poll() is None:
                member.signal(signal.SIGKILL)
                member.process.wait(10)
            member.state = 'ended'
        for process in self.leftovers():
            with contextlib.suppress(psutil.Error):
                process.kill()
