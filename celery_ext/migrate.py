"""Moves what waits under kombu's redis transport to ours, and back again.

The command ``celery reliable migrate`` is made of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from kombu import Connection
from kombu.pidbox import Mailbox
from kombu.utils.url import maybe_sanitize_url

from celery_ext.migrate_back import Back
from celery_ext.migrate_forward import Forward
from celery_ext.migrate_stock import Lock, Stock, is_stock
from kombu_reliable import InvalidArgument, ReliableError, Store, WrongState, open_store

__all__ = ('Migration',)

#: How long workers have to answer, in seconds.
PING = 2.0

#: For how long a list of queues is good enough, in seconds.
FRESH = 30.0

Tell = Callable[[int], None]


class Migration(AbstractContextManager['Migration']):
    """A move of messages between kombu's redis transport and ours.

    Nothing is lost and nothing doubled, also if it is killed and run again.  Messages go in small
    steps, while producers publish and, unless ``stopped``, workers work on both sides.

    Args:
        app: the app; either side is its broker unless given.
        source: broker URL to move from.
        target: broker URL to move to; one of the two is ``redis://``, the other ``reliable://``.
        options: transport options of the ``redis://`` side, beside those of the app.
        queues: only these; all that are known unless given.
        keep_priorities: give messages the numbers that they have.  By default 0, which is first
            there, becomes 9, which is first here; unless ``priority_order`` is lowest-first.
        stopped: the workers on the source have stopped, so what they held moves as well.

    Example:
        >>> with Migration(app, source='redis://localhost') as migration:
        ...     migration.run()
        ...     print(migration.report())
    """

    def __init__(
        self,
        app: Any,
        source: str | None = None,
        target: str | None = None,
        *,
        options: dict[str, Any] | None = None,
        queues: Collection[str] = (),
        keep_priorities: bool = False,
        stopped: bool = False,
    ) -> None:
        self.app = app
        self.only = tuple(dict.fromkeys(queues))
        self.stopped = stopped
        self.keep_priorities = keep_priorities
        self.began = time.monotonic()
        self.seconds = 0.0
        self._given = dict(options or {})
        self._urls = source, target
        self._begun = False
        self._found: tuple[float, list[str]] | None = None
        ends = [url or _broker(app) for url in (source, target)]
        kinds = [_kind(url) for url in ends]
        if sorted(kinds) != ['reliable', 'stock']:
            raise InvalidArgument(
                'one side must be redis://..., the other reliable+redis://...; they are '
                + ' and '.join(str(maybe_sanitize_url(url)) or 'nothing' for url in ends)
            )
        #: From kombu's transport to ours, or back.
        self.forward = kinds == ['stock', 'reliable']

    # -- the two sides -----------------------------------------------------------

    def _connection(self, url: str | None, extra: dict[str, Any]) -> Connection:
        conf = self.app.conf
        if url is None:
            return self.app.connection_for_write(transport_options=extra)
        return Connection(url, transport_options={**conf.broker_transport_options, **extra})

    @cached_property
    def stock(self) -> Stock:
        """The side of kombu's transport.

        Raises:
            ReliableError: what that needs is not installed.
        """
        try:
            return Stock(self._connection(self._urls[0 if self.forward else 1], self._given))
        except ImportError as error:
            raise ReliableError(
                f"kombu's redis transport misses something: {error}; pip install 'celery[redis]'"
            ) from error

    @cached_property
    def store(self) -> Store:
        """Our side."""
        return open_store(self._ours)

    @cached_property
    def _ours(self) -> Connection:
        return self._connection(self._urls[1 if self.forward else 0], {})

    @cached_property
    def _lock(self) -> Lock:
        return Lock(self.stock)

    @cached_property
    def _mover(self) -> Any:
        options, lock = self.store.operations.options, self._lock
        turn = options.priority_order == 'highest-first' and not self.keep_priorities
        if self.forward:
            target = f'{self._ours.as_uri()} {options.global_keyprefix}'.strip()
            return Forward(self.stock, self.store, target, turn, lock)
        return Back(self.stock, self.store, turn, lock)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._begun:
            self._lock.release()
        if 'stock' in self.__dict__:
            self.stock.connection.release()
        if '_ours' in self.__dict__:
            self._ours.release()

    def __enter__(self) -> Self:
        return self

    # -- what there is -----------------------------------------------------------

    @cached_property
    def _known(self) -> dict[tuple[str, str], str]:
        """The queues of the app, by exchange and routing key."""
        return {
            (queue.exchange.name if queue.exchange else '', queue.routing_key or name): name
            for name, queue in self.app.amqp.queues.items()
        }

    def queues(self) -> list[str]:
        """The names of the queues that are to move."""
        if self.only:
            return list(self.only)
        if self.forward:
            return self.stock.queues(self._known.values())
        return list(self._mover.queues())

    def strangers(self) -> list[str]:
        """Names under which tasks wait that are not known as queues of this app."""
        return self.stock.strangers(self.queues()) if self.forward and not self.only else []

    def plan(self) -> dict[str, Any]:
        """What waits at the source; nothing is changed."""
        return {**self._ends(), 'queues': [self._counts(name) for name in self.queues()],
                **self._rest()}  # fmt: skip

    def _ends(self) -> dict[str, Any]:
        ends = [self.stock.url, str(self._ours.as_uri())]
        source, target = ends if self.forward else ends[::-1]
        return {'source': source, 'target': target}

    def _counts(self, queue: str) -> dict[str, Any]:
        if self.forward:
            steps = self.stock.lengths(queue)
            return {
                'queue': queue,
                'ready': sum(steps.values()),
                'by_priority': {str(step): held for step, held in steps.items()},
            }
        counts = asdict(self.store.counts(queue))
        del counts['paused']
        counts['failed'] = counts.pop('dead')
        return {'queue': queue, **counts}

    def _rest(self) -> dict[str, Any]:
        if not self.forward:
            return {}
        unreadable = int(self.stock.client.llen(self.stock.aside))
        return {
            'unacked': self.stock.unacked_count(),
            'unreadable': unreadable,
            'unreadable_key': self.stock.aside if unreadable else None,
            'unknown_queues': self.strangers(),
        }

    # -- do it -------------------------------------------------------------------

    def _refuse_while_workers_live(self) -> None:
        """Raises :class:`.WrongState` if somebody consumes on the source."""
        # Workers without remote control answer no ping.  And our own ping waits so for replies.
        waiting = self.stock.consumers() if self.forward and not self.only else []
        names = self._answering()
        if names:
            raise WrongState(
                f'workers on the old broker answer a ping: {", ".join(names[:5])}'
                f'{" ..." if len(names) > 5 else ""}; stop them first'
            )
        if waiting:
            raise WrongState(
                f'somebody waits for messages on the old broker, from {", ".join(waiting[:5])}; '
                'stop those workers first, or name the queues that are yours alone with --queue'
            )

    def _answering(self) -> list[str]:
        # Not by app.control: it publishes to the app's own broker, whatever connection it is given.
        ours = self.app.control.mailbox
        mailbox = Mailbox(
            ours.namespace, type='fanout', accept=ours.accept, serializer=ours.serializer
        )
        connection = self.stock.connection if self.forward else self._ours
        replies = mailbox(connection).multi_call('ping', timeout=PING)
        return sorted(name for reply in replies or () for name in reply)

    def run(self, tell: Tell | None = None) -> int:
        """Moves what is there; call it again for what has come since.

        Args:
            tell: called with the number moved so far after each queue.

        Returns:
            How many were moved.

        Raises:
            WrongState: old workers live though they should not, or another migration is at work.
        """
        if not self._begun:
            if self.stopped:
                self._refuse_while_workers_live()
            self._lock.take()
            self._begun = True
            self._mover.begin()
        before = self.total
        names = self._names()
        if self.stopped and not self.forward:
            self._mover.await_leases(names)
        for queue in names:
            self._move(queue)
            if tell is not None:
                tell(self.total)
        if self.stopped and self.forward:
            self._mover.move_unacked(names, self._known)
        self._lock.renew()
        self.seconds = time.monotonic() - self.began
        return self.total - before

    def _names(self) -> list[str]:
        """The queues; looking for them goes through all keys, so it is not done all the time."""
        if self._found is None or time.monotonic() > self._found[0] + FRESH:
            self._found = time.monotonic(), self.queues()
        return self._found[1]

    def _move(self, queue: str) -> None:
        if self.forward:
            self._mover.move_ready(queue)
        else:
            self._mover.move_queue(queue)

    def end(self) -> None:
        """Cleans up."""
        self._mover.end()

    @property
    def total(self) -> int:
        """How many were moved so far."""
        return int(self._mover.moved.total())

    def report(self) -> dict[str, Any]:
        """What was moved, and what is left where it was."""
        kinds = ('ready', 'unacked' if self.forward else 'delayed')
        moved = [
            {'queue': queue, **{kind: self._mover.moved[queue, kind] for kind in kinds}}
            for queue in sorted({queue for queue, _ in self._mover.moved})
        ]
        left = [one for one in map(self._counts, self.queues()) if _holds(one)]
        found = {
            **self._ends(),
            'moved': self.total,
            'seconds': round(self.seconds, 2),
            'queues': moved,
            'left': left,
            **self._rest(),
        }
        if self.forward:
            found['delayed'] = self._mover.delayed
        else:
            found['stayed'] = [
                {'queue': queue, 'why': why, 'jobs': number}
                for (queue, why), number in sorted(self._mover.stayed.items())
            ]
        return found


def _broker(app: Any) -> str:
    url = app.conf.broker_write_url or ''
    return str(url[0] if isinstance(url, list | tuple) else url).split(';')[0]


def _kind(url: str) -> str:
    if url.startswith('reliable'):
        return 'reliable'
    return 'stock' if is_stock(url) else 'other'


def _holds(counts: dict[str, Any]) -> bool:
    return any(number for number in counts.values() if isinstance(number, int))
