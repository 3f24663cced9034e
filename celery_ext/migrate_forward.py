"""Moves messages from kombu's redis transport to ours, so that each arrives once.

Messages go in steps.  A step takes some from their list to a journal, atomically one by one;
publishes what the journal holds, under numbers that are the same however often that is done;
and empties the journal.  Whoever is killed in between, the next one goes on with the journal.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from celery_ext.migrate_stock import Lock, Stock, message_from
from kombu_reliable import InvalidMessage, Store, WrongState, outgoing

__all__ = ('Forward',)

#: Messages of a step, at most; as many as one publish carries.
STEP = 200

#: Messages of the first step, which tells how large they are, and bytes of the others.
FIRST_STEP, STEP_BYTES = 20, 4_000_000

#: A server forgets the lanes with the lowest numbers, which begin at the time of their clock,
#: in microseconds.  So a lane of next year's is remembered until next year.
_AHEAD = 365 * 86_400 * 1_000_000


class Forward:
    """From kombu's redis transport to ours.

    Args:
        stock: where the messages are.
        store: where they go.
        target: names ``store``, so that what was begun is not ended elsewhere.
        turn: priorities run the other way round there.
        lock: held by this migration.
    """

    def __init__(
        self,
        stock: Stock,
        store: Store,
        target: str,
        turn: bool,
        lock: Lock,
    ) -> None:
        self.stock = stock
        self.store = store
        self.target = target
        self.turn = turn
        self.lock = lock
        #: What was moved: ``(queue, 'ready' | 'unacked')`` -> number.
        self.moved: Counter[tuple[str, str]] = Counter()
        #: How many of them are due later.
        self.delayed = 0
        #: How many could not be read, and were put aside.
        self.aside = 0
        self._noticed: set[str] = set()
        self._step = FIRST_STEP

    # -- begin and end -----------------------------------------------------------

    def begin(self) -> None:
        """Prepares, and ends the step in which somebody was killed.

        Raises:
            WrongState: it was on its way to another server.
        """
        client, stock = self.stock.client, self.stock
        state = client.hgetall(stock.state)
        waits = client.llen(stock.journal)
        if state and state[b'target'].decode() != self.target:
            if waits:
                raise WrongState(
                    f'{waits} messages are on their way to {state[b"target"].decode()}, since '
                    'a migration was interrupted: run it once more with that target'
                )
            client.delete(stock.state)
        fresh = {
            'target': self.target,
            'lane': f'migrate-{secrets.token_urlsafe(9)}',
            'next': time.time_ns() // 1000 + _AHEAD,
            'queue': '',
        }
        with client.pipeline() as pipe:
            for name, value in fresh.items():
                pipe.hsetnx(stock.state, name, value)
            pipe.execute()
        self._empty_journal()

    def end(self) -> None:
        """Leaves nothing behind but what could not be read."""
        if not self.stock.client.llen(self.stock.journal):
            self.stock.client.delete(self.stock.state)

    # -- ready -------------------------------------------------------------------

    def move_ready(self, queue: str) -> int:
        """Moves what is ready in a queue, the most urgent first; returns how many there were."""
        before = self.moved[queue, 'ready'] + self.aside
        while self._take_ready(queue):
            self._empty_journal()
        return self.moved[queue, 'ready'] + self.aside - before

    def _take_ready(self, queue: str) -> bool:
        self.lock.renew()
        client, stock = self.stock.client, self.stock
        client.hset(stock.state, 'queue', queue)
        room = self._step
        for step, held in stock.lengths(queue).items():
            if held and room:
                with client.pipeline(transaction=False) as pipe:
                    for _ in range(min(held, room)):
                        pipe.rpoplpush(stock.list_for(queue, step), stock.journal)
                    # A worker may have been faster.
                    room -= sum(taken is not None for taken in pipe.execute())
        return room < self._step

    # -- unacked -----------------------------------------------------------------

    def move_unacked(self, queues: Iterable[str], known: Mapping[Any, str]) -> None:
        """Moves what workers held; they must have stopped.

        Args:
            queues: only what was sent to these.
            known: queues of the app, by exchange and routing key.
        """
        wanted = frozenset(queues)
        tags = self.stock.unacked_tags()
        while tags:
            self.lock.renew()
            self._take_unacked(tags[: self._step], wanted, known)
            del tags[: self._step]
            self._empty_journal()

    def _take_unacked(
        self, tags: list[bytes], wanted: frozenset[str], known: Mapping[Any, str]
    ) -> None:
        client, stock = self.stock.client, self.stock
        client.hset(stock.state, 'queue', '')
        with client.pipeline() as pipe:
            self.lock.guard(pipe, stock.unacked)
            entries = pipe.hmget(stock.unacked, tags)
            placed = [
                (tag, entry, self._place(entry, known))
                for tag, entry in zip(tags, entries, strict=True)
                if entry is not None
            ]
            pipe.multi()
            aside = 0
            for tag, entry, queue in placed:
                if queue is None:
                    aside += 1
                    pipe.lpush(stock.aside, entry)
                elif queue in wanted:
                    pipe.lpush(stock.journal, json.dumps([queue, json.loads(entry)[0]]))
                else:
                    continue
                pipe.hdel(stock.unacked, tag)
                pipe.zrem(stock.unacked_index, tag)
            self.lock.commit(pipe)
        self.aside += aside

    def _place(self, entry: bytes, known: Mapping[Any, str]) -> str | None:
        try:
            message, exchange, routing_key = json.loads(entry)
            message_from(message, True)
            return self.stock.route(exchange or '', routing_key or '', known)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    # -- the journal -------------------------------------------------------------

    def _empty_journal(self) -> None:
        """Publishes what the journal holds, the oldest first."""
        client, stock = self.stock.client, self.stock
        while True:
            # Both at once: what is published must go with these numbers.
            with client.pipeline() as pipe:
                pipe.hgetall(stock.state)
                pipe.lrange(stock.journal, -self._step, -1)
                state, entries = pipe.execute()
            if not entries:
                return
            self._publish(state, entries[::-1])
            size = max(1, sum(map(len, entries)) // len(entries))
            self._step = max(1, min(STEP, STEP_BYTES // size))
            self.lock.renew()

    def _publish(self, state: dict[bytes, bytes], entries: list[bytes]) -> None:
        queue = state[b'queue'].decode(errors='surrogateescape')
        first = int(state[b'next'])
        ready, aside = [], []
        for entry in entries:
            try:
                ready.append(self._outgoing(queue, entry))
            except (AttributeError, KeyError, TypeError, ValueError):
                aside.append(entry)  # of InvalidMessage as well: it is a ValueError
        if ready:
            lane = state[b'lane'].decode()
            self.store.repeat(self.store.operations.publish(lane, first, ready))
            self.store.confirm()
            for name in {one.queue for one in ready} - self._noticed:
                self.store.notice(name)
                self._noticed.add(name)
        self._forget(len(entries), aside)
        for one in ready:
            self.moved[one.queue, 'ready' if queue else 'unacked'] += 1
            self.delayed += one.due != '0'
        self.aside += len(aside)

    def _outgoing(self, queue: str, entry: bytes) -> Any:
        options = self.store.operations.options
        raw = json.loads(entry)
        if not queue:
            queue, raw = raw
        message, exchange, routing_key = message_from(raw, self.turn)
        if not queue:
            raise InvalidMessage('no queue')
        return outgoing(message, queue, exchange, routing_key, options)

    def _forget(self, count: int, aside: list[bytes]) -> None:
        """Removes what was published from the journal."""
        client, stock = self.stock.client, self.stock
        with client.pipeline() as pipe:
            self.lock.guard(pipe, stock.state)
            pipe.multi()
            pipe.ltrim(stock.journal, 0, -count - 1)
            pipe.hincrby(stock.state, 'next', count)
            if aside:
                pipe.lpush(stock.aside, *aside)
            self.lock.commit(pipe)
