"""Which queues a message goes to: bindings as they are stored, and the rules of AMQP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

__all__ = ('Binding', 'route', 'topic_matches')


@dataclass(frozen=True, slots=True)
class Binding:
    """One way from an exchange to a queue.

    The kind of the exchange is part of it, so that a publisher that did not declare the
    exchange routes as everybody else does.
    """

    routing_key: str
    queue: str
    kind: str = 'direct'

    def text(self) -> str:
        """How it is stored."""
        kind = [] if self.kind == 'direct' else [self.kind]
        return json.dumps([self.routing_key, self.queue, *kind])

    @staticmethod
    @lru_cache(4096)
    def read(text: str) -> Binding:
        return Binding(*json.loads(text))

    def matches(self, routing_key: str) -> bool:
        if self.kind == 'topic':
            return topic_matches(self.routing_key, routing_key)
        return self.routing_key == routing_key


def route(bindings: Iterable[str], routing_key: str) -> list[str]:
    """The queues to which stored bindings lead, each once, in order."""
    found = (Binding.read(text) for text in bindings)
    return sorted({binding.queue for binding in found if binding.matches(routing_key)})


@lru_cache(4096)
def _pattern(binding_key: str) -> re.Pattern[str]:
    # Every word brings the dot in front of it, also the first.
    parts = {'*': r'\.[^.]+', '#': r'(?:\.[^.]*)*'}
    pattern = ''
    for word in binding_key.split('.'):
        part = parts.get(word, rf'\.{re.escape(word)}')
        # Two '#' in a row say no more than one, and would be slow to match.
        if word != '#' or not pattern.endswith(part):
            pattern += part
    return re.compile(pattern, re.DOTALL)


def topic_matches(binding_key: str, routing_key: str) -> bool:
    """Whether a topic binding takes a routing key.

    ``*`` stands for exactly one word, ``#`` for any number of them, none included.

    Example:
        >>> [topic_matches('*.stock.#', key) for key in ('usd.stock', 'stock.nasdaq')]
        [True, False]
    """
    return _pattern(binding_key).fullmatch(f'.{routing_key}') is not None
