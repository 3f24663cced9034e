"""Names for the commands of a connection, so that the n-th of a kind can be told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import NamedTuple

from kombu_reliable.scripts import all_scripts
from tests.support.proxy import Command, Match

__all__ = ('Call', 'calls_of', 'label', 'same_kind')

#: Commands whose first word says what they do.
FAMILIES = frozenset({'CLIENT', 'SCRIPT', 'PUBSUB', 'CONFIG'})


@cache
def _names() -> dict[str, str]:
    return {script.sha: script.name for script in all_scripts()}


def label(command: Command) -> str:
    """What kind of a command this is: the name of a script, or of the server's command."""
    if command.sha is not None:
        return _names().get(command.sha, 'script')
    if command.name in FAMILIES and command.args:
        return f'{command.name} {command.args[0].decode().upper()}'
    return command.name


def same_kind(kind: str) -> Match:
    """Matches the commands of a kind."""
    return lambda command: label(command) == kind


class Call(NamedTuple):
    """The n-th command of its kind in an operation."""

    kind: str
    n: int

    def __str__(self) -> str:
        return self.kind if self.n == 1 else f'{self.kind} #{self.n}'


def calls_of(commands: Iterable[Command]) -> Iterator[Call]:
    """The commands in order, each with its number among those of its kind."""
    seen: Counter[str] = Counter()
    for command in commands:
        kind = label(command)
        seen[kind] += 1
        yield Call(kind, seen[kind])
