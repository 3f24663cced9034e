"""The one place where a Redis key is spelled.

All keys of a shard stand behind one hash tag, ``{kr:<db>:<shard>}``, so that a
Redis Cluster keeps them on one node.  Python code asks :class:`Keys`; Lua code
writes the names of :data:`FAMILIES` (``READY .. queue``), which
:mod:`kombu_reliable.scripts` declares at the top of each script from this very
table.  ``docs/redis-keys.md`` describes what each key holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from kombu_reliable.errors import InvalidOption

__all__ = ('FAMILIES', 'LAYOUT', 'Keys')

#: Version of the data layout.  Data of another version is refused, never guessed at.
LAYOUT = '1'

#: Name in Lua -> what follows the shard's prefix.  Those that end in ``:`` take a name.
FAMILIES: dict[str, str] = {
    'META': 'meta',
    'JOB': 'j:',
    'EXTRA': 'x:',
    'READY': 'r:',
    'DELAYED': 'd:',
    'LEASED': 'l:',
    'DEAD': 'f:',
    'WAITING': 'wt:',
    'DEPENDENTS': 'dep:',
    'UNMET': 'up:',
    'WANTED': 'deps',
    'RELEASES': 'rel',
    'EXPECTED': 'exp',
    'OWNERS': 'own',
    'ALARMS': 'alarm',
    'FENCED': 'fenced',
    'WAKE': 'w:',
    'PRODUCERS': 'pub',
    'BINDINGS': 'b:',
    'FANOUT': 's:',
    'LISTENERS': 'sub:',
    'QUEUES': 'queues',
    'LIFE': 'q:',
    'ATTENDANCE': 'qc:',
    'BOUND': 'qb:',
    'TWINS': 'same:',
    'PAUSED': 'paused',
    'CLOSED': 'closed',
    'LIMITED': 'limited',
    'THROTTLED': 'tq:',
    'TICKETS': 'rt:',
    'LANE': 'n:',
    'LANE_INFO': 'nl:',
    'THROTTLES': 'throttles',
    'THROTTLE_ALARMS': 'tdue',
    'LIMITS': 't:',
    'HELD': 'th:',
    'PENDING': 'tw:',
    'PARKED': 'tp:',
    'PARKED_LANES': 'tpl:',
    'RATES': 'tat:',
    'NOTICED': 'noticed',
    'GROUP': 'fg:',
    'GROUPS': 'groups',
    'COMPLETED': 'c:',
    'TAG': 'tag:',
    'TAGS': 'tags',
    'TRACKED': 'tracked',
    'EVENTS': 'ev',
}


@dataclass(frozen=True, slots=True)
class Keys:
    """Spells the keys of one shard.

    Args:
        db: number of the Redis database; part of the hash tag because a cluster has only one.
        prefix: the ``global_keyprefix`` option; stands in front of the hash tag.
        shard: number of the shard inside the database.

    Example:
        >>> Keys(db=0).ready('celery')
        '{kr:0:0}:r:celery'
    """

    db: int = 0
    prefix: str = ''
    shard: int = 0

    def __post_init__(self) -> None:
        if '{' in self.prefix or '}' in self.prefix:
            raise InvalidOption(
                f'global_keyprefix {self.prefix!r} contains a brace; '
                'braces mark the hash tag behind it, choose other characters'
            )

    def _key(self, family: str, name: str = '') -> str:
        return f'{self.prefix}{{kr:{self.db}:{self.shard}}}:{FAMILIES[family]}{name}'

    @property
    def meta(self) -> str:
        return self._key('META')

    @property
    def owners(self) -> str:
        return self._key('OWNERS')

    @property
    def alarms(self) -> str:
        return self._key('ALARMS')

    @property
    def fenced(self) -> str:
        return self._key('FENCED')

    @property
    def wanted(self) -> str:
        return self._key('WANTED')

    @property
    def releases(self) -> str:
        return self._key('RELEASES')

    @property
    def expected(self) -> str:
        return self._key('EXPECTED')

    @property
    def producers(self) -> str:
        return self._key('PRODUCERS')

    @property
    def queues(self) -> str:
        return self._key('QUEUES')

    def job(self, job: str) -> str:
        return self._key('JOB', job)

    def extra(self, job: str) -> str:
        return self._key('EXTRA', job)

    def ready(self, queue: str) -> str:
        return self._key('READY', queue)

    def delayed(self, queue: str) -> str:
        return self._key('DELAYED', queue)

    def leased(self, queue: str) -> str:
        return self._key('LEASED', queue)

    def dead(self, queue: str) -> str:
        return self._key('DEAD', queue)

    def waiting(self, queue: str) -> str:
        return self._key('WAITING', queue)

    def dependents(self, job: str) -> str:
        return self._key('DEPENDENTS', job)

    def unmet(self, job: str) -> str:
        return self._key('UNMET', job)

    def wake(self, queue: str) -> str:
        return self._key('WAKE', queue)

    def bindings(self, exchange: str) -> str:
        return self._key('BINDINGS', exchange)

    def fanout(self, exchange: str) -> str:
        return self._key('FANOUT', exchange)

    def listeners(self, exchange: str) -> str:
        return self._key('LISTENERS', exchange)

    def life(self, queue: str) -> str:
        return self._key('LIFE', queue)

    def attendance(self, queue: str) -> str:
        return self._key('ATTENDANCE', queue)

    def bound(self, queue: str) -> str:
        return self._key('BOUND', queue)

    def twins(self, job: str) -> str:
        return self._key('TWINS', job)

    @property
    def paused(self) -> str:
        return self._key('PAUSED')

    @property
    def closed(self) -> str:
        return self._key('CLOSED')

    @property
    def limited(self) -> str:
        return self._key('LIMITED')

    def throttled(self, queue: str) -> str:
        return self._key('THROTTLED', queue)

    def tickets(self, queue: str) -> str:
        return self._key('TICKETS', queue)

    def lane(self, lane: str) -> str:
        return self._key('LANE', lane)

    def lane_info(self, lane: str) -> str:
        return self._key('LANE_INFO', lane)

    @property
    def throttles(self) -> str:
        return self._key('THROTTLES')

    @property
    def throttle_alarms(self) -> str:
        return self._key('THROTTLE_ALARMS')

    def limits(self, throttle: str) -> str:
        return self._key('LIMITS', throttle)

    def held(self, throttle: str) -> str:
        return self._key('HELD', throttle)

    def pending(self, throttle: str) -> str:
        return self._key('PENDING', throttle)

    def parked(self, throttle: str) -> str:
        return self._key('PARKED', throttle)

    def parked_lanes(self, throttle: str, queue: str) -> str:
        return self._key('PARKED_LANES', f'{len(throttle.encode())}:{throttle}{queue}')

    def rates(self, throttle: str) -> str:
        return self._key('RATES', throttle)

    @property
    def noticed(self) -> str:
        return self._key('NOTICED')

    def group(self, group: str) -> str:
        return self._key('GROUP', group)

    @property
    def groups(self) -> str:
        return self._key('GROUPS')

    def completed(self, queue: str) -> str:
        return self._key('COMPLETED', queue)

    def tag(self, tag: str) -> str:
        return self._key('TAG', tag)

    @property
    def tags(self) -> str:
        return self._key('TAGS')

    @property
    def tracked(self) -> str:
        return self._key('TRACKED')

    @property
    def events(self) -> str:
        return self._key('EVENTS')
