"""The server, the proxy, the crew, and what is to be undone later."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import redis

from benchmarks.chaos.crew import PLACES, ROOT, Crew, Member, Place
from benchmarks.chaos.kinds import Kind
from benchmarks.chaos.ledger import EVERYBODY, Ledger, Pen, Tail
from benchmarks.chaos.power import PowerMeter
from benchmarks.chaos.pulse import Pulse
from benchmarks.chaos.server_clock import ServerClock
from benchmarks.chaos.settings import Settings
from tests.support.proxy import Proxy
from tests.support.servers import Server

__all__ = ('World',)

#: A worker that was asked to end has so long, in seconds.
PATIENCE = 60.0

#: How often nobody minds whether another worker is left.
FORLORN = 0.1

#: A place stays empty for so long after a death, in seconds at most.
EMPTY = 1.5


class World:
    """Everything that can be broken.

    Args:
        settings: of the run.
        directory: for the ledger and the logs.
    """

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.settings = settings
        self.ledger = Ledger(directory)
        self.rng = random.Random(settings.seed)
        self.counts: Counter[str] = Counter()
        #: What should not have happened, in words.
        self.surprises: list[str] = []
        self.server_down = False
        self.clock_is_wrong = False
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._stack = ExitStack()
        self._peace = False

    def __enter__(self) -> Self:
        settings, stack = self.settings, self._stack
        self.clock = ServerClock(self.ledger.directory)
        self.server = Server(
            settings.server, appendfsync=settings.appendfsync, maxmemory_policy='noeviction'
        )
        stack.callback(self.server.close)
        self.start_server()
        self.meter = PowerMeter(self.server.directory)
        self.proxy = stack.enter_context(Proxy(('127.0.0.1', self.server.port)))
        self._journal = Pen(self.ledger.troubles)
        self._tail = Tail(self.ledger.ran)
        stack.enter_context(Pulse(lambda: self.server.client(socket_timeout=30), self._note_stall))
        environment = {
            **os.environ,
            'CHAOS_LEDGER': str(self.ledger.directory),
            'CHAOS_OPTIONS': json.dumps(settings.options),
            'CHAOS_EXTENSION': '1' if settings.extension else '',
            'PYTHONPATH': str(ROOT),
        }
        brokers = (settings.url(self.server.port), settings.url(self.proxy.port))
        self.crew = Crew(self.ledger.directory, environment, brokers, self.rng)
        stack.callback(self.crew.close)
        self.workers = [PLACES[n % len(PLACES)] for n in range(settings.workers)]
        self.producers = [self._producer(n) for n in range(settings.producers)]
        for place in (*self.workers, *self.producers):
            self.crew.start(place)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _producer(self, number: int) -> Place:
        rate = self.settings.rate / self.settings.producers
        command = (
            '-m', 'benchmarks.chaos.producers', '--rate', f'{rate:g}',
            '--lease', f'{self.settings.lease:g}',
        )  # fmt: skip
        return Place(f'p{number + 1}', command, behind=number % 2 == 1, processes=False)

    # -- who is there ------------------------------------------------------------

    def ready_workers(self) -> list[Member]:
        """Those that consume."""
        return [one for one in self.crew.there() if one.ready]

    def victims(self) -> list[Member]:
        """Workers that may be taken away.  Mostly somebody is left, or nothing would run: a worker
        takes seconds to start."""
        ready = self.ready_workers()
        if self.rng.random() < FORLORN:
            return [one for one in self.crew.there() if one.place in self.workers]
        return ready if len(ready) > 1 else []

    def living_producers(self) -> list[Member]:
        return [one for one in self.crew.there() if one.place in self.producers]

    def start_server(self) -> None:
        with self.clock.worn():
            self.server.start()
        self.server_down = False

    def client(self) -> redis.Redis:
        """To the server itself, whatever the proxy does."""
        return self.server.client(socket_timeout=5)

    # -- what went wrong ---------------------------------------------------------

    def note(
        self, kind: Kind, begin: float, members: tuple[str, ...] = (EVERYBODY,), pid: int = 0
    ) -> None:
        """Writes down a trouble that is over."""
        self.counts[kind] += 1
        self._journal.write(
            'trouble', kind=kind, begin=begin, end=time.monotonic(), workers=members, pid=pid
        )

    def _note_stall(self, begin: float) -> None:
        if not self.server_down:  # else we know why
            self.note(Kind.STALLED, begin)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), action))

    def ended(self, member: Member) -> None:
        """Somebody was killed; somebody else takes the place after a while."""
        member.process.wait(10)
        member.state = 'ended'
        self._replace(member)

    def _replace(self, member: Member) -> None:
        def start() -> None:
            if not self._peace or member.place in self.workers:
                self.crew.start(member.place)

        self.later(self.rng.uniform(0, EMPTY), start)

    # -- time --------------------------------------------------------------------

    def turn(self) -> None:
        """What is due; who has ended."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        self._welcome()
        self.meter.look()
        self.proxy.clear()
        for member in self.crew.there('up', 'stopping', 'frozen'):
            self._tend(member)

    def _welcome(self) -> None:
        """Workers that have become ready."""
        new = self._tail.new()
        if b'"ready"' not in new:
            return
        names = {json.loads(line)['worker'] for line in new.splitlines() if b'"ready"' in line}
        for member in self.crew.there('up', 'frozen', 'stopping'):
            member.ready = member.ready or member.name in names

    def _tend(self, member: Member) -> None:
        code = member.process.poll()
        if code is None:
            late = time.monotonic() - member.since > PATIENCE
            if member.state == 'stopping' and late and not member.overdue:
                self.surprises.append(f'{member.name} did not end within {PATIENCE:g} s')
                member.overdue = True
                member.signal(signal.SIGKILL)
            return
        if member.state == 'stopping':
            kind = Kind.WORKER_KILLED if member.overdue else Kind.WARM
            self.note(kind, member.since, (member.name,))
        elif member.place in self.producers and self._peace:
            member.state = 'ended'
            return
        else:
            self.surprises.append(f'{member.name} ended by itself, exit code {code}')
        member.state = 'ended'
        self._replace(member)

    def keep_empty(self) -> None:
        """Nobody takes the place of those who end from now on."""
        self.workers = []

    def make_peace(self) -> None:
        """Everything is mended, and nobody publishes any more."""
        self._peace = True
        self.ledger.directory.joinpath('stop').touch()
        with suppress(FileNotFoundError):
            self.ledger.directory.joinpath('brake').unlink()
        while self._later:
            heapq.heappop(self._later)[2]()
        self.proxy.heal()
        with self.client() as client:
            client.config_set('maxmemory', 0)
