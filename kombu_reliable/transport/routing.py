"""Which queues a message goes to: bindings as they are stored, and the rules of AMQP."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from kombu_reliable.store import Store

__all__ = ('Binding', 'Router', 'Routes', 'topic_matches')


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
    def read(text: str) -> Binding:
        return Binding(*json.loads(text))

    def matches(self, routing_key: str) -> bool:
        if self.kind == 'topic':
            return topic_matches(self.routing_key, routing_key)
        return self.routing_key == routing_key


class Router:
    """Finds the queues for a routing key.

    Args:
        bindings: those of one exchange, as they are stored.
    """

    def __init__(self, bindings: Iterable[str]) -> None:
        self._direct: dict[str, list[str]] = {}
        self._others: list[Binding] = []
        for text in bindings:
            binding = Binding.read(text)
            if binding.kind == 'direct':
                self._direct.setdefault(binding.routing_key, []).append(binding.queue)
            else:
                self._others.append(binding)

    def __bool__(self) -> bool:
        return bool(self._direct or self._others)

    def route(self, routing_key: str) -> list[str]:
        """The queues to which a message goes, each once, in order."""
        found = set(self._direct.get(routing_key, ()))
        found.update(one.queue for one in self._others if one.matches(routing_key))
        return sorted(found)


class Routes:
    """The routers of a connection; each is made anew when bindings have changed.

    Args:
        store: tells the bindings.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[str, tuple[bytes | None, Router]] = {}

    def router(self, exchange: str) -> Router:
        """Asks the server, in one short question, whether what is known still holds."""
        version, router = self._known.get(exchange, (None, Router(())))
        version, bindings = self._store.bindings_since(exchange, version)
        if bindings is not None:
            router = Router(bindings)
            self._known[exchange] = version, router
        return router


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
