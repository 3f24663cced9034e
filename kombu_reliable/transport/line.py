"""A connection on which requests are sent ahead and replies are handled as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import redis
import redis.exceptions
from redis.connection import AbstractConnection

from kombu_reliable.errors import ConnectionLost
from kombu_reliable.wire import CHUNK, NOTHING, Argument, Replies, pack, receive

__all__ = ('LOST', 'REFUSALS', 'Line', 'Request', 'ServerLine', 'SimulatedLine', 'must_answer')

#: What reconnecting can mend.
LOST = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError, ConnectionLost)

#: What it cannot mend.  Some of these are connection errors to redis-py: ask for them first.
REFUSALS = (
    redis.exceptions.AuthenticationError,
    redis.exceptions.AuthorizationError,
    redis.exceptions.NoPermissionError,
)


def _ignore(*_: Any) -> None:
    pass


@dataclass(slots=True)
class Request:
    """A command and what to do with its fate.

    Args:
        command: the words of the command.
        accept: called with the reply; an error reply comes as an exception object.
        abandon: called instead if the connection goes before the reply was read.
    """

    command: tuple[Argument, ...]
    accept: Callable[[Any], None] = _ignore
    abandon: Callable[[], None] = _ignore
    sent_at: float = 0.0


class Line(Protocol):
    """What the transport needs of a connection."""

    on_close: Callable[[], None]

    def send(self, requests: Sequence[Request]) -> None:
        """Writes all requests at once."""

    def receive(self) -> None:
        """Handles the replies that have arrived; raises one of LOST."""

    def receive_all(self, timeout: float) -> None:
        """Waits until every reply has been handled; raises one of LOST."""

    def fileno(self) -> int | None:
        """What to poll; None if replies are there at once."""

    def waiting_since(self) -> float | None:
        """When the oldest unanswered request was sent, on the monotonic clock."""

    def close(self) -> None:
        """Drops the connection and abandons what is unanswered."""


class ServerLine:
    """A line over a connection of redis-py."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._fd: int = connection._sock.fileno()  # type: ignore[attr-defined]
        #: TLS may have read more from the descriptor than it was asked for.
        self._encrypted = hasattr(connection._sock, 'pending')
        self._unanswered: deque[Request] = deque()
        self._replies = Replies()
        self._closed = False
        #: Called once, while the descriptor is still open: an event loop must let go of it
        #: before its number can be given to somebody else.
        self.on_close: Callable[[], None] = _ignore
        # redis-py disconnects by itself when reading or writing fails.
        self._disconnect = connection.disconnect
        connection.disconnect = self._on_disconnect  # type: ignore[method-assign]

    def _on_disconnect(self, *args: Any, **kwargs: Any) -> None:
        if not self._closed:
            self._closed = True
            self.on_close()
        self._disconnect(*args, **kwargs)

    def send(self, requests: Sequence[Request]) -> None:
        now = time.monotonic()
        for request in requests:
            request.sent_at = now
        self._unanswered.extend(requests)
        packed = b''.join([pack(request.command) for request in requests])
        self._connection.send_packed_command([packed], check_health=False)

    def receive(self) -> None:
        # Closed by the handler of a reply: what else has come is nobody's any more.
        while not self._closed:
            data = self._arrived(0.0)
            self._replies.feed(data)
            self._handle()
            if not data or (len(data) < CHUNK and not self._encrypted):
                break

    def receive_all(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._unanswered:
            if self._closed:
                raise ConnectionLost('the connection is closed')
            data = self._arrived(max(0.0, deadline - time.monotonic()))
            if not data:
                raise ConnectionLost(f'no reply within {timeout:g} s')
            self._replies.feed(data)
            self._handle()

    def _arrived(self, timeout: float) -> bytes:
        """What arrives within ``timeout`` seconds; nothing if there is nothing."""
        sock: Any = self._connection._sock
        usual = sock.gettimeout()
        sock.settimeout(timeout)
        try:
            return receive(sock)
        except redis.exceptions.TimeoutError:
            return b''
        except redis.exceptions.ConnectionError:
            # Also without a question asked: the server has hung up, and reading says so.
            self._on_disconnect()
            raise
        finally:
            if not self._closed:
                sock.settimeout(usual)

    def _handle(self) -> None:
        while not self._closed:
            reply = self._replies.take()
            if reply is NOTHING:
                return
            if isinstance(reply, redis.exceptions.ConnectionError):
                self._on_disconnect()
                raise reply
            if not self._unanswered:
                raise ConnectionLost('the server spoke without being asked')
            self._unanswered.popleft().accept(reply)

    def fileno(self) -> int | None:
        return self._fd

    def waiting_since(self) -> float | None:
        return self._unanswered[0].sent_at if self._unanswered else None

    def close(self) -> None:
        self._on_disconnect()
        while self._unanswered:
            self._unanswered.popleft().abandon()


class SimulatedLine:
    """A line to fakeredis, which lives in this process: every request is answered at once."""

    on_close: Callable[[], None] = staticmethod(_ignore)

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        client.response_callbacks.clear()  # replies as they stand on the wire

    def send(self, requests: Sequence[Request]) -> None:
        for request in requests:
            try:
                reply = self._client.execute_command(*request.command)
            except redis.exceptions.ResponseError as error:
                reply = error
            request.accept(reply)

    def receive(self) -> None:
        """Nothing is ever under way."""

    def receive_all(self, timeout: float) -> None:
        """Nothing is ever under way."""

    def fileno(self) -> int | None:
        return None

    def waiting_since(self) -> float | None:
        return None

    def close(self) -> None:
        self._client.close()


def must_answer(line: Line | None, limit: float) -> None:
    """Raises :class:`ConnectionLost` if a reply is overdue by ``limit`` seconds."""
    if line is None or not _silent(line, limit):
        return
    # The loop itself may have stood still, with the reply waiting in the socket.
    line.receive()
    if _silent(line, limit):
        raise ConnectionLost(f'no reply within {limit:g} s')


def _silent(line: Line, limit: float) -> bool:
    since = line.waiting_since()
    return since is not None and time.monotonic() - since >= limit
