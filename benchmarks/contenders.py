"""The transports that are compared, and what of them this machine has."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass, field
from typing import Any

from kombu import Connection

__all__ = ('BASELINE', 'OURS', 'PEERS', 'Contender', 'Missing', 'contenders')

BASELINE = 'kombu redis'
OURS = 'reliable'


class Missing(Exception):
    """A peer is not installed; the message says how to get it."""


@dataclass(frozen=True)
class Contender:
    """A transport on a broker."""

    name: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    #: Whether it keeps its messages in the benchmark's own server.
    on_redis: bool = True
    #: A module whose import registers the transport.
    module: str | None = None
    #: Whether its app has celery_ext installed.
    extension: bool = False
    #: Whether its workers count then.
    stats: bool = True
    #: Whether its tasks are tracked and have two tags; needs the extension.
    marked: bool = False

    def connection(self) -> Connection:
        if self.module:
            importlib.import_module(self.module)
        return Connection(self.url, transport_options=self.options)


def contenders(port: int, peers: list[str]) -> list[Contender]:
    """kombu's redis transport, ours, and the peers asked for, on the server at ``port``.

    Raises:
        Missing: a peer is not installed.
    """
    place = f'127.0.0.1:{port}/0'
    return [
        Contender(BASELINE, f'redis://{place}'),
        Contender(OURS, f'reliable+redis://{place}', module='kombu_reliable'),
        *(PEERS[peer](place) for peer in peers),
    ]


def _redis_plus(place: str) -> Contender:
    module = 'celery_redis_plus'
    if importlib.util.find_spec(module) is None:
        raise Missing('redis-plus is not installed: pip install celery-redis-plus (Python 3.13)')
    return Contender('redis-plus', f'valkey://{place}', module=module)


def _rabbitmq(place: str) -> Contender:
    url = os.environ.get('BENCH_RABBITMQ', 'amqp://guest:guest@127.0.0.1:5672//')
    try:
        with Connection(url, connect_timeout=3) as connection:
            connection.connect()
    except Exception as error:
        raise Missing(
            f'no RabbitMQ answers ({error}): start one, or name its URL in BENCH_RABBITMQ '
            '(default: amqp://guest:guest@127.0.0.1:5672//); its queue "celery" is purged'
        ) from None
    return Contender('rabbitmq', url, on_redis=False)


PEERS = {'redis-plus': _redis_plus, 'rabbitmq': _rabbitmq}
