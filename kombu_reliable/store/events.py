"""What befalls tracked jobs, as it happens; and what tasks tell of themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import redis.exceptions

from kombu_reliable.envelope import unpack_id
from kombu_reliable.errors import ConnectionLost, InvalidArgument
from kombu_reliable.scripts import translating
from kombu_reliable.types import Status

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Events', 'Gap', 'JobEvent')

#: Events that are read at once.
BATCH = 500

#: Bytes of a line that a task may log.
LONGEST_LOG = 1_000

#: The longest wait for events, in seconds, and the pauses before a lost connection is tried again.
LONGEST_WAIT = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

LOST = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, ConnectionLost, OSError)


class JobEvent(NamedTuple):
    """Something that befell a tracked job.

    Args:
        event: ``put``, ``popped`` (by a worker), ``completed``, ``failed``, ``canceled``,
            ``stalled`` (its lease was lost), ``retried``, ``throttled``, ``track``, ``untrack``;
            ``requeued``, ``released`` (given back without a start), ``replaced`` (others go on
            under its id), ``moved``, ``replayed``.
        at: when, ms since the epoch.
        id: Celery's task id.
        task: the name of the task; ``''`` if it is none of Celery's.
        queue: where it was.
        detail: who, where or why; may be empty.
        key: the job's own name in the store.
        position: where this event is; what comes after it can be asked for.
    """

    event: str
    at: int
    id: str
    task: str
    queue: str
    detail: str
    key: str
    position: str


class Gap(NamedTuple):
    """Some events are missing here: they were trimmed before they were read, or the server has
    lost data.

    Args:
        lost: how many; None if nobody knows.
        position: what came last before them.
    """

    lost: int | None
    position: str

    @property
    def event(self) -> str:
        """``'gap'``, so that it can be told from other events by the same attribute."""
        return 'gap'


class Events:
    """Reads what befalls tracked jobs.  The last 100,000 events are kept, for seven days after the
    last one.

    Args:
        store: where they live.

    Example:
        >>> for event in store.events.listen(since='0'): print(event.event, event.id)
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._key = store.keys.events
        self._client: Any = store.client

    def position(self) -> str:
        """That of the last event until now."""
        with translating(), self._client.pipeline() as pipe:
            pipe.xrevrange(self._key, count=1)
            pipe.hget(self._store.keys.meta, 'events')
            pipe.time()
            last, number, (seconds, micros) = pipe.execute()
        if last:
            return str(last[0][0].decode())
        now = self._store.operations.now
        at = seconds * 1000 + micros // 1000 if now is None else now
        return f'{at}-{int(number or 0)}'

    def listen(
        self, since: str | int | None = None, timeout: float | None = None
    ) -> Iterator[JobEvent | Gap]:
        """Yields events in order, each once, over lost connections and restarts of the server.

        Args:
            since: what comes after this: the position of an event, a time in ms since the epoch,
                or ``'0'`` for all that are kept.  None: what comes after this call.
            timeout: ends when nothing has come for so many seconds; None: never.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: the timeout is over,
                and the server could not be asked.
        """
        if since is None:
            # Not when the first event is asked for: what happens until then counts.
            since = self.position()
        reader = _Reader(self._store, *_begin(since))
        return self._listen(reader, timeout)

    def _listen(self, reader: _Reader, timeout: float | None) -> Iterator[JobEvent | Gap]:
        silent_since, pause = time.monotonic(), 0.0
        # A wait that the socket does not outlast looks like a lost connection.
        longest = min(LONGEST_WAIT, self._store.operations.options.socket_timeout / 2)
        lost: Exception | None = None
        while True:
            left = longest
            if timeout is not None:
                left = min(left, silent_since + timeout - time.monotonic())
            try:
                found = reader.read(left)
                pause, lost = 0.0, None
            except LOST as error:
                found, lost = [], error
                pause = min(LONGEST_PAUSE, 2 * pause or FIRST_PAUSE)
                time.sleep(max(0.0, min(pause, left)))
            if found:
                yield from found
                silent_since = time.monotonic()
            elif timeout is not None and time.monotonic() - silent_since >= timeout:
                if lost is not None:
                    raise lost  # there may be events
                return

    # -- what a task tells of itself ---------------------------------------------

    def log(self, key: str, token: str, message: str, data: Any = None) -> Status:
        """Notes a line with a job, for its owner.

        Args:
            key: of the job.
            token: of the delivery.
            message: what happened.
            data: what belongs to it; must be JSON.

        Raises:
            InvalidArgument: it is too long, or no JSON.
        """
        try:
            text = json.dumps([str(message), data], separators=(',', ':'))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f'the data of a log line must be JSON: {error}') from None
        if len(text) > LONGEST_LOG:
            raise InvalidArgument(
                f'a log line of {len(text)} bytes is longer than {LONGEST_LOG}; '
                'it goes with the job, so store the rest elsewhere'
            )
        return self._report(key, token, 'log', text)

    def progress(self, key: str, token: str, done: float) -> Status:
        """Notes how far a job is, for its owner.

        Args:
            key: of the job.
            token: of the delivery.
            done: from 0 to 1.
        """
        valid = isinstance(done, int | float) and not isinstance(done, bool) and 0 <= done <= 1
        if not valid:
            raise InvalidArgument(f'progress {done!r:.100} is not a number from 0 to 1')
        return self._report(key, token, 'progress', repr(round(float(done), 6)))

    def _report(self, key: str, token: str, kind: str, what: str) -> Status:
        return self._store.run(
            self._store.operations.call('report', Status, key, token, kind, what)
        )


class _Reader:
    """Reads on from a position."""

    def __init__(self, store: Store, position: str, number: int | None, check: bool) -> None:
        self._key = store.keys.events
        self._meta = store.keys.meta
        self._client: Any = store.client
        self._position = position
        #: Of the last event; None if it is not known.
        self._number = number
        #: Whether to look first if anything was trimmed before this position was read.
        self._check = check
        self._trimmed = False

    def read(self, wait: float) -> list[JobEvent | Gap]:
        """What has come; nothing if nothing comes for so many seconds."""
        if self._check:
            self._check_beginning()
        milliseconds = max(1, round(wait * 1000))
        with translating():
            reply = self._client.xread({self._key: self._position}, BATCH, milliseconds)
        if not reply:
            return self._look_for_loss()
        entries = reply[self._key.encode()][0] if isinstance(reply, dict) else reply[0][1]
        found: list[JobEvent | Gap] = []
        for id_, fields in entries:
            found += self._judge(id_.decode(), fields)
        return found

    def _judge(self, position: str, fields: Any) -> Iterator[JobEvent | Gap]:
        number = int(position.partition('-')[2])
        if self._number is not None and number != self._number + 1:
            lost = number - self._number - 1
            yield Gap(lost if lost > 0 else None, self._position)
        elif self._trimmed:
            yield Gap(None, self._position)
        self._trimmed = False
        self._position, self._number = position, number
        if fields:
            yield _event(position, fields)

    def _check_beginning(self) -> None:
        """A time says nothing of how many came before it."""
        with translating():
            first = self._client.xrange(self._key, count=1)
        self._check = False
        if first:
            at, _, number = first[0][0].decode().partition('-')
            if int(number) > 1 and int(at) > int(self._position.partition('-')[0]):
                self._trimmed = True

    def _look_for_loss(self) -> list[JobEvent | Gap]:
        """Whether events were taken back: a server that lost data may begin to count anew, with
        what would be before our position."""
        if self._number is None:
            return []
        with translating(), self._client.pipeline() as pipe:
            pipe.hget(self._meta, 'events')
            pipe.xrevrange(self._key, count=1)
            number, last = pipe.execute()
        if int(number or 0) >= self._number:
            return []
        gap = Gap(None, self._position)
        self._number = int(number or 0)
        self._position = last[0][0].decode() if last else '0-0'
        return [gap]


def _begin(since: str | int) -> tuple[str, int | None, bool]:
    """Position, number of the event there if it is known, and whether to look at the beginning."""
    if isinstance(since, int) and not isinstance(since, bool) and since >= 0:
        return f'{since}-0', None, True
    at, dash, number = since.partition('-') if isinstance(since, str) else ('', '', '')
    if since == '0':
        return '0-0', None, False
    if not (dash and at.isdigit() and number.isdigit() and at.isascii() and number.isascii()):
        raise InvalidArgument(
            f'since={since!r:.100} is neither the position of an event nor a time'
        )
    return str(since), int(number), False


def _event(position: str, fields: Any) -> JobEvent:
    def text(name: bytes) -> str:
        return str(fields.get(name, b'').decode(errors='replace'))

    key = text(b'j')
    return JobEvent(
        text(b'e'), int(position.partition('-')[0]), unpack_id(key), text(b't'), text(b'q'),
        text(b'd'), key, position,
    )  # fmt: skip
