"""All that there is in Redis, read at once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import redis

from kombu_reliable.keys import FAMILIES, Keys
from tests.model.world import STATES, State

#: How keys of a family are read; what stands here is a sorted set, if nothing else is said.
_HASHES = {'META', 'OWNERS', 'LANE_INFO', 'LIMITS'}
_SETS = {'UNMET', 'WANTED', 'TWINS', 'PAUSED', 'CLOSED', 'LIMITED', 'THROTTLES'}
_STRINGS = {'UNIQUE'}
#: Only whether they are there matters.
_UNREAD = {'JOB', 'EXTRA', 'RATES', 'RELEASES', 'EVENTS', 'PRODUCERS', 'WAKE'}
_BY_SPELLING = {spelling.rstrip(':'): family for family, spelling in FAMILIES.items()}


class Snapshot:
    """What was there.

    Args:
        client: of a database that holds nothing else.
        keys: where the shard lives.
        events: the id of the last event that is known.
    """

    def __init__(self, client: redis.Redis, keys: Keys, events: str) -> None:
        any_client: Any = client
        self._keys = keys
        self.names = {name.decode() for name in any_client.keys('*')}
        prefix = len(keys.meta) - len(FAMILIES['META'])
        read: list[str] = []
        with client.pipeline(transaction=False) as pipe:
            for name in self.names:
                family = _BY_SPELLING[name[prefix:].partition(':')[0]]
                if family in _UNREAD:
                    continue
                read.append(name)
                if family in _HASHES:
                    pipe.hgetall(name)
                elif family in _SETS:
                    pipe.smembers(name)
                elif family in _STRINGS:
                    pipe.get(name)
                else:
                    pipe.zrange(name, 0, -1, withscores=True)
            pipe.xrange(keys.events, f'({events}')
            *found, self._events = pipe.execute()
        self._values: dict[str, Any] = dict(zip(read, found, strict=True))

    @property
    def now_told(self) -> list[tuple[str, str, str]]:
        """The id, the name and the job of events since the last snapshot."""
        return [
            (number.decode(), fields[b'e'].decode(), fields[b'j'].decode())
            for number, fields in self._events
        ]

    def scores(self, key: str) -> dict[str, float]:
        """The members of a sorted set, in order."""
        return {member.decode(): score for member, score in self._values.get(key, ())}

    def members(self, key: str) -> list[str]:
        return [member.decode() for member, _ in self._values.get(key, ())]

    def set(self, key: str) -> set[str]:
        return {member.decode() for member in self._values.get(key, ())}

    def fields(self, key: str) -> dict[str, str]:
        found = self._values.get(key, {})
        return {name.decode(): value.decode() for name, value in found.items()}

    def text(self, key: str) -> str:
        return bytes(self._values.get(key, b'')).decode()

    def place(self, queue: str, state: State) -> str:
        keys = self._keys
        spell = {
            'ready': keys.ready, 'throttled': keys.throttled, 'delayed': keys.delayed,
            'leased': keys.leased, 'waiting': keys.waiting, 'failed': keys.dead,
            'completed': keys.completed,
        }  # fmt: skip
        return spell[state](queue)

    @cached_property
    def alarms(self) -> dict[str, float]:
        return self.scores(self._keys.alarms)

    @cached_property
    def tokens(self) -> dict[str, str]:
        return {id: text.split(';')[0] for id, text in self.fields(self._keys.owners).items()}

    def is_marked(self, queue: str) -> bool:
        return self._keys.wake(queue) in self.names

    def waiting_to_start(self, queue: str) -> set[str]:
        """Those that a claim could look at, or has left alone."""
        found = (self.members(self.place(queue, state)) for state in STATES[:2])
        return {key for keys in found for key in keys}
