"""A database of its own, those who use it through a proxy, and somebody who looks on."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any

import redis
from celery import Celery
from kombu import Connection, pools

import celery_ext
from celery_ext import Extension, unique
from kombu_reliable import Verdict, open_store
from kombu_reliable.keys import Keys
from kombu_reliable.store import Store
from kombu_reliable.types import Delivery, Settlement
from tests.faults.kinds import TIMEOUT
from tests.support.proxy import Proxy
from tests.support.servers import Server

__all__ = ('LEASE', 'QUEUE', 'World', 'open_world')

LEASE = 1.0
QUEUE = 'celery'

#: What a task of the tests' own is called.
TASK = 'faults.task'

# Making an app touches what Celery keeps for all apps of a process.
_making = threading.Lock()


class World:
    """Everything that an operation may need.  Those whose names begin with ``far`` do not go
    through the proxy: they prepare, and look at what came of it.

    Args:
        server: the server.
        database: the number of an empty database of it.
        proxy: stands between.
        timeout: the socket timeout of those who go through the proxy.
    """

    def __init__(
        self, server: Server, database: int, proxy: Proxy, timeout: float = TIMEOUT
    ) -> None:
        self.timeout = timeout
        self.server = server
        self.database = database
        self.proxy = proxy
        self.keys = Keys(database)
        self._stack = contextlib.ExitStack()

    # -- through the proxy -------------------------------------------------------

    @property
    def url(self) -> str:
        return f'reliable+{self.proxy.url(self.database)}'

    @cached_property
    def options(self) -> dict[str, Any]:
        timeouts = dict.fromkeys(('socket_timeout', 'socket_connect_timeout'), self.timeout)
        return {'lease': LEASE, **timeouts}

    @cached_property
    def connection(self) -> Connection:
        """Not connected yet."""
        return self._connect(self.url, self.options)

    @cached_property
    def publishing(self) -> Connection:
        """Another one to the same server, for those who consume and publish."""
        return self._connect(self.url, self.options)

    @property
    def store(self) -> Store:
        """Not connected yet."""
        return open_store(self.connection)

    @cached_property
    def ext(self) -> Extension:
        """Connected."""
        extension = self.unopened()
        assert extension.store.now()
        return extension

    def unopened(self) -> Extension:
        """Not connected yet."""
        return self._install(self.url, self.options)

    def have_published(self) -> None:
        """Has a connection from which the program has published before."""
        with self.ext.app.producer_pool.acquire(block=True) as producer:
            producer.connection.ensure_connection()
            assert producer.channel

    # -- past the proxy ----------------------------------------------------------

    @cached_property
    def client(self) -> redis.Redis:
        client = self.server.client(db=self.database)
        self._stack.callback(client.close)
        return client

    @property
    def far_url(self) -> str:
        return f'reliable+{self.server.url(self.database)}'

    @cached_property
    def far_connection(self) -> Connection:
        return self._connect(self.far_url, {'lease': LEASE})

    @property
    def far(self) -> Store:
        return open_store(self.far_connection)

    @cached_property
    def far_ext(self) -> Extension:
        return self._install(self.far_url, {'lease': LEASE})

    # -- how ---------------------------------------------------------------------

    def _connect(self, url: str, options: dict[str, Any]) -> Connection:
        connection = Connection(url, transport_options=dict(options))
        self._stack.callback(_quietly, connection.release)
        return connection

    def _install(self, url: str, options: dict[str, Any]) -> Extension:
        with _making:
            app = Celery(f'faults-{self.database}', broker=url, backend=url, set_as_current=False)
            app.conf.update(
                broker_transport_options=dict(options),
                redis_socket_timeout=self.timeout,
                redis_socket_connect_timeout=self.timeout,
            )
            extension = celery_ext.install(app)
            _define_tasks(app)
            app.finalize()
        self._stack.callback(_quietly, lambda: _close_app(app))
        return extension

    # -- what there was before ---------------------------------------------------

    def have(self, *ids: str, **options: Any) -> None:
        """Publishes tasks."""
        for id in ids:
            self.send(TASK, id, task_id=id, **options)

    def send(self, name: str, *args: Any, **options: Any) -> None:
        """Publishes a task."""
        with self.far_connection.Producer() as producer:
            _drafts().tasks[name].apply_async(args, producer=producer, **options)

    def lease(self, count: int = 1, queue: str = QUEUE, far: bool = True) -> list[Delivery]:
        """Claims what is ready; nobody renews it."""
        store = self.far if far else self.store
        call = store.operations.claim('host:1:x', f't{time.monotonic_ns()}', count, [queue])
        deliveries = list(store.run(call).deliveries)
        assert len(deliveries) == count
        return deliveries

    def end(self, delivery: Delivery, verdict: Verdict, detail: str = '') -> None:
        settlement = Settlement(verdict, delivery.queue, delivery.id, delivery.token, detail)
        self.far.run(self.far.operations.settle([settlement]))

    def dead(self, *ids: str, **options: Any) -> None:
        """Has tasks that have failed."""
        self.have(*ids, **options)
        detail = '{"reason": "error", "type": "ValueError", "message": "no", "group": "g"}'
        for delivery in self.lease(len(ids), options.get('queue', QUEUE)):
            self.end(delivery, Verdict.FAIL, detail)

    def done(self, *ids: str, **options: Any) -> None:
        """Has tasks that have completed and are kept."""
        self.have(*ids, tags=['kept'], **options)
        for delivery in self.lease(len(ids)):
            self.end(delivery, Verdict.ACK)

    def close(self) -> None:
        self._stack.close()


@cache
def _drafts() -> Celery:
    """An app that knows the tasks, and publishes what it is told to whom it is told."""
    with _making:
        app = Celery('drafts', broker='reliable+redis://', set_as_current=False)
        app.conf.task_ignore_result = True
        celery_ext.install(app)
        _define_tasks(app)
        app.finalize()
        return app


def _define_tasks(app: Celery) -> None:
    @app.task(name=TASK, shared=False)
    def plain(value: Any) -> Any:
        return value

    for conflict in ('skip', 'raise', 'replace'):

        @app.task(name=f'faults.{conflict}', shared=False)
        @unique(key='{value}', on_conflict=conflict)
        def one(value: Any) -> Any:
            return value


def _close_app(app: Celery) -> None:
    consumer = getattr(app.backend, 'result_consumer', None)
    if consumer is not None:
        consumer.stop()
        consumer._pubsub = None
    with _making:
        found = [
            dict.pop(group, number)
            for group in (pools.producers, pools.connections)
            for number, pool in list(group.items())
            if _belongs(pool, app)
        ]
        app.close()
    for pool in found:
        pool.force_close_all()


def _belongs(pool: Any, app: Celery) -> bool:
    """Whether a pool of kombu's, which are those of the whole process, is this app's."""
    connections = getattr(pool, 'connections', pool)
    return bool(connections.connection.as_uri() == app.conf.broker_url.partition('?')[0])


def _quietly(close: Any) -> None:
    """What is closed here may have lost its server."""
    with contextlib.suppress(Exception):
        close()


@contextlib.contextmanager
def open_world(server: Server, database: int, timeout: float = TIMEOUT) -> Iterator[World]:
    """An empty database with everything that an operation may need."""
    with server.client(db=database) as client:
        client.flushdb()
    with Proxy(('127.0.0.1', server.port)) as proxy:
        world = World(server, database, proxy, timeout)
        try:
            yield world
        finally:
            world.proxy.heal()
            world.close()
