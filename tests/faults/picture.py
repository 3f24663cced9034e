"""What a database holds, without what differs from run to run: to be compared as a whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from kombu_reliable.keys import FAMILIES
from tests.faults.world import World

__all__ = ('differences', 'picture', 'scrub', 'without')

Picture = dict[str, list[Any]]

#: Families that may differ: numbers of publishers, hints to wake up, tokens of lost runs, and
#: names that are told to those who list queues.
LEFT_OUT = ('pub', 'alarm', 'w:', 'fenced', 'noticed')

#: Fields of ``meta`` that may differ: counters of what faults cause, and the clock's.
META_LEFT_OUT = frozenset(
    {'seq', 'seen', 'keeper', 'deputy', 'hold', 'routes', 'fenced', 'expired', 'events'}
)

#: Fields of schedules that are times or count attempts.
OTHERS_LEFT_OUT = {'sch:': frozenset({'rev', 'at', 'due'})}

#: Where the order is what it is about.
IN_ORDER = ('r:', 'rt:', 'tq:', 'n:')

_SCRUBBED = (
    (re.compile(r"""envelope=b('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""), 'envelope'),
    (re.compile(r'[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}'), '<id>'),
    (re.compile(r'\d{4}-\d\d-\d\d[T ][\d:.+Z-]+'), '<time>'),
    (re.compile(r'datetime\.datetime\([^)]*(?:\([^)]*\))?[^)]*\)'), '<time>'),
    (re.compile(r'\d{10,}(?:[.-]\d+)?'), '#'),
    (re.compile(r'~\d+~'), '~#~'),
    (re.compile(r'(?<![\w-])[\w-]{22}(?![\w-])'), '<id>'),
    (re.compile(r'0x[0-9a-f]+'), '<address>'),
    (re.compile(r'\bt#(\.\d+)?'), '<token>'),
    (re.compile(r'\{kr:\d+:\d+\}:'), ''),
    (re.compile(r'faults-\d+'), 'app'),
    (re.compile(r'127\.0\.0\.1:\d+(/\d+)?'), 'server'),
)


def scrub(text: str | bytes) -> str:
    """A text without times, random names and addresses."""
    found = text if isinstance(text, str) else text.decode(errors='replace')
    for pattern, instead in _SCRUBBED:
        found = pattern.sub(instead, found)
    return found


def picture(world: World, but: Iterable[str] = ()) -> Picture:
    """All that is stored.

    Args:
        world: whose database it is.
        but: families that are left out.
    """
    client = world.client
    found: Picture = {}
    for key in sorted(client.keys()):
        name = key.decode(errors='replace')
        short = name.partition('}:')[2] if '}:' in name else name
        if _is_of(short, (*LEFT_OUT, *but)):
            continue
        content = _content(client, key, short)
        if content:
            # Jobs with random ids have the same name here.
            found.setdefault(scrub(short), []).append(content)
    return {name: sorted(contents, key=repr) for name, contents in found.items()}


def _is_of(short: str, families: Iterable[str]) -> bool:
    assert all(one in FAMILIES.values() for one in families), families
    return any(
        short.startswith(family) if family.endswith(':') else short == family for family in families
    )


def _content(client: redis.Redis, key: bytes, short: str) -> Any:
    reader: Any = client
    match reader.type(key):
        case b'string':
            return _text(short, reader.get(key))
        case b'hash':
            return _fields(short, reader.hgetall(key))
        case b'set':
            return sorted(map(scrub, reader.smembers(key)))
        case b'list':
            return [scrub(item) for item in reader.lrange(key, 0, -1)]
        case b'stream':
            return [_event(fields) for _, fields in reader.xrange(key)]
        case b'zset':
            return _members(short, reader.zrange(key, 0, -1, withscores=True))
    return None  # it has gone meanwhile


def _text(short: str, value: bytes | None) -> Any:
    if value is None:
        return None
    if short.startswith('j:'):
        # The envelope is packed, and holds times; that it is a message is told elsewhere.
        length = int(value[17:21])
        return value[1:4].decode(), value[21 : 21 + length].decode()
    return scrub(value)


def _fields(short: str, fields: Mapping[bytes, bytes]) -> dict[str, str]:
    if short == 'own':
        return {scrub(job): 'held' for job in fields}
    left_out: Iterable[str] = META_LEFT_OUT if short == 'meta' else ()
    for family, names in OTHERS_LEFT_OUT.items():
        if short.startswith(family):
            left_out = names
    return {
        scrub(name): scrub(value)
        for name, value in sorted(fields.items())
        if name.decode(errors='replace') not in left_out
    }


def _event(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    # The body of a fanout message is packed.
    return {name.decode(): scrub(value) for name, value in fields.items() if name != b'm'}


def _members(short: str, members: list[tuple[bytes, float]]) -> list[Any]:
    if short == 'tags':
        return sorted((tag.decode(), count) for tag, count in members)
    if short.startswith('sub:'):
        return sorted(name.decode().partition(':')[2] for name, _ in members)
    names = [scrub(name) for name, _ in members]
    return names if _is_of(short, IN_ORDER) else sorted(names)


def without(whole: Picture, families: Iterable[str]) -> Picture:
    """A picture without some families."""
    chosen = tuple(families)
    return {name: content for name, content in whole.items() if not _is_of(name, chosen)}


def differences(one: Picture, other: Picture) -> str:
    """For people: where two pictures differ."""
    lines = [
        f'{name}: {one.get(name)!r} -> {other.get(name)!r}'
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]
    return '\n'.join(lines)
