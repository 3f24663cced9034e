"""Looks once at a server: is it new enough, and does it keep what it is given?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import redis
import redis.exceptions

from kombu_reliable.errors import UnsupportedServer
from kombu_reliable.urls import ServerURL

__all__ = ('check_version', 'examine')

logger = logging.getLogger('kombu_reliable')

OLDEST_REDIS = (6, 2)
OLDEST_VALKEY = (7, 2)

#: Servers whose eviction policy was complained about.
_warned: set[str] = set()


def examine(client: redis.Redis, url: ServerURL) -> None:
    """Refuses a server that is too old, and warns about one that may throw messages away.

    A user who may not ask is let in: the scripts will tell if a command is missing.

    Raises:
        UnsupportedServer: the server is too old.
    """
    try:
        check_version(client.info('server'))
        policy = client.info('memory').get('maxmemory_policy', 'noeviction')
    except redis.exceptions.NoPermissionError as error:
        logger.info('the version of the server is not checked: %s', error)
        return
    if policy != 'noeviction' and str(url) not in _warned:
        _warned.add(str(url))
        logger.warning(
            'maxmemory-policy of %s is %s: when its memory is full, the server may delete messages '
            'and their records instead of refusing new ones, and tasks are lost; '
            'run CONFIG SET maxmemory-policy noeviction and put it into its configuration file',
            url, policy,
        )  # fmt: skip


def check_version(info: Mapping[str, Any]) -> None:
    """Looks at what ``INFO server`` says.

    Raises:
        UnsupportedServer: the server is too old.
    """
    if 'valkey_version' in info:
        name, version, oldest = 'Valkey', str(info['valkey_version']), OLDEST_VALKEY
    else:
        name, version, oldest = 'Redis', str(info.get('redis_version', '')), OLDEST_REDIS
    numbers = version.split('.')[:2]
    if not all(part.isdecimal() for part in numbers):
        return  # a server with versions of its own; the scripts will tell
    if tuple(map(int, numbers)) < oldest:
        raise UnsupportedServer(
            f'the server is {name} {version}; at least {".".join(map(str, oldest))} is needed'
        )
