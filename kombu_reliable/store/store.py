"""Runs operations over a blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import redis
import redis.exceptions

from kombu_reliable.errors import LayoutError
from kombu_reliable.keys import LAYOUT, Keys
from kombu_reliable.scripts import Call, Script, all_scripts, translate
from kombu_reliable.store import confirmation
from kombu_reliable.store.connections import Connections
from kombu_reliable.store.dependencies import Edges
from kombu_reliable.store.events import Events
from kombu_reliable.store.job_operations import JobOperations
from kombu_reliable.store.jobs import Jobs
from kombu_reliable.store.operations import Operations, message_of
from kombu_reliable.store.overview import Overview, overview
from kombu_reliable.store.presence import Presence
from kombu_reliable.store.schedules import ScheduleStore
from kombu_reliable.store.stats import StatsReader
from kombu_reliable.store.tags import Tags
from kombu_reliable.store.throttles import Throttles
from kombu_reliable.types import QueueCounts
from kombu_reliable.wire import exchange

__all__ = ('Store',)

T = TypeVar('T')


class Store:
    """The blocking facade; safe to share between threads.

    Args:
        client: a client that neither retries nor decodes; see :mod:`kombu_reliable.client`.
        operations: encodes the calls.

    Example:
        >>> store.run(store.operations.purge('celery'))
        200
    """

    def __init__(self, client: redis.Redis, operations: Operations) -> None:
        self.client = client
        self._connections = Connections(client.connection_pool)
        self.operations = operations
        self.keys = operations.keys

    @cached_property
    def edges(self) -> Edges:
        """Looks at and changes what jobs wait for."""
        return Edges(self)

    @property
    def jobs(self) -> Jobs:
        """Looks at jobs and queues, and acts on them."""
        # Made anew: one that is kept would keep its store, and its connections, until the
        # garbage collector comes by.
        return Jobs(self)

    def schedules(self, ticks: str) -> ScheduleStore:
        """Keeps schedules.

        Args:
            ticks: the queue in which those who fire them are woken.
        """
        return ScheduleStore(self, ticks)

    @property
    def tags(self) -> Tags:
        """Finds jobs by their tags, and changes those."""
        return Tags(self)

    @property
    def events(self) -> Events:
        """Reads what befalls tracked jobs."""
        return Events(self)

    @property
    def throttles(self) -> Throttles:
        """Looks at throttles and changes them."""
        return Throttles(self)

    @property
    def stats(self) -> StatsReader:
        """Reads what workers have counted."""
        return StatsReader(self)

    @property
    def presence(self) -> Presence:
        """Which workers are there."""
        return Presence(self)

    def overview(self, queues: Sequence[str]) -> Overview:
        """Counts of some queues, and the counters of the namespace."""
        return overview(self, queues)

    def now(self) -> int:
        """The server's time, in milliseconds since the epoch."""
        if self.operations.now is not None:
            return self.operations.now
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000)

    def run(self, call: Call[T]) -> T:
        """Sends one call and returns its value.

        Raises:
            LayoutError: the data is of another version.
            ServerFull: the server has no memory left for a publish.
            redis.exceptions.RedisError: everything else, unchanged.
        """
        return self.run_all([call])[0]

    def run_all(self, calls: Sequence[Call[T]]) -> list[T]:
        """Sends calls in one round trip and returns their values.

        Only calls that the server did not know are sent again: a second claim would lease more.
        """
        replies = self._exchange([call.packed() for call in calls])
        for reply in replies:
            if isinstance(reply, redis.exceptions.ResponseError):
                self._mend(calls, replies)
                break
        return [call.decode(reply) for call, reply in zip(calls, replies, strict=True)]

    def _mend(self, calls: Sequence[Call[Any]], replies: list[Any]) -> None:
        """Repeats the calls of scripts that the server did not know; other errors are raised."""
        while unknown := [
            number
            for number, reply in enumerate(replies)
            if isinstance(reply, redis.exceptions.NoScriptError)
        ]:
            # The first call of each script brings it along, so each turn gets somewhere.
            introduced: set[str] = set()
            commands: list[bytes] = []
            for number in unknown:
                known = calls[number].script.sha in introduced
                commands.append(calls[number].packed() if known else calls[number].introduced())
                introduced.add(calls[number].script.sha)
            for number, reply in zip(unknown, self._exchange(commands), strict=True):
                replies[number] = reply
        for reply in replies:
            if isinstance(reply, redis.exceptions.ResponseError):
                raise translate(reply) from reply

    def repeat(self, call: Call[T]) -> T:
        """As :meth:`run`, for a call that may be made twice: a lost connection costs one more."""
        try:
            return self.run(call)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, OSError):
            return self.run(call)

    def _exchange(self, commands: Sequence[bytes]) -> list[Any]:
        if not commands:
            return []
        connection = self._connections.take()
        try:
            replies = exchange(connection, b''.join(commands), len(commands))
        except BaseException:
            self._connections.give_back_broken(connection)
            raise
        self._connections.give_back(connection)
        return replies

    def confirm(self) -> None:
        """Waits until what was written so far is as safe as the options ask for.

        Raises:
            NotConfirmed: it is stored, but not that safe within ``confirm_timeout``.
            InvalidOption: the server cannot tell.
        """
        options = self.operations.options
        if options.confirm_fsync or options.confirm_replicas:
            questions = confirmation.commands(options, self.keys.meta)
            confirmation.judge(options, self._exchange(questions)[-1])

    def load_scripts(self, scripts: Iterable[Script] | None = None) -> None:
        """Makes the server know operations, all unless they are named."""
        with self.client.pipeline(transaction=False) as pipe:
            for script in all_scripts() if scripts is None else scripts:
                pipe.execute_command('SCRIPT', 'LOAD', script.text)
            # Raised by redis-py, an error would quote the whole script.
            for reply in pipe.execute(raise_on_error=False):
                if isinstance(reply, redis.exceptions.ResponseError):
                    raise translate(reply)
                if isinstance(reply, Exception):
                    raise reply

    def check_layout(self) -> None:
        """Raises :class:`LayoutError` if the data was written by an unknown version."""
        version: Any = self.client.hget(self.keys.meta, 'v')
        if version is not None and version.decode() != LAYOUT:
            raise LayoutError(
                f'the data has layout {version.decode()}, '
                f'this version of kombu_reliable reads layout {LAYOUT}'
            )

    def envelopes(self, jobs: Sequence[str]) -> list[bytes | None]:
        """The messages of jobs; None for what is no job, or none any more."""
        # One command each: together, large ones would hold the server up.
        with self.client.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.get(self.keys.job(job))
            replies = pipe.execute(raise_on_error=False)
        return [message_of(one) if isinstance(one, bytes) else None for one in replies]

    # -- queues ------------------------------------------------------------------

    def counts(self, queue: str) -> QueueCounts:
        """Counts the jobs of a queue by state."""
        keys = self.keys
        with self.client.pipeline(transaction=False) as pipe:
            for key in _spots(keys, queue):
                pipe.zcard(key)
            pipe.sismember(keys.paused, queue)
            *replies, paused = pipe.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, Exception) and 'WRONGTYPE' not in str(reply):
                raise reply
        # Foreign data is nothing of ours to be counted.
        ready, delayed, leased, dead, waiting, throttled, completed = (
            reply if isinstance(reply, int) else 0 for reply in replies
        )
        return QueueCounts(
            ready=ready, delayed=delayed, leased=leased, dead=dead, waiting=waiting,
            paused=paused is True or paused == 1, throttled=throttled, completed=completed,
        )  # fmt: skip

    def purge(self, queue: str, progress: Callable[[int], None] | None = None) -> int:
        """Deletes everything that waits in a queue, ready and delayed.

        Args:
            queue: name of the queue.
            progress: called with the number deleted so far after each bounded step.
        """
        total = 0
        while deleted := self.run(self.operations.purge(queue)):
            total += deleted
            if progress is not None:
                progress(total)
        return total

    def knows(self, queue: str) -> bool:
        """Whether a queue was declared, or holds anything."""
        keys = self.keys
        with self.client.pipeline(transaction=False) as pipe:
            pipe.sismember(keys.queues, queue)
            pipe.exists(*_spots(keys, queue))
            pipe.hmget(keys.life(queue), 'life', 'gone')
            declared, holds, (life, gone) = pipe.execute()
        return bool(declared or holds or (life is not None and gone is None))

    def delete(self, queue: str, bindings: Iterable[tuple[str, str]] = (), **spare: bool) -> bool:
        """Deletes a queue, its bindings and what waits in it.

        Args:
            queue: its name.
            bindings: exchange and binding, as far as the caller knows them.
            spare: ``if_unused``, ``if_empty``, see :meth:`.Operations.delete`.

        Returns:
            Whether it was deleted.
        """
        deleted = self.repeat(self.operations.delete(queue, bindings, **spare))
        if deleted > 0:  # one step took these, and others may be left
            self.purge(queue)
        return deleted >= 0

    def tell_ends_to(self, queue: str) -> None:
        """Has ends that no worker reports told to a queue: the limit of deliveries, a lost
        lease, a dependency, a cancel.

        Each is a message: a line of JSON with ``key``, ``queue``, ``outcome`` (``failed`` or
        ``canceled``), ``reason`` and ``at``, then the envelope of the job.

        Args:
            queue: its name; ``''`` if nobody wants to know.
        """
        self.repeat(self.operations.tell_ends(queue))

    def unlock(self, job: str, token: str) -> bool:
        """Gives up the unique key of a job at the start of its run, if it still has one.

        Args:
            job: its key.
            token: of the delivery by which it runs; an old one changes nothing.
        """
        return self.repeat(JobOperations(self.operations).unlock(job, token)) > 0

    def notice(self, queue: str) -> None:
        """Remembers a queue that nobody may have declared, so that it is listed."""
        self.repeat(JobOperations(self.operations).notice([queue]))

    def known_queues(self) -> list[str]:
        """The names of all queues that were declared, are paused, or hold something.

        Of undeclared ones that hold only ready messages, the last 4,096 that were published or
        moved to.
        """
        keys = self.keys
        with self.client.pipeline(transaction=False) as pipe:
            pipe.sunion([keys.queues, keys.paused])
            pipe.zrange(keys.alarms, 0, -1)
            pipe.zrange(keys.noticed, 0, -1)
            declared, watched, noticed = pipe.execute()
        others = [name.decode() for name in {*watched, *noticed} - set(declared) if name]
        with self.client.pipeline(transaction=False) as pipe:
            for queue in others:
                pipe.exists(*_spots(keys, queue))
            holding = pipe.execute()
        found = {name.decode() for name in declared}
        found.update(queue for queue, holds in zip(others, holding, strict=True) if holds)
        return sorted(found)

    # -- bindings ----------------------------------------------------------------

    def bindings(self, exchange: str) -> list[str]:
        """What is bound to an exchange."""
        members: Any = self.client.smembers(self.keys.bindings(exchange))
        return sorted(member.decode() for member in members)

    def bindings_since(
        self, exchange: str, version: bytes | None
    ) -> tuple[bytes | None, list[str] | None]:
        """The bindings of an exchange, unless they are as they were.

        Args:
            exchange: its name.
            version: what this method returned with the bindings that the caller knows.

        Returns:
            The version now, and the bindings, or None if the version is the same.
        """
        now: Any = self.client.hget(self.keys.meta, 'routes')
        if now is not None and now == version:
            return version, None
        # Read after the version: what changes in between is read once more the next time.
        return now, self.bindings(exchange)

    def knows_exchange(self, exchange: str) -> bool:
        """Whether anybody has bound a queue to it, or listens to it."""
        keys = self.keys
        return bool(self.client.exists(keys.bindings(exchange), keys.listeners(exchange)))

    # -- fanout ------------------------------------------------------------------

    def stop_listening(self, exchange: str, listener: str) -> None:
        self.client.zrem(self.keys.listeners(exchange), listener)


def _spots(keys: Keys, queue: str) -> tuple[str, ...]:
    """Where the jobs of a queue are, in the order of :class:`QueueCounts`."""
    return (
        keys.ready(queue), keys.delayed(queue), keys.leased(queue), keys.dead(queue),
        keys.waiting(queue), keys.throttled(queue), keys.completed(queue),
    )  # fmt: skip
