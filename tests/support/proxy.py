"""A proxy between a client and a server that breaks things on purpose, at an exact place.

It knows where commands and replies begin and end, so that a test can say "the server does it,
but its reply gets lost". It runs in a thread of its own with an event loop of its own. All its
state belongs to that thread; the public methods go there and return when the change is in force.

:class:`Kind` lists all that can befall a single command.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
import threading
from collections import Counter, deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
)
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

T = TypeVar('T')
Value = bytes | None | list['Value']

HOST = '127.0.0.1'
READ_SIZE = 2**18
CALL_TIMEOUT = 30.0

# What the first byte of a RESP value says. RESP3 comes nearly for free, so it is here too.
LINES = frozenset(b'+-:_#,(')
BULKS = frozenset(b'$!=')
AGGREGATES = {ord('*'): 1, ord('~'): 1, ord('>'): 1, ord('%'): 2, ord('|'): 2}
ATTRIBUTE = ord('|')
PUSH = ord('>')

MESSAGES = frozenset({b'message', b'pmessage', b'smessage'})
SUBSCRIPTIONS = frozenset(
    prefix + verb for prefix in (b'', b'p', b's') for verb in (b'subscribe', b'unsubscribe')
)


class ProtocolError(Exception):
    """These bytes are not RESP."""


@dataclass(frozen=True)
class Command:
    """A command as a client sent it."""

    name: str
    args: tuple[bytes, ...]
    connection: int

    @property
    def sha(self) -> str | None:
        """The digest of the script to run, for EVALSHA and EVAL alike."""
        if not self.args:
            return None
        if self.name in ('EVALSHA', 'EVALSHA_RO'):
            return self.args[0].decode().lower()
        if self.name in ('EVAL', 'EVAL_RO'):
            return hashlib.sha1(self.args[0]).hexdigest()
        return None


Match = Callable[[Command], bool]


class Kind(StrEnum):
    """What can befall one command. Those of requests come before the server has it."""

    #: Both connections are closed, in order or with an RST; the server does nothing.
    CUT_REQUEST = 'drop_request'
    RESET_REQUEST = 'reset_request'
    #: The server gets half of it, then both are closed.
    TORN_REQUEST = 'torn_request'
    #: Nothing that the client sends arrives any more, and nobody closes anything.
    SILENT_REQUESTS = 'silent_requests'
    #: It arrives late, perhaps long after the client has given it up.
    LATE_REQUEST = 'late_request'
    #: It arrives, and after it the server reads the end; what it says still arrives.
    CLOSED_TO_SERVER = 'closed_to_server'
    #: It arrives, but the client reads the end instead of the reply. What it sends still arrives.
    CLOSED_TO_CLIENT = 'closed_to_client'
    #: The server has done it, and both are closed, in order or with an RST.
    CUT_REPLY = 'drop_reply'
    RESET_REPLY = 'reset_reply'
    #: ... after half of the reply.
    TORN_REPLY = 'torn_reply'
    #: Nothing that the server says arrives any more, and nobody closes anything.
    SILENT_REPLIES = 'silent_replies'
    #: The reply arrives late, and so does all that follows.
    LATE_REPLY = 'late_reply'

    @property
    def of_request(self) -> bool:
        return self in REQUEST_KINDS


REQUEST_KINDS = frozenset(
    {
        Kind.CUT_REQUEST, Kind.RESET_REQUEST, Kind.TORN_REQUEST, Kind.SILENT_REQUESTS,
        Kind.LATE_REQUEST, Kind.CLOSED_TO_SERVER, Kind.CLOSED_TO_CLIENT,
    }
)  # fmt: skip


class Fault:
    """What befalls one command; *fired* tells which, once it has happened.

    *over* is set when nothing more will come of it: when a late one has arrived.
    """

    def __init__(self, kind: Kind, n: int, match: Match | None, seconds: float = 0.0) -> None:
        if n < 1:
            raise ValueError('the first one has number 1')
        self.kind = kind
        self.seconds = seconds
        self.fired: Command | None = None
        self.over = threading.Event()
        self._left = n
        self._match = match

    def hits(self, command: Command) -> bool:
        if self._match is not None and not self._match(command):
            return False
        self._left -= 1
        if self._left == 0:
            self.fired = command
        return self._left == 0


class Message(NamedTuple):
    """One whole RESP value, as it came and as it reads. Simple values read as their line."""

    raw: bytes
    value: Value


class Parser:
    """An incremental parser of RESP: bytes in as they come, whole messages out.

    The parsing is a generator that pauses wherever bytes are missing, so that nothing is looked
    at twice however small the pieces are.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._parsing = self._parse()

    def feed(self, data: bytes) -> Iterator[Message]:
        self._data += data
        while self._data:
            try:
                next(self._parsing)
                return
            except StopIteration as done:
                raw = bytes(self._data[: self._at])
                del self._data[: self._at]
                self._at = 0
                self._parsing = self._parse()
                yield Message(raw, done.value)

    def _parse(self) -> Generator[None, None, Value]:
        line = yield from self._line()
        kind = line[0] if line else None
        if kind in LINES:
            return line
        if kind not in BULKS and kind not in AGGREGATES:
            raise ProtocolError(f'not RESP: {line[:100]!r}')
        length = int(line[1:])
        if length < 0:
            return None
        if kind in BULKS:
            return (yield from self._bulk(length))
        # An attribute goes before the value it belongs to, and is nothing without it.
        size = length * AGGREGATES[kind] + (kind == ATTRIBUTE)
        items: list[Value] = []
        for _ in range(size):
            items.append((yield from self._parse()))
        return items

    def _line(self) -> Generator[None, None, bytes]:
        seen = self._at
        while (end := self._data.find(b'\r\n', seen)) < 0:
            seen = max(self._at, len(self._data) - 1)  # the last byte may be the \r
            yield
        line = bytes(self._data[self._at : end])
        self._at = end + 2
        return line

    def _bulk(self, length: int) -> Generator[None, None, bytes]:
        start, end = self._at, self._at + length
        while len(self._data) < end + 2:
            yield
        if self._data[end : end + 2] != b'\r\n':
            raise ProtocolError(f'a bulk string does not end after its {length} bytes')
        self._at = end + 2
        return bytes(self._data[start:end])


class Outstanding:
    """The commands of one connection that wait for their replies, oldest first."""

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._channels: dict[bytes, set[Value]] = {}
        self._confirmations = 0

    def add(self, command: Command) -> None:
        self._commands.append(command)

    def answered_by(self, reply: Message) -> Command | None:
        """Return the command that *reply* belongs to, None for what comes without a command."""
        if not self._commands:
            # A message for a subscriber; or a server at maxclients complains without being asked.
            return None
        items = reply.value if isinstance(reply.value, list) else []
        kind = items[0] if items and isinstance(items[0], bytes) else b''
        if kind in SUBSCRIPTIONS and kind == self._commands[0].name.lower().encode():
            return self._confirmed(kind, items[1])
        # In RESP2 a message looks like any array, but only subscribers get messages.
        subscribed = any(self._channels.values())
        if reply.raw[0] == PUSH or (subscribed and kind in MESSAGES):
            return None
        return self._commands.popleft()

    def _confirmed(self, kind: bytes, channel: Value) -> Command:
        """Such a command has one reply for each channel, or for each it had if it names none."""
        command = self._commands[0]
        family = kind.removesuffix(b'subscribe').removesuffix(b'un')
        channels = self._channels.setdefault(family, set())
        if not self._confirmations:
            self._confirmations = len(command.args) or len(channels) or 1
        if kind.endswith(b'unsubscribe'):
            channels.discard(channel)
        else:
            channels.add(channel)
        self._confirmations -= 1
        if not self._confirmations:
            self._commands.popleft()
        return command


class Peer(NamedTuple):
    """One of the two ends the proxy talks to."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield what comes until the end, which a reset is as well."""
        with contextlib.suppress(OSError):
            while data := await self.reader.read(READ_SIZE):
                yield data

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        sock = self.writer.get_extra_info('socket')
        with contextlib.suppress(OSError):
            if sock.family != socket.AF_UNIX:
                # Not lingering makes the close an RST.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.writer.transport.abort()


@dataclass
class Rules:
    """What is to go wrong at present, and what has been seen. Belongs to the proxy's thread."""

    delay: float = 0.0
    refusing: bool = False
    forwarding: asyncio.Event = field(default_factory=asyncio.Event)
    faults: list[Fault] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    commands: list[Command] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.forwarding.set()

    async def leave(self) -> None:
        """Wait until forwarding is allowed; if it is, without giving way to anything else."""
        if not self.forwarding.is_set():
            self.counts['hold'] += 1
        # In a loop because it may be forbidden again before a waiter gets its turn.
        while not self.forwarding.is_set():
            await self.forwarding.wait()

    async def leave_after(self, due: float) -> None:
        """As leave(), but not before the time *due*."""
        left = due - asyncio.get_running_loop().time()
        if left > 0:
            await asyncio.sleep(left)
        await self.leave()

    def due(self) -> float:
        """Return when a reply that has come now may go on."""
        if self.delay:
            self.counts['delay'] += 1
        return asyncio.get_running_loop().time() + self.delay

    def request_fault(self, command: Command) -> Fault | None:
        """Return what befalls this request, if anything does."""
        return self._fault(command, of_request=True)

    def reply_fault(self, command: Command) -> Fault | None:
        return self._fault(command, of_request=False)

    def _fault(self, command: Command, of_request: bool) -> Fault | None:
        # Every fault has to count the command, so this must not stop at the first that hits.
        fired = [
            fault for fault in self.faults
            if fault.kind.of_request == of_request and fault.hits(command)
        ]  # fmt: skip
        for fault in fired:
            self.faults.remove(fault)
            self.counts[fault.kind] += 1
        return fired[0] if fired else None

    def heal(self) -> None:
        self.delay = 0.0
        self.refusing = False
        self.faults.clear()
        self.forwarding.set()


class Link:
    """One client connection together with its connection to the server.

    In each direction one task receives, always, and another one forwards, if and when the rules
    allow it. A None in a queue is the end of what was received: also the end waits its turn.
    """

    def __init__(
        self, rules: Rules, number: int, client: Peer, connect: Callable[[], Awaitable[Peer]]
    ) -> None:
        self._rules = rules
        self._number = number
        self._client = client
        self._connect = connect
        self._server: Peer | None = None
        self._outstanding = Outstanding()
        self._muted = False
        self._requests: asyncio.Queue[tuple[bytes, Command | None] | None] = asyncio.Queue()
        self._replies: asyncio.Queue[tuple[bytes, Command | None, float] | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        """Forward until one end closes or a fault hits, then close both."""
        receiver = asyncio.create_task(self._receive_requests())
        try:
            await self._rules.leave()
            self._server = await self._connect()
            await self._forward(self._server)
        finally:
            await self._close()
            await _cancel(receiver)

    def strand(self) -> None:
        """From now on rules of its own apply, which let nothing pass."""
        self._rules = Rules()
        self._rules.forwarding.clear()

    def reset(self) -> None:
        """Break the connection at both ends without sending what is left."""
        self._reset_peers()
        self.task.cancel()

    def _reset_peers(self) -> None:
        for peer in self._peers():
            peer.reset()

    def _peers(self) -> list[Peer]:
        return [self._client] if self._server is None else [self._client, self._server]

    async def _close(self) -> None:
        """Send what is left, then close. One end may hang and must not keep the other open."""
        for peer in self._peers():
            peer.writer.close()
        closed = (peer.writer.wait_closed() for peer in self._peers())
        await asyncio.gather(*closed, return_exceptions=True)

    async def _forward(self, server: Peer) -> None:
        receiver = asyncio.create_task(self._receive_replies(server))
        forwarders = [
            asyncio.create_task(self._forward_requests(server)),
            asyncio.create_task(self._forward_replies()),
        ]
        try:
            done, _ = await asyncio.wait(forwarders, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _cancel(receiver, *forwarders)

    async def _receive_requests(self) -> None:
        parser = Parser()
        try:
            async for data in self._client.chunks():
                for request in parser.feed(data):
                    self._requests.put_nowait((request.raw, self._noted(request)))
        finally:
            self._requests.put_nowait(None)

    async def _receive_replies(self, server: Peer) -> None:
        parser = Parser()
        try:
            async for data in server.chunks():
                for reply in parser.feed(data):
                    command = self._outstanding.answered_by(reply)
                    self._replies.put_nowait((reply.raw, command, self._rules.due()))
        finally:
            self._replies.put_nowait(None)

    def _noted(self, request: Message) -> Command | None:
        """Note the command; an empty array is none and gets no reply."""
        if not request.value:
            return None
        name, *args = _arguments(request)
        command = Command(name.decode().upper(), tuple(args), self._number)
        self._rules.commands.append(command)
        return command

    async def _forward_requests(self, server: Peer) -> None:
        while request := await self._requests.get():
            raw, command = request
            await self._rules.leave()
            fault = None
            if command is not None:
                fault = self._rules.request_fault(command)
                if fault is not None and await self._ends_before(fault, raw, server):
                    fault.over.set()
                    return
                self._outstanding.add(command)
            await server.send(raw)
            if fault is not None:
                fault.over.set()
                if fault.kind is Kind.CLOSED_TO_SERVER:
                    await self._swallow_the_rest(server)
                    return
        await self._rules.leave()

    async def _ends_before(self, fault: Fault, raw: bytes, server: Peer) -> bool:
        """Let a fault befall a request; True if the connection ends with that."""
        match fault.kind:
            case Kind.RESET_REQUEST:
                self._reset_peers()
            case Kind.TORN_REQUEST:
                await server.send(raw[: len(raw) // 2])
            case Kind.SILENT_REQUESTS:
                await _for_ever(fault)
            case Kind.LATE_REQUEST:
                await asyncio.sleep(fault.seconds)
            case Kind.CLOSED_TO_CLIENT:
                self._muted = True
                self._client.writer.write_eof()
        return fault.kind in (Kind.CUT_REQUEST, Kind.RESET_REQUEST, Kind.TORN_REQUEST)

    async def _swallow_the_rest(self, server: Peer) -> None:
        server.writer.write_eof()
        while await self._requests.get():
            pass

    async def _forward_replies(self) -> None:
        while reply := await self._replies.get():
            raw, command, due = reply
            await self._rules.leave_after(due)
            fault = None if command is None else self._rules.reply_fault(command)
            if fault is not None and await self._ends_after(fault, raw):
                fault.over.set()
                return
            if not self._muted:
                await self._client.send(raw)
            if fault is not None:
                fault.over.set()
        await self._rules.leave()

    async def _ends_after(self, fault: Fault, raw: bytes) -> bool:
        """Let a fault befall a reply; True if the connection ends with that."""
        match fault.kind:
            case Kind.RESET_REPLY:
                self._reset_peers()
            case Kind.TORN_REPLY:
                await self._client.send(raw[: len(raw) // 2])
            case Kind.SILENT_REPLIES:
                await _for_ever(fault)
            case Kind.LATE_REPLY:
                try:
                    await asyncio.sleep(fault.seconds)
                except asyncio.CancelledError:
                    fault.over.set()  # the client has hung up
                    raise
        return fault.kind in (Kind.CUT_REPLY, Kind.RESET_REPLY, Kind.TORN_REPLY)


async def _for_ever(fault: Fault) -> None:
    fault.over.set()
    await asyncio.Event().wait()


def _arguments(request: Message) -> list[bytes]:
    if not isinstance(request.value, list):
        raise ProtocolError(f'not a command: {request.raw[:100]!r}')
    return [item for item in request.value if isinstance(item, bytes)]


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    """End *tasks*; an error of one of them is raised, unless it is a broken connection."""
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception) and not isinstance(result, OSError):
            raise result


class Proxy:
    """A RESP proxy on a free port of 127.0.0.1, usable as a context manager.

    *upstream* is the (host, port) or the path of the unix socket of the server. The server may
    come and go: each client gets a connection of its own to it, and loses it with that.
    """

    def __init__(self, upstream: tuple[str, int] | str) -> None:
        self._upstream = upstream
        self._rules = Rules()
        self._links: set[Link] = set()
        self._accepted = 0
        self._port: int | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        # A proxy that went wrong itself proves nothing, yet must not hide how the test failed.
        if error is None and self._rules.errors:
            raise ExceptionGroup('the proxy failed', self._rules.errors)

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError('the proxy has not been started yet')
        return self._port

    def url(self, db: int = 0) -> str:
        return f'redis://{HOST}:{self.port}/{db}'

    def start(self) -> None:
        if self._thread is not None:
            raise RuntimeError('the proxy runs already')
        listening: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(listening)), name='proxy', daemon=True
        )
        self._thread.start()
        self._port = listening.result(CALL_TIMEOUT)

    def stop(self) -> None:
        """Close everything; what was seen and counted can still be asked for."""
        if self._thread is not None:
            self._do(self._stopping.set)
            self._thread.join(CALL_TIMEOUT)
            self._thread = None

    # Faults. Each is in force when the method returns.

    def delay(self, seconds: float) -> None:
        """Let every reply that comes from now on wait; 0 ends it."""

        def change() -> None:
            self._rules.delay = seconds

        self._do(change)

    def refuse(self, refusing: bool = True) -> None:
        """Accept new connections only to close them at once; False ends it."""

        def change() -> None:
            self._rules.refusing = refusing

        self._do(change)

    def cut(self) -> None:
        """Break all current connections, with an RST where possible."""
        if self._thread is not None:
            self._wait(self._cut())

    def fault(
        self, kind: Kind, n: int = 1, match: Match | None = None, seconds: float = 0.0
    ) -> Fault:
        """Let something befall the *n*-th matching command, or its reply, from now on.

        Replies to commands on their way already count as well. *seconds* is for what comes late.
        *match* runs in the proxy's thread and must not call the proxy.
        """
        fault = Fault(kind, n, match, seconds)
        self._do(lambda: self._rules.faults.append(fault))
        return fault

    def drop_request(self, n: int = 1, match: Match | None = None) -> Fault:
        """Do not forward the *n*-th matching command from now on, cut its connection instead."""
        return self.fault(Kind.CUT_REQUEST, n, match)

    def drop_reply(self, n: int = 1, match: Match | None = None) -> Fault:
        """Swallow the *n*-th reply from now on to a matching command, and cut its connection.

        The replies before it are delivered.
        """
        return self.fault(Kind.CUT_REPLY, n, match)

    def stop_forwarding(self) -> None:
        """Hold back all bytes, and new connections; accept them, and close nothing."""
        self._do(self._rules.forwarding.clear)

    def strand(self) -> None:
        """Forward nothing any more on the connections there are, for good; new ones work."""

        def change() -> None:
            for link in self._links:
                link.strand()

        self._do(change)

    def resume_forwarding(self) -> None:
        self._do(self._rules.forwarding.set)

    def heal(self) -> None:
        """End all faults, those which have not happened yet as well."""
        self._do(self._rules.heal)

    # What happened.

    def seen(self) -> list[Command]:
        """Return the commands received so far, also those not forwarded."""
        return self._do(self._rules.commands.copy)

    def clear(self) -> None:
        """Forget the commands received so far."""
        self._do(self._rules.commands.clear)

    def counts(self) -> Counter[str]:
        """Return how often each fault happened.

        delay: replies; cut, refuse: connections; each :class:`Kind`: commands;
        hold: times that a connection came to a halt in one direction.
        """
        return self._do(self._rules.counts.copy)

    def connections(self) -> int:
        """Return how many connections are open."""
        return self._do(lambda: len(self._links))

    # The thread.

    async def _main(self, listening: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            server = await asyncio.start_server(self._accept, HOST, 0, backlog=1024)
        except OSError as error:
            listening.set_exception(error)
            return
        listening.set_result(server.sockets[0].getsockname()[1])
        await self._stopping.wait()
        server.close()
        await self._cut(count=False)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._rules.refusing:
            self._rules.counts['refuse'] += 1
            writer.close()
            return
        self._accepted += 1
        link = Link(self._rules, self._accepted, Peer(reader, writer), self._connect)
        self._links.add(link)
        link.task.add_done_callback(lambda task: self._ended(link, task))

    def _ended(self, link: Link, task: asyncio.Task[None]) -> None:
        self._links.discard(link)
        error = None if task.cancelled() else task.exception()
        # That an end goes away is daily business here.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self._rules.errors.append(error)

    async def _connect(self) -> Peer:
        if isinstance(self._upstream, str):
            return Peer(*await asyncio.open_unix_connection(self._upstream))
        return Peer(*await asyncio.open_connection(*self._upstream))

    async def _cut(self, count: bool = True) -> None:
        links = list(self._links)
        for link in links:
            link.reset()
        await asyncio.gather(*(link.task for link in links), return_exceptions=True)
        await asyncio.sleep(0)  # the transports close their sockets in the next round of the loop
        if count:
            self._rules.counts['cut'] += len(links)

    def _do(self, action: Callable[[], T]) -> T:
        """Run *action* in the proxy's thread; without one, nobody else can interfere."""
        if self._thread is None:
            return action()

        async def act() -> T:
            return action()

        return self._wait(act())

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT)
