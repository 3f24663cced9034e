"""Arguments that make no sense are refused before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kombu_reliable.errors import InvalidArgument
from kombu_reliable.store.info import STATES

__all__ = ('MOST_TAGS', 'moment', 'page', 'priority', 'purgeable', 'queue_name', 'state', 'tags')

#: What the head of a record can say, see lua/lib/record.lua.
LONGEST_QUEUE_NAME = 9_999

#: Each tag of a job is an entry in a set, at its beginning and at its end.
MOST_TAGS = 50
LONGEST_TAG = 255

#: Later times would not be exact.
LAST_MOMENT = 2**52

PURGEABLE = tuple(name for name in STATES if name != 'leased')


def _number(value: Any) -> float | None:
    """A finite number in any of its types; a flag is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if -LAST_MOMENT <= value <= LAST_MOMENT else None


def priority(value: Any) -> int:
    number = _number(value)
    if number is None or number != int(number) or not 0 <= number <= 255:
        raise InvalidArgument(f'priority {value!r:.100} is not a whole number from 0 to 255')
    return int(number)


def moment(value: Any) -> int:
    """A time in whole milliseconds since the epoch."""
    number = _number(value)
    if number is None:
        raise InvalidArgument(f'{value!r:.100} is not a time in milliseconds since the epoch')
    return max(0, int(number))


def state(value: Any) -> str:
    if value not in STATES:
        raise InvalidArgument(f'there is no state {value!r}; there are {", ".join(STATES)}')
    return str(value)


def purgeable(states: Iterable[str]) -> list[str]:
    chosen = [states] if isinstance(states, str) else list(states)
    for name in chosen:
        if name not in PURGEABLE:
            raise InvalidArgument(
                f'jobs in state {name!r} cannot be purged, only {", ".join(PURGEABLE)}; '
                'cancel those that a worker holds one by one'
            )
    return chosen


def page(offset: Any, limit: Any) -> None:
    for name, value in (('offset', offset), ('limit', limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgument(f'{name}={value!r} must be a whole number, 0 or more')


def queue_name(value: Any) -> str:
    try:
        length = len(value.encode()) if isinstance(value, str) else 0
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= LONGEST_QUEUE_NAME:
        raise InvalidArgument(
            f'a queue has a name of 1 to {LONGEST_QUEUE_NAME} bytes, not {value!r:.100}'
        )
    return str(value)


def tags(given: Any) -> tuple[str, ...]:
    """Tags as they are stored, each once, in the order in which they were given."""
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, list | tuple | set | frozenset):
        raise InvalidArgument(f'tags are a list of texts, not {given!r:.100}')
    found = tuple(dict.fromkeys(_tag(one) for one in given))
    if len(found) > MOST_TAGS:
        raise InvalidArgument(
            f'{len(found)} tags are too many for a job, which may have {MOST_TAGS}; what differs '
            f'in each job had better be an argument'
        )
    return found


def _tag(one: Any) -> str:
    try:
        length = len(one.encode()) if isinstance(one, str) else 0
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= LONGEST_TAG:
        raise InvalidArgument(f'a tag is a text of 1 to {LONGEST_TAG} bytes, not {one!r:.100}')
    return str(one)
