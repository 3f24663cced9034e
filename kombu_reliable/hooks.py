"""What only the program that consumes can know, told to the transport through hooks.

Without hooks every message that was delivered counts as started, which is true for plain
kombu consumers.  ``celery_ext.bridge`` sets them in Celery workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

__all__ = ('idle_slots', 'room', 'set_hooks', 'started', 'stopping')

_started: Callable[[frozenset[str]], Iterable[str]] | None = None
_idle_slots: Callable[[], int | None] | None = None
_room: Callable[[Any], bool] | None = None
_stopping: Callable[[Any], bool | None] | None = None


def set_hooks(
    *,
    started: Callable[[frozenset[str]], Iterable[str]] | None = None,
    idle_slots: Callable[[], int | None] | None = None,
    room: Callable[[Any], bool] | None = None,
    stopping: Callable[[Any], bool | None] | None = None,
) -> None:
    """Installs the hooks of this process; None removes one.

    Args:
        started: given tokens of deliveries (``message.delivery_tag``), returns those whose work
            has begun or can no longer be held back.  The others may be given back when their
            consumer is cancelled.
        idle_slots: how many units of work could start this moment; None if that is unknown.
        room: given a transport, whether it can hand out a message without blocking its consumer.
        stopping: given a transport, whether its ``drain_events`` should end early, as if its
            time were over; it is asked when a signal has arrived.  None leaves signals alone.

    Example:
        >>> set_hooks(started=lambda tokens: tokens)
    """
    global _started, _idle_slots, _room, _stopping
    _started = started
    _idle_slots = idle_slots
    _room = room
    _stopping = stopping


def started(tokens: Iterable[str]) -> frozenset[str]:
    """Those of ``tokens`` whose work has begun."""
    asked = frozenset(tokens)
    return asked if _started is None else asked.intersection(_started(asked))


def idle_slots() -> int | None:
    """How many units of work could start at once, if somebody knows."""
    return None if _idle_slots is None else _idle_slots()


def room(transport: Any) -> bool:
    """Whether a message can be handed out now."""
    return _room is None or _room(transport)


def stopping(transport: Any) -> bool | None:
    """Whether the program is about to end; None if nobody knows."""
    return None if _stopping is None else _stopping(transport)
