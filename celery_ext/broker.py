"""Tells whether an app talks to kombu_reliable, and says once what does nothing elsewhere."""

from __future__ import annotations

import warnings
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from celery_ext.errors import ForeignBroker, InertWarning

__all__ = ('is_ours', 'require', 'speaks_ours', 'warn_inert')

_OURS = 'kombu_reliable.transport:Transport'


def is_ours(app: Any) -> bool:
    """Whether the app publishes to kombu_reliable; decided by its broker URL, without I/O."""
    url = app.conf.broker_write_url
    if isinstance(url, list | tuple):
        url = url[0] if url else None
    scheme = str(url or '').split('://')[0]
    alias = TRANSPORT_ALIASES.get(app.conf.broker_transport or scheme, '')
    return bool(alias == _OURS)


def speaks_ours(connection: Any) -> bool:
    """Whether a kombu connection leads to kombu_reliable."""
    return getattr(connection.get_transport_cls(), 'driver_name', '') == 'kombu_reliable'


def require(app: Any, what: str, connection: Any = None) -> None:
    """Raises :class:`ForeignBroker` unless the app, or the connection, is on kombu_reliable."""
    if is_ours(app) if connection is None else speaks_ours(connection):
        return
    raise ForeignBroker(
        f'{what} needs kombu_reliable as broker: write "reliable+" in front of the broker URL '
        f'of {app.main or "the app"}'
    )


def warn_inert(app: Any, why: str, what: str) -> None:
    """Warns, once per app and reason, that something of ours does nothing."""
    warned = app.__dict__.setdefault('celery_ext_warned', set())
    if why not in warned:
        warned.add(why)
        warnings.warn(f'{what} of celery_ext: no effect {why}', InertWarning, stacklevel=3)
