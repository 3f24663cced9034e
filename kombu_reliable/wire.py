"""Writes commands as the server reads them.

redis-py does the same in several times as long, which shows where every task costs a command.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ('Argument', 'pack')

Argument = str | bytes | int | float


def pack(words: Iterable[Argument]) -> bytes:
    """Encodes one command.

    Example:
        >>> pack(('GET', 'key'))
        b'*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n'
    """
    parts = []
    for word in words:
        encoded = word if type(word) is bytes else str(word).encode()
        parts.append(b'$%d\r\n%b\r\n' % (len(encoded), encoded))
    return b'*%d\r\n%b' % (len(parts), b''.join(parts))
