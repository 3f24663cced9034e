"""What is left in the server: dead letters, work that nobody did, and keys."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from celery import Celery

import celery_ext
from benchmarks.chaos.settings import QUEUES
from benchmarks.chaos.verdict import Death
from benchmarks.chaos.world import World

__all__ = ('Broker', 'Kombu', 'Ours', 'broker_of')

#: What docs/redis-keys.md says stays behind, as families of keys.
CONSTANTS = frozenset(
    ['meta', 'pub', 'alarm', 'queues', 'fenced', 'noticed', 'b:', 'st:', 'std:', 'workers',
     'about', 'declarers']
)  # fmt: skip

#: What expires by itself within this many seconds is no leak.
EXPIRY = 120
#: What claims clear away has so long, in seconds: queues for replies live for ten.
CLEARING = 40.0


class Broker(Protocol):
    """How to ask a broker what it holds."""

    def waiting(self) -> dict[str, int]:
        """Jobs that have not ended, by state; nothing if there are none."""

    def dead(self) -> dict[str, Death]:
        """The dead letters, by task id."""

    def clear(self) -> None:
        """Forgets the dead letters."""

    def leaks(self) -> list[str]:
        """Keys that should not be there when the work is done."""


class Ours:
    """With the extension."""

    def __init__(self, world: World) -> None:
        settings = world.settings
        self._world = world
        app = Celery('judge', broker=settings.url(world.server.port))
        app.conf.broker_transport_options = settings.options
        self._app = app
        self._ext = celery_ext.install(app)

    def waiting(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name in QUEUES:
            counts = self._ext.queues[name].counts()
            for state in ('ready', 'delayed', 'leased', 'throttled', 'waiting'):
                if count := getattr(counts, state):
                    found[state] = found.get(state, 0) + count
        return found

    def dead(self) -> dict[str, Death]:
        return {
            job.id: Death(job.failure.reason, job.failure.message or '')
            if job.failure
            else Death('unknown')
            for job in self._ext.dead
        }

    def clear(self) -> None:
        for group in list(self._ext.dead.groups(limit=1000)):
            self._ext.dead.discard_group(group.name)

    def leaks(self) -> list[str]:
        deadline = time.monotonic() + CLEARING
        with self._app.connection_for_read() as connection:
            # Claims clear away what has come to its end, and nobody else claims any more.
            channel = connection.default_channel
            while (left := self._leaks()) and time.monotonic() < deadline:
                channel.basic_get(QUEUES[0])
                time.sleep(0.5)
        return left

    def _leaks(self) -> list[str]:
        with self._world.client() as client:
            found: Iterator[bytes] = client.scan_iter(count=1000)
            keys = [key for key in found if _family(key.decode()) not in CONSTANTS]
            lives = {key.decode(): client.ttl(key) for key in keys}
        # -1: for ever; -2: gone meanwhile.
        return sorted(key for key, life in lives.items() if life == -1 or life > EXPIRY)


def _family(key: str) -> str:
    name = key.partition('}:')[2]
    head, colon, _ = name.partition(':')
    return head + colon


class Kombu:
    """kombu's own redis transport: lists, and a hash of what was not acknowledged."""

    def __init__(self, world: World) -> None:
        self._world = world

    def waiting(self) -> dict[str, int]:
        with self._world.client() as client:
            lists: Any = [client.llen(name) for name in QUEUES]
            found = {'ready': sum(lists), 'unacked': int(client.hlen('unacked'))}
        return {state: count for state, count in found.items() if count}

    def dead(self) -> dict[str, Death]:
        return {}

    def clear(self) -> None:
        """There are none."""

    def leaks(self) -> list[str]:
        return []


@contextmanager
def broker_of(world: World) -> Iterator[Broker]:
    if world.settings.extension:
        ours = Ours(world)
        try:
            yield ours
        finally:
            ours._app.close()
    else:
        yield Kombu(world)
