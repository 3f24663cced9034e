"""Speaks the server's protocol: commands out, replies in.

redis-py does the same in several times as long, which shows where every task costs a command.
It still opens the connections, introduces itself, and names the errors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import redis.exceptions
from redis.connection import AbstractConnection, DefaultParser

__all__ = ('Argument', 'Incomplete', 'exchange', 'pack', 'read_reply')

Argument = str | bytes | int | float

#: How many bytes are taken from a socket at once.
CHUNK = 65_536

_BULK, _NUMBER, _ARRAY, _TEXT, _ERROR = b'$:*+-'


class Incomplete(Exception):
    """A reply is not there as a whole yet."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        #: How long the bytes must be before it is worth looking again.
        self.needed = needed


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


def read_reply(data: bytes, at: int = 0) -> tuple[Any, int]:
    """Decodes the reply that begins at ``at``.

    Returns:
        The reply, an error reply as an exception object, and the position behind it.

    Raises:
        Incomplete: more bytes must come first.
        redis.exceptions.InvalidResponse: this is no reply.

    Example:
        >>> read_reply(b'*2\\r\\n:7\\r\\n$3\\r\\nkey\\r\\n')
        ([7, b'key'], 17)
    """
    end = data.find(b'\r\n', at)
    if end < 0:
        raise Incomplete(len(data) + 1)
    kind, line, at = data[at], data[at + 1 : end], end + 2
    if kind == _BULK:
        end = at + int(line)
        if end < at:
            return None, at
        if len(data) < end + 2:
            raise Incomplete(end + 2)
        return data[at:end], end + 2
    if kind == _NUMBER:
        return int(line), at
    if kind == _ARRAY:
        count = int(line)
        if count < 0:
            return None, at
        items = []
        for _ in range(count):
            item, at = read_reply(data, at)
            items.append(item)
        return items, at
    if kind == _TEXT:
        return line, at
    if kind == _ERROR:
        return DefaultParser.parse_error(line.decode(errors='replace')), at
    raise redis.exceptions.InvalidResponse(f'no reply begins with {bytes([kind])!r}')


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
    connection.send_packed_command([packed], check_health=False)
    sock: Any = connection._sock  # type: ignore[attr-defined]
    if not hasattr(sock, 'recv'):  # fakeredis
        return [_read_simulated(connection) for _ in range(count)]
    replies: list[Any] = []
    data, at = receive(sock), 0
    while True:
        try:
            reply, at = read_reply(data, at)
        except Incomplete as incomplete:
            data, at = _fill(sock, data[at:], incomplete.needed - at), 0
            continue
        if isinstance(reply, redis.exceptions.ConnectionError):
            raise reply
        replies.append(reply)
        if len(replies) == count:
            return replies


def receive(sock: Any) -> bytes:
    """What has arrived on a socket; waits for it as long as the socket's timeout says."""
    try:
        data: bytes = sock.recv(CHUNK)
    except TimeoutError as error:
        raise redis.exceptions.TimeoutError('no answer from the server') from error
    except OSError as error:
        raise redis.exceptions.ConnectionError(f'while reading from the server: {error}') from error
    if not data:
        raise redis.exceptions.ConnectionError('the server has closed the connection')
    return data


def _fill(sock: Any, data: bytes, needed: int) -> bytes:
    chunks, length = [data], len(data)
    while length < needed:
        chunk = receive(sock)
        chunks.append(chunk)
        length += len(chunk)
    return b''.join(chunks)


def _read_simulated(connection: AbstractConnection) -> Any:
    """An error reply is one of several: the others must be read as well."""
    try:
        return connection.read_response()
    except redis.exceptions.ResponseError as error:
        return error
