"""A sentinel that watches a server of the tests: the same program, told to be one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import redis
from redis.sentinel import Sentinel

from tests.support.servers import HOST, Server
from tests.support.wait import wait_for

MASTER = 'mymaster'


class SentinelServer(Server):
    """Watches *master* under the name :data:`MASTER`."""

    def __init__(self, master: Server) -> None:
        super().__init__('valkey')
        self._master = master

    def _settings(self, port: int) -> dict[str, str | int]:
        known = super()._settings(port)
        settings = {name: known[name] for name in ('bind', 'port', 'unixsocket', 'dir')}
        return settings | {'sentinel monitor': f'{MASTER} {HOST} {self._master.port} 1'}

    def _command(self, config: str) -> list[str]:
        return [*super()._command(config), '--sentinel']


@contextlib.contextmanager
def watched(master: Server) -> Iterator[str]:
    """The URL of a sentinel that has found *master*, as kombu's transport takes it."""
    with SentinelServer(master) as sentinel:

        def found() -> Any:
            with contextlib.suppress(redis.RedisError):
                return Sentinel([(HOST, sentinel.port)]).discover_master(MASTER)

        wait_for(found, what='master known to the sentinel')
        yield f'sentinel://{HOST}:{sentinel.port}/0'
