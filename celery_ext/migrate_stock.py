"""How kombu's redis transport keeps its messages, for the migration from and to it.

Each queue is a list per priority step: ``mail``, ``mail<sep>3``, ``mail<sep>6``, ``mail<sep>9``;
producers push at the left, workers pop at the right.  What a worker has got, and not settled,
stands in the hash ``unacked``; so do tasks with a countdown, for workers fetch them at once.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import socket
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import redis
import redis.exceptions
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.url import maybe_sanitize_url

from kombu_reliable import JobInfo, WrongState, open_job

__all__ = ('LOWEST', 'Lock', 'Stock', 'is_internal', 'is_stock', 'message_for', 'message_from')

#: Its priorities go from 0, which is first, to this.
LOWEST = 9

#: The transports of kombu that keep messages so.
_STOCK = re.compile(r'kombu\.transport\.redis')

_BINDINGS = '_kombu.binding.'
_SCANNED = 1000

#: How long a migration that says nothing is taken to live, in seconds.
LOCK_LIFE = 5


def is_stock(url: str) -> bool:
    """Whether a URL belongs to kombu's own redis transport, over TCP, TLS or sentinels."""
    return bool(_STOCK.match(TRANSPORT_ALIASES.get(url.partition('://')[0], '')))


class Stock:
    """The messages of kombu's redis transport in one database.

    Args:
        connection: a kombu connection to it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.url = str(maybe_sanitize_url(connection.as_uri()))
        channel = connection.channel()
        # A client that leaves keys as they are, over kombu's connections.
        self.client: Any = redis.Redis(connection_pool=channel.pool)
        self.prefix: str = channel.global_keyprefix
        self.sep: str = channel.sep
        self.steps: list[int] = sorted(channel.priority_steps)
        self.unacked = self.prefix + channel.unacked_key
        self.unacked_index = self.prefix + channel.unacked_index_key
        own = f'{self.prefix}kombu_reliable.migrate'
        #: What the migration keeps here: its state, what is on its way, what it could not read,
        #: what it has put here already, and that it is at work.
        self.state, self.journal, self.aside = own, f'{own}.journal', f'{own}.unreadable'
        self.done, self.lock = f'{own}.done', f'{own}.lock'

    # -- queues ------------------------------------------------------------------

    def lists(self, queue: str) -> list[str]:
        """The lists of a queue, the most urgent first."""
        return [self.list_for(queue, step) for step in self.steps]

    def list_for(self, queue: str, priority: int) -> str:
        """Where a message of a priority belongs."""
        step = max((one for one in self.steps if one <= priority), default=self.steps[0])
        return f'{self.prefix}{queue}{self.sep}{step}' if step else self.prefix + queue

    def lengths(self, queue: str) -> dict[int, int]:
        """How many messages are ready in a queue, by priority step."""
        with self.client.pipeline(transaction=False) as pipe:
            for key in self.lists(queue):
                pipe.llen(key)
            return dict(zip(self.steps, pipe.execute(), strict=True))

    def queues(self, known: Collection[str] = ()) -> list[str]:
        """The names of the queues: those that are bound, and others that hold anything.

        Args:
            known: names of which the app knows.
        """
        found = set(known)
        for key in self._scan(f'{_glob(self.prefix + _BINDINGS)}*', 'set'):
            for _, _, queue in self._bindings(key[len(self.prefix) + len(_BINDINGS) :]):
                found.add(queue)
        return sorted(queue for queue in found if not is_internal(queue))

    def strangers(self, queues: Collection[str]) -> list[str]:
        """Lists that hold tasks and belong to none of these queues."""
        known = {key for queue in queues for key in self.lists(queue)}
        own = {self.journal, self.aside}
        found = set()
        for key in self._scan(f'{_glob(self.prefix)}*', 'list'):
            if key not in known and key not in own and self._holds_tasks(key):
                found.add(key[len(self.prefix) :].partition(self.sep)[0])
        return sorted(found)

    def _scan(self, pattern: str, kind: str) -> Iterator[str]:
        for key in self.client.scan_iter(pattern, count=_SCANNED, _type=kind):
            yield key.decode(errors='surrogateescape')

    def _holds_tasks(self, key: str) -> bool:
        raw = self.client.lindex(key, -1)
        try:
            return 'task' in json.loads(raw)['headers']
        except (TypeError, ValueError, KeyError):
            return False

    def _bindings(self, exchange: str) -> list[tuple[str, str, str]]:
        members = self.client.smembers(f'{self.prefix}{_BINDINGS}{exchange}')
        split = (member.decode(errors='replace').split(self.sep) for member in members)
        return sorted(tuple(parts) for parts in split if len(parts) == 3)

    def route(self, exchange: str, routing_key: str, known: Mapping[Any, str]) -> str | None:
        """The queue to which a message was sent.

        Args:
            exchange, routing_key: where it was sent.
            known: queues of the app, by exchange and routing key.
        """
        if not exchange:
            return routing_key
        bound = self._bindings(exchange)
        for key, _, queue in bound:
            if key == routing_key:
                return queue
        for _, pattern, queue in bound:
            if pattern and re.match(pattern, routing_key):
                return queue
        return known.get((exchange, routing_key))

    def consumers(self) -> list[str]:
        """Addresses of those who wait for messages in lists of this database right now."""
        try:
            clients = self.client.client_list()
        except redis.exceptions.ResponseError:
            return []  # we may not ask
        db = str(self.client.connection_pool.connection_kwargs.get('db') or 0)
        return sorted(one['addr'] for one in clients if (one['cmd'], one['db']) == ('brpop', db))

    # -- what workers hold -------------------------------------------------------

    def unacked_count(self) -> int:
        return int(self.client.hlen(self.unacked))

    def unacked_tags(self) -> list[bytes]:
        """The tags of what workers hold, in the order in which they got it."""
        found: dict[bytes, None] = {}
        at = 0
        while part := self.client.zrange(self.unacked_index, at, at + _SCANNED - 1):
            found.update(dict.fromkeys(part))
            at += _SCANNED
        # Some may have no time.
        found.update((tag, None) for tag, _ in self.client.hscan_iter(self.unacked, count=500))
        return list(found)


def _glob(text: str) -> str:
    """A text as SCAN takes it literally."""
    return re.sub(r'([][*?\\^])', r'\\\1', text)


def is_internal(queue: str) -> bool:
    """Whether a queue serves Celery's remote control or events."""
    return queue.endswith('.pidbox') or queue.startswith('celeryev')


# -- messages --------------------------------------------------------------------


def message_from(raw: Mapping[str, Any], turn: bool) -> tuple[dict[str, Any], str, str]:
    """A message of kombu's redis transport as any producer would send it.

    Args:
        raw: what it keeps.
        turn: priorities run the other way round where it goes.

    Returns:
        The message, its exchange and its routing key.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    headers, properties = dict(raw['headers']), dict(raw['properties'])
    body = raw['body']
    if properties.get('body_encoding') == 'base64':
        body = base64.b64decode(body)
    sent = properties.get('delivery_info') or {}
    headers.pop('redelivered', None)
    properties['priority'] = _turned(_priority(properties), turn)
    message = {
        'body': body,
        'content-type': raw.get('content-type'),
        'content-encoding': raw.get('content-encoding'),
        'headers': headers,
        'properties': properties,
    }
    return message, sent.get('exchange') or '', sent.get('routing_key') or ''


def message_for(job: JobInfo, turn: bool) -> tuple[int, bytes]:
    """A job as a message of kombu's redis transport, with its priority there.

    Raises:
        ReliableError: it cannot be read.
    """
    message = open_job(job)
    headers, properties = dict(message['headers']), dict(message['properties'])
    headers.pop('x-delivery-count', None)
    if job.state == 'delayed' and job.due is not None:
        headers['eta'] = datetime.fromtimestamp(job.due / 1000, UTC).isoformat()
    sent = properties['delivery_info']
    priority = _turned(min(job.priority, LOWEST), turn)
    properties |= {
        'delivery_tag': str(uuid.uuid4()),
        'delivery_info': {'exchange': sent['exchange'], 'routing_key': sent['routing_key']},
        'delivery_mode': properties.get('delivery_mode', 2),
        'priority': priority,
        'body_encoding': 'base64',
    }
    raw = {
        'body': base64.b64encode(message['body']).decode(),
        'content-encoding': message['content-encoding'],
        'content-type': message['content-type'],
        'headers': headers,
        'properties': properties,
    }
    return priority, json.dumps(raw).encode()


def _priority(properties: Mapping[str, Any]) -> int:
    try:
        return max(0, min(LOWEST, int(properties['priority'])))
    except (KeyError, TypeError, ValueError):
        return 0


def _turned(priority: int, turn: bool) -> int:
    """Where 9 is first, what was 0 becomes 9."""
    return LOWEST - priority if turn else priority


# -- one at a time ---------------------------------------------------------------


class Lock:
    """Lets one migration at a time work on a database.

    It ends by itself some seconds after its owner was killed, at once if that was on this host.
    Should an owner only have been held up, its next transaction is refused.

    Args:
        stock: where the lock is kept.
    """

    def __init__(self, stock: Stock) -> None:
        self._client, self._key = stock.client, stock.lock
        self._here = f'{socket.gethostname()}:{os.getpid()}:'
        self.token = self._here + secrets.token_hex(6)

    def take(self) -> None:
        """Takes the lock, after a while if it was left behind.

        Raises:
            WrongState: another migration is at work.
        """
        deadline = time.monotonic() + LOCK_LIFE + 1
        while not self._client.set(self._key, self.token, nx=True, px=LOCK_LIFE * 1000):
            if time.monotonic() > deadline:
                raise WrongState('another migration is at work on this database')
            self._bury()
            time.sleep(0.1)

    def _bury(self) -> None:
        """Removes the lock of a process of this host that has died."""
        with self._client.pipeline() as pipe:
            pipe.watch(self._key)
            held = (pipe.get(self._key) or b'').decode(errors='replace')
            host, _, rest = held.rpartition(':')[0].rpartition(':')
            if host == socket.gethostname() and rest.isdecimal() and not _lives(int(rest)):
                pipe.multi()
                pipe.delete(self._key)
                with contextlib.suppress(redis.exceptions.WatchError):
                    pipe.execute()

    def renew(self) -> None:
        """Says that the work goes on.

        Raises:
            WrongState: it took so long that another migration has begun.
        """
        with self._client.pipeline() as pipe:
            self.guard(pipe)
            pipe.multi()
            pipe.pexpire(self._key, LOCK_LIFE * 1000)
            self.commit(pipe)

    def guard(self, pipe: Any, *keys: str) -> None:
        """Watches the lock and other keys, so that :meth:`commit` of others fails."""
        pipe.watch(self._key, *keys)
        if pipe.get(self._key) != self.token.encode():
            raise WrongState('this migration was held up and has lost its turn; run it again')

    def commit(self, pipe: Any) -> None:
        """Ends a transaction that :meth:`guard` has begun.

        Raises:
            WrongState: somebody else has changed what it watches; nothing was changed.
        """
        try:
            pipe.execute()
        except redis.exceptions.WatchError:
            raise WrongState(
                'somebody else works on the same messages: a worker that should have stopped, '
                'or another migration; run this again when it has ended'
            ) from None

    def release(self) -> None:
        with contextlib.suppress(redis.exceptions.RedisError):
            if self._client.get(self._key) == self.token.encode():
                self._client.delete(self._key)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
