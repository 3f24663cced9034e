"""Speaks the server's protocol: commands out, replies in.

redis-py does the same in several times as long, which shows where every task costs a command.
It still opens the connections, introduces itself, and names the errors.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import redis.exceptions
from redis.connection import AbstractConnection, DefaultParser

__all__ = ('CHUNK', 'NOTHING', 'Argument', 'Replies', 'exchange', 'pack', 'packed_words', 'receive')

Argument = str | bytes | int | float

#: How many bytes are taken from a socket at once.
CHUNK = 65_536

#: In place of a reply that is still to come; None is a reply.
NOTHING: Any = object()

#: How a socket says so; the last one if it is wrapped in TLS and must not wait.
_NOTHING_YET = (TimeoutError, BlockingIOError, ssl.SSLWantReadError)

#: Names the errors of the server as redis-py does.
_parser: Any = DefaultParser

_BULK, _NUMBER, _ARRAY, _TEXT, _ERROR = b'$:*+-'

#: What stands in front of a word, by its length; most are short.
_SHORT = tuple(b'$%d\r\n' % length for length in range(256))


def pack(words: Iterable[Argument], beginning: tuple[int, bytes] = (0, b'')) -> bytes:
    """Encodes one command.

    Args:
        words: its words.
        beginning: what stands in front of them, made once by :func:`packed_words`.

    Example:
        >>> pack(('GET', 'key'))
        b'*2\\r\\n$3\\r\\nGET\\r\\n$3\\r\\nkey\\r\\n'
    """
    count, packed = packed_words(words)
    return b'*%d\r\n%b%b' % (beginning[0] + count, beginning[1], packed)


def packed_words(words: Iterable[Argument]) -> tuple[int, bytes]:
    """A part of a command: how many words, and these encoded."""
    parts: list[bytes] = []
    for word in words:
        encoded = word if type(word) is bytes else str(word).encode()
        length = len(encoded)
        parts += (_SHORT[length] if length < 256 else b'$%d\r\n' % length, encoded, b'\r\n')
    return len(parts) // 3, b''.join(parts)


class _Incomplete(Exception):
    """A reply is not there as a whole yet."""

    def __init__(self, end: int) -> None:
        super().__init__(end)
        #: The bytes must reach beyond this before it is worth looking again.
        self.end = end


class Replies:
    """Decodes replies as their bytes arrive; error replies become exception objects.

    Example:
        >>> replies = Replies()
        >>> replies.feed(b'*2\\r\\n:7\\r\\n$3\\r\\nkey\\r\\n+O')
        >>> replies.take()
        [7, b'key']
        >>> replies.take() is NOTHING
        True
    """

    def __init__(self, data: bytes = b'') -> None:
        self._data = data
        self._at = 0
        self._chunks: list[bytes] = []
        #: Bytes that were not taken yet, and how many the next reply has at least.
        self._there = len(data)
        self._needed = 1

    def feed(self, data: bytes) -> None:
        """Adds what has arrived."""
        self._chunks.append(data)
        self._there += len(data)

    def take(self) -> Any:
        """The next reply, or NOTHING if it has not arrived as a whole.

        Raises:
            redis.exceptions.InvalidResponse: this is no reply.
        """
        if self._there < self._needed:
            return NOTHING
        if self._chunks:
            self._data = b''.join((self._data[self._at :], *self._chunks))
            self._at = 0
            self._chunks.clear()
        try:
            reply, end = _read(self._data, self._at)
        except _Incomplete as incomplete:
            self._needed = incomplete.end - self._at
            return NOTHING
        self._there -= end - self._at
        self._at = end
        self._needed = 1
        return reply


def _read(data: bytes, at: int) -> tuple[Any, int]:
    """The reply that begins at ``at``, and where it ends."""
    end = data.find(b'\r\n', at)
    if end < 0:
        raise _Incomplete(len(data) + 1)
    kind, line, at = data[at], data[at + 1 : end], end + 2
    if kind == _BULK:
        length = int(line)
        if length < 0:
            return None, at
        end = at + length
        if len(data) < end + 2:
            raise _Incomplete(end + 2)
        return data[at:end], end + 2
    if kind == _NUMBER:
        return int(line), at
    if kind == _ARRAY:
        length = int(line)
        if length < 0:
            return None, at
        items = []
        for _ in range(length):
            item, at = _read(data, at)
            items.append(item)
        return items, at
    if kind == _TEXT:
        return line, at
    if kind == _ERROR:
        return _parser.parse_error(line.decode(errors='replace')), at
    raise redis.exceptions.InvalidResponse(f'no reply begins with {chr(kind)!r}')


def exchange(connection: AbstractConnection, packed: bytes, count: int) -> list[Any]:
    """Sends commands and waits for their replies.

    Args:
        connection: of redis-py; nothing else is under way on it.
        packed: the commands.
        count: how many they are.

    Returns:
        The replies; error replies as exception objects.

    Raises:
        redis.exceptions.ConnectionError: the connection is lost, or the server is not ready.
        redis.exceptions.TimeoutError: no answer came within the socket's timeout.
    """
    connection.send_packed_command([packed], check_health=False)  # type: ignore[no-untyped-call]
    sock: Any = connection._sock
    if not hasattr(sock, 'recv'):  # fakeredis
        return [_read_simulated(connection) for _ in range(count)]
    data, at = receive(sock), 0
    replies: list[Any] = []
    while len(replies) < count:
        try:
            reply, at = _read(data, at)
        except _Incomplete as incomplete:
            data, at = _more(sock, data[at:], incomplete.end - at), 0
            continue
        if isinstance(reply, redis.exceptions.ConnectionError):
            raise reply
        replies.append(reply)
    return replies


def _more(sock: Any, data: bytes, needed: int) -> bytes:
    """``data`` and what has to arrive behind it until there are ``needed`` bytes."""
    chunks = [data]
    while (needed := needed - len(chunks[-1])) > 0:
        chunks.append(receive(sock))
    return b''.join(chunks)


def receive(sock: Any) -> bytes:
    """What has arrived on a socket; waits for it as long as the socket's timeout says.

    Raises:
        redis.exceptions.TimeoutError: nothing has arrived.
        redis.exceptions.ConnectionError: the connection is lost.
    """
    try:
        data: bytes = sock.recv(CHUNK)
    except _NOTHING_YET as error:
        raise redis.exceptions.TimeoutError('no answer from the server') from error
    except OSError as error:
        raise redis.exceptions.ConnectionError(f'while reading from the server: {error}') from error
    if not data:
        raise redis.exceptions.ConnectionError('the server has closed the connection')
    return data


def _read_simulated(connection: AbstractConnection) -> Any:
    """An error reply is one of several: the others must be read as well."""
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error
