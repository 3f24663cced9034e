"""What is looked at, and what is found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import redis.exceptions

from kombu_reliable import Options, Store, open_store

__all__ = ('Finding', 'Level', 'Patient', 'some', 'text_of')

Level = Literal['ok', 'warning', 'problem']

#: How many names a finding lists.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Args:
        check: its name.
        level: ``ok``, ``warning``, or ``problem``: tasks may be lost, or nothing works.
        text: what is the case.
        advice: what to do.
    """

    check: str
    level: Level
    text: str
    advice: str = ''


class Patient:
    """What is looked at.

    Args:
        app: the Celery app.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.conf = app.conf

    @cached_property
    def store(self) -> Store:
        return open_store(self.app.connection_for_write())

    @property
    def options(self) -> Options:
        return self.store.operations.options

    @cached_property
    def info(self) -> dict[str, Any]:
        """All that the server tells about itself."""
        client: Any = self.store.client
        return dict(client.info())

    def setting(self, name: str) -> str | None:
        """A setting of the server; None if we may not ask."""
        try:
            client: Any = self.store.client
            found = client.config_get(name)
        except redis.exceptions.ResponseError:
            return None
        return {text_of(key): text_of(value) for key, value in found.items()}.get(name)


def text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def some(names: list[str]) -> str:
    """``a, b and 3 more are``"""
    shown = ', '.join(names[:NAMED])
    if len(names) > NAMED:
        shown += f' and {len(names) - NAMED} more'
    return f'{shown} {"is" if len(names) == 1 else "are"}'
