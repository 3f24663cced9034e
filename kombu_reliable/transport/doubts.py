"""Publishes that failed, and may have been stored all the same.

kombu repeats a publish with the properties that it had, in which its number is kept.  Others call
``Producer.publish`` anew: Celery does, for a callback that a worker could not publish, and so may
any program.  Then the message tells that it is the same: its id, its queue and all that it says.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

from kombu_reliable.transport.lanes import Nonce
from kombu_reliable.types import Broadcast, Outgoing

__all__ = ('keep_in_doubt', 'take_number_in_doubt')

#: The last ones that each thread remembers.
KEPT = 64

#: Messages of a publish of which it is remembered; more are a batch, which repeats itself.
MOST = 16

_Key = tuple[tuple[str, str], ...]


class _Doubts(threading.local):
    def __init__(self) -> None:
        self.kept: OrderedDict[_Key, tuple[bytes, Nonce]] = OrderedDict()


_doubts = _Doubts()


def _start_anew() -> None:
    """A forked child does not repeat what its parent has begun."""
    global _doubts
    _doubts = _Doubts()


os.register_at_fork(after_in_child=_start_anew)


def keep_in_doubt(items: Sequence[Outgoing | Broadcast], nonce: Nonce) -> None:
    """Nobody knows whether these were stored under this number."""
    key = _key(items)
    if key is not None:
        _doubts.kept[key] = _digest(items), nonce
        _doubts.kept.move_to_end(key)
        if len(_doubts.kept) > KEPT:
            _doubts.kept.popitem(last=False)


def take_number_in_doubt(items: Sequence[Outgoing | Broadcast]) -> Nonce | None:
    """The number under which this thread has tried to publish exactly these, if it has failed.

    It is forgotten, as if the server had answered: whoever fails again keeps it again.
    """
    if not _doubts.kept:
        return None
    digest, nonce = _doubts.kept.pop(_key(items) or (), (b'', None))
    return nonce if nonce is not None and digest == _digest(items) else None


def _key(items: Sequence[Outgoing | Broadcast]) -> _Key | None:
    if len(items) > MOST:
        return None
    named = [(item.id, item.queue) for item in items if isinstance(item, Outgoing)]
    return tuple(named) if len(named) == len(items) else None


def _digest(items: Sequence[Outgoing | Broadcast]) -> bytes:
    return hashlib.blake2b(repr(list(items)).encode(), digest_size=16).digest()
