"""Reads from a message's headers which key it shares with no other job."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

from kombu_reliable.errors import InvalidMessage
from kombu_reliable.types import Unique

__all__ = ('CONFLICT', 'FOR', 'KEY', 'UNTIL', 'frees_at_start', 'only_one', 'take_unique')

#: Of the jobs that are published with the same key, there is one at a time.
KEY = 'x-unique-key'
#: How long after the publish, in ms; without it, until the job has ended.
FOR = 'x-unique-for'
#: What becomes of a new job if another one has the key: ``skip`` (the default), ``raise``,
#: ``replace``.
CONFLICT = 'x-on-conflict'
#: ``done`` (the default), or ``start``: until its run begins.
UNTIL = 'x-unique-until'

CONFLICTS = ('skip', 'raise', 'replace')
UNTILS = ('done', 'start')
LONGEST_LIFE = 2**52  # ms

#: A longer key is kept as its beginning and a digest, in bytes.
LONGEST_KEY = 300
KEPT = 200


def take_unique(headers: dict[str, Any]) -> Unique | None:
    """The key of a message, if it has one; it is taken out of the headers.

    That the key is free from the start of the run stays there: whoever starts it must know.

    Raises:
        InvalidMessage: these headers make no sense.
    """
    if KEY not in headers and FOR not in headers and CONFLICT not in headers:
        return None
    key, life = headers.pop(KEY, None), headers.pop(FOR, None)
    conflict, until = headers.pop(CONFLICT, None), headers.pop(UNTIL, None)
    _choice(UNTIL, until, UNTILS)
    _choice(CONFLICT, conflict, CONFLICTS)
    if key is None:
        raise InvalidMessage(f'{FOR} and {CONFLICT} say nothing without {KEY}')
    if until == 'start':
        headers[UNTIL] = until
    return Unique(_key(key), _life(life), conflict or 'skip')


def only_one(items: Iterable[Any]) -> None:
    """Refuses a message that its routing makes into several jobs, each in the way of the next.

    Raises:
        InvalidMessage: it has a unique key.
    """
    for one in items:
        if one.unique is not None:
            raise InvalidMessage(
                f'a message with {KEY} goes to several queues; give each queue a routing key of '
                f'its own'
            )


def frees_at_start(headers: Any) -> bool:
    """Whether the run of a message frees its key when it begins."""
    return bool(headers) and headers.get(UNTIL) == 'start'


def _choice(header: str, value: Any, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InvalidMessage(f'{header} {value!r} is none of {", ".join(known)}')


def _key(key: Any) -> str:
    if not isinstance(key, str) or not key:
        raise InvalidMessage(f'{KEY} {key!r} is no text')
    try:
        packed = key.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(f'half a character in {KEY}') from None
    if len(packed) <= LONGEST_KEY:
        return key
    return packed[:KEPT].decode(errors='ignore') + '...' + hashlib.sha256(packed).hexdigest()


def _life(milliseconds: Any) -> int:
    if milliseconds is None:
        return 0
    valid = isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool)
    if not valid or not math.isfinite(milliseconds) or not 0 < milliseconds <= LONGEST_LIFE:
        raise InvalidMessage(f'{FOR} {milliseconds!r} is not a number of milliseconds above 0')
    return max(1, round(float(milliseconds)))
