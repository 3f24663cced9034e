"""What befalls tracked jobs, as it happens."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from celery_ext.away import AWAY
from kombu_reliable import Gap, InvalidArgument
from kombu_reliable import JobEvent as StoredEvent

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('EVENTS', 'Events', 'JobEvent', 'Subscription')

logger = logging.getLogger('celery_ext')

#: All events that jobs tell, and ``gap``: some are missing.
EVENTS = (
    'put', 'popped', 'completed', 'failed', 'canceled', 'stalled', 'retried', 'throttled', 'track',
    'untrack', 'requeued', 'released', 'replaced', 'moved', 'replayed', 'gap',
)  # fmt: skip

#: How soon a subscription notices that it was ended, in seconds.
TURN = 0.5


class JobEvent(NamedTuple):
    """Something that befell a tracked job.

    Args:
        event: one of :data:`EVENTS` but ``gap``.
        at: when.
        id: Celery's task id.
        task: the name of the task.
        queue: the name of its queue.
        detail: who, where or why; may be empty.
        position: where this event is, for ``listen(since=...)``.
    """

    event: str
    at: datetime
    id: str
    task: str
    queue: str
    detail: str
    position: str


Callback = Callable[[Any], None]


class Events:
    """Tells what befalls tracked jobs, to everybody who listens, from any process.

    Celery's own events (``celery events``, Flower) are something else, and stay as they are.

    Example:
        >>> for event in ext.events.listen(timeout=60):
        ...     print(event.event, getattr(event, 'id', event))
        >>> ext.events.on('failed', lambda event: page_somebody(event.id, event.detail))
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def listen(
        self, since: str | datetime | None = None, timeout: float | None = None
    ) -> Iterator[JobEvent | Gap]:
        """Yields events in order, each once, also over lost connections.

        Where events were trimmed before they were read a :class:`Gap` comes in their place: the
        last 100,000 are kept, for seven days after the last one.

        Args:
            since: what comes after this: the position of an event, a time, or ``'0'`` for all
                that are kept.  None: what comes after this call.
            timeout: ends when nothing has come for so many seconds; None: never.  If the server
                is away then, that is raised: there may be events.
        """
        if isinstance(since, datetime):
            aware = since if since.tzinfo else since.replace(tzinfo=self._extension.app.timezone)
            found = self._extension.store.events.listen(int(aware.timestamp() * 1000), timeout)
        else:
            found = self._extension.store.events.listen(since, timeout)
        return map(_event, found)

    def on(
        self, event: str, callback: Callback, since: str | datetime | None = None
    ) -> Subscription:
        """Calls a function for each event of a kind, in a thread of this process.

        Every process that asks for it hears of every event.  The thread does not survive a fork:
        call this in the process that is to hear.

        Args:
            event: one of :data:`EVENTS`, or ``'*'`` for all.
            callback: gets the event, one at a time; what it raises is logged.
            since: see :meth:`listen`.

        Returns:
            Its ``close()`` ends it.
        """
        if event != '*' and event not in EVENTS:
            raise InvalidArgument(
                f'there is no event {event!r:.100}; there are {", ".join(EVENTS)}'
            )
        if not callable(callback):
            raise InvalidArgument(f'{callback!r:.100} cannot be called')
        position = self._extension.store.events.position() if since is None else since
        return Subscription(self, event, callback, position)


class Subscription:
    """A function that is called for events; see :meth:`Events.on`."""

    def __init__(
        self, events: Events, event: str, callback: Callback, since: str | datetime
    ) -> None:
        self._events = events
        self._event = event
        self._callback = callback
        self._closed = threading.Event()
        #: The position of the last event that was heard of.
        self.position = since
        self._thread = threading.Thread(
            target=self._run, name=f'celery_ext events: {event}', daemon=True
        )
        self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        """Ends it; waits until a call that is under way has returned, for ``timeout`` at most."""
        self._closed.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                for event in self._events.listen(self.position, TURN):
                    if self._closed.is_set():
                        return
                    self._tell(event)
            except AWAY:
                self._closed.wait(TURN)
            except Exception:
                logger.exception('events cannot be read; trying again')
                self._closed.wait(TURN)

    def _tell(self, event: JobEvent | Gap) -> None:
        if isinstance(event, JobEvent):
            self.position = event.position
        elif self._event not in ('gap', '*'):
            logger.warning('events of jobs are missing, they came faster than they were heard: %r',
                           event)  # fmt: skip
        if self._event in ('*', event.event):
            try:
                self._callback(event)
            except Exception:
                logger.exception('a callback for the event %r has failed', event.event)


def _event(found: StoredEvent | Gap) -> JobEvent | Gap:
    if isinstance(found, Gap):
        return found
    at = datetime.fromtimestamp(found.at / 1000, UTC)
    return JobEvent(
        found.event, at, found.id, found.task, found.queue, found.detail, found.position
    )
