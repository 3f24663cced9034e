"""Reads from a message's headers by what it is held back."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from typing import Any

from kombu_reliable.errors import InvalidArgument, InvalidMessage
from kombu_reliable.store.limits import QUEUE_LIMIT, Limit, check_name

__all__ = ('FAIR_KEY', 'THROTTLES', 'take_lane')

#: Names of throttles, or ``{'name': ..., 'concurrency': ..., 'rate': ..., 'burst': ...}``.
THROTTLES = 'x-throttles'
#: Jobs of one queue with different keys take turns.
FAIR_KEY = 'x-fair-key'

#: Each is looked at when the job is claimed.
MOST_THROTTLES = 20


def take_lane(headers: dict[str, Any]) -> str | None:
    """By what the message of a job is held back; it is taken out of the headers.

    Returns:
        What :class:`~kombu_reliable.types.Outgoing` has as ``lane``.

    Raises:
        InvalidMessage: these headers make no sense.
    """
    if THROTTLES not in headers and FAIR_KEY not in headers:
        return None
    wanted = headers.pop(THROTTLES, None) or ()
    key = headers.pop(FAIR_KEY, None)
    if not isinstance(wanted, list | tuple):
        raise InvalidMessage(f'{THROTTLES} {wanted!r:.100} is no list')
    if len(wanted) > MOST_THROTTLES:
        raise InvalidMessage(
            f'{len(wanted)} throttles on one job; there may be at most {MOST_THROTTLES}'
        )
    throttles = dict(map(_throttle, wanted))
    if key is not None:
        key = _fair_key(key)
    if not throttles and key is None:
        return ''
    names = sorted(throttles)
    digest = hashlib.blake2b(json.dumps([names, key]).encode(), digest_size=12).digest()
    found: dict[str, Any] = {
        'd': urlsafe_b64encode(digest).decode(),
        't': [[name, *throttles[name]] for name in names],
    }
    if key is not None:
        found['f'] = 1
    return json.dumps(found, separators=(',', ':'))


def _fair_key(key: Any) -> str:
    try:
        return check_name(str(key))
    except InvalidArgument:
        raise InvalidMessage(f'{FAIR_KEY} {key!r:.100} is no text of 1 to 1,000 bytes') from None


def _throttle(one: Any) -> tuple[str, tuple[str, ...]]:
    if isinstance(one, str):
        one = {'name': one}
    if not isinstance(one, Mapping) or not set(one) <= {'name', 'concurrency', 'rate', 'burst'}:
        raise InvalidMessage(
            f'{one!r:.200} in {THROTTLES} is neither a name nor {{"name": ..., "concurrency": ..., '
            '"rate": ..., "burst": ...}'
        )
    limits = dict(one)
    try:
        name = check_name(limits.pop('name', None))
        if name.startswith(QUEUE_LIMIT):
            raise InvalidArgument(f'{name!r:.100} limits a queue, and is not for single jobs')
        # Who gives no limits takes those that others bring.
        return name, Limit(**limits).fields if limits else ()
    except InvalidArgument as error:
        raise InvalidMessage(f'{THROTTLES}: {error}') from None
