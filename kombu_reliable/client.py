"""From a URL to connections that neither retry, nor decode, nor wait for ever.

redis-py repeats a command whose reply was lost.  That would run a blocking pop twice and lose
its element, so retries are off everywhere; our scripts are repeated by those who know how.
"""

from __future__ import annotations

import inspect
import ssl
import threading
from typing import Any
from urllib.parse import unquote

import redis
from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.retry import Retry

from kombu_reliable.errors import InvalidURL
from kombu_reliable.options import Options
from kombu_reliable.urls import ServerURL

__all__ = ('connect_client', 'connection_factory', 'connection_kwargs', 'open_connection')

_CERT_REQS = {
    'required': ssl.CERT_REQUIRED, 'cert_required': ssl.CERT_REQUIRED,
    'optional': ssl.CERT_OPTIONAL, 'cert_optional': ssl.CERT_OPTIONAL,
    'none': ssl.CERT_NONE, 'cert_none': ssl.CERT_NONE,
}  # fmt: skip

_fake_servers: dict[str, Any] = {}
_fake_lock = threading.Lock()


def _uses_tls(url: ServerURL, options: Options) -> bool:
    """By the URL's scheme, or because TLS settings were given."""
    return url.kind == 'tls' or (url.kind == 'tcp' and options.ssl is not None)


def connection_factory(url: ServerURL, options: Options) -> type[AbstractConnection]:
    """The connection class for a URL."""
    if _uses_tls(url, options):
        return SSLConnection
    if url.kind == 'embedded':
        from kombu_reliable.embedded import EmbeddedConnection

        return EmbeddedConnection
    return Connection if url.kind == 'tcp' else UnixDomainSocketConnection


def _introduction() -> dict[str, Any]:
    """Arguments that spare the CLIENT SETINFO of each handshake."""
    known = inspect.signature(AbstractConnection.__init__).parameters
    if 'driver_info' in known:
        return {'driver_info': None}
    return {'lib_name': None, 'lib_version': None}


def _address(url: ServerURL) -> dict[str, Any]:
    if url.kind == 'embedded':
        from kombu_reliable import embedded

        directory = url.path or embedded.default_directory()
        return {'path': embedded.join(directory), 'directory': directory}
    if url.kind == 'unix':
        return {'path': url.path}
    return {'host': url.host, 'port': url.port}


def _tls(options: Options) -> dict[str, Any]:
    """``ssl_cert_reqs`` and friends, as kombu and redis-py spell them."""
    given = {
        name if name.startswith('ssl_') else f'ssl_{name}': value
        for name, value in (options.ssl or {}).items()
    }
    reqs = given.get('ssl_cert_reqs', 'required')
    if isinstance(reqs, str):
        if reqs.lower() not in _CERT_REQS:
            raise InvalidURL(f'ssl_cert_reqs={reqs!r} must be required, optional or none')
        reqs = _CERT_REQS[reqs.lower()]
    given['ssl_cert_reqs'] = reqs
    if reqs is not ssl.CERT_REQUIRED:
        given.setdefault('ssl_check_hostname', False)
    elif isinstance(given.get('ssl_check_hostname'), str):
        given['ssl_check_hostname'] = given['ssl_check_hostname'].lower() != 'false'
    return {
        name: unquote(value) if isinstance(value, str) else value for name, value in given.items()
    }


def connection_kwargs(url: ServerURL, options: Options) -> dict[str, Any]:
    """Arguments for :func:`connection_factory`'s class."""
    kwargs: dict[str, Any] = {
        'db': url.db,
        'socket_timeout': options.socket_timeout,
        'protocol': 2,
        'retry': Retry(NoBackoff(), 0),
        'client_name': options.client_name,
        **_introduction(),
        **_address(url),
    }
    if url.kind in ('tcp', 'tls'):
        kwargs['socket_connect_timeout'] = options.socket_connect_timeout
        kwargs['socket_keepalive'] = options.socket_keepalive
        kwargs['socket_keepalive_options'] = options.socket_keepalive_options
    if _uses_tls(url, options):
        kwargs.update(_tls(options))
    if options.credential_provider is not None:
        kwargs['credential_provider'] = options.credential_provider
    else:
        kwargs['username'] = url.username or options.username
        kwargs['password'] = url.password or options.password
    return kwargs


def open_connection(
    url: ServerURL, options: Options, *, connect_timeout: float | None = None
) -> AbstractConnection:
    """Opens one connection, for code that speaks to the server by itself.

    Args:
        url: the server.
        options: timeouts, credentials and TLS.
        connect_timeout: a shorter limit than the options', in seconds; also for each answer of
            the server until the connection is ready.
    """
    kwargs = connection_kwargs(url, options)
    if connect_timeout is not None:
        for name in ('socket_connect_timeout', 'socket_timeout'):
            if name in kwargs:
                kwargs[name] = min(connect_timeout, kwargs[name])
    connection = connection_factory(url, options)(**kwargs)
    connection.connect()
    # A kernel accepts connections for a server that hangs.
    connection.send_command('PING')
    connection.read_response()
    connection.socket_timeout = options.socket_timeout
    connection._sock.settimeout(options.socket_timeout)  # type: ignore[attr-defined]
    return connection


def connect_client(url: ServerURL, options: Options) -> redis.Redis:
    """A client with a pool of its own; it connects when it is first used."""
    if url.kind == 'fakeredis':
        return _fake_client(url)
    kwargs = connection_kwargs(url, options)
    pool = redis.ConnectionPool(
        connection_class=connection_factory(url, options),
        max_connections=options.max_connections,
        health_check_interval=options.health_check_interval,
        **kwargs,
    )
    return redis.Redis(connection_pool=pool)


def _fake_client(url: ServerURL) -> redis.Redis:
    try:
        import fakeredis
    except ImportError:
        raise InvalidURL(
            "reliable+fakeredis:// needs fakeredis: pip install 'fakeredis[lua]'"
        ) from None
    with _fake_lock:
        server = _fake_servers.setdefault(url.host, fakeredis.FakeServer())
    client: redis.Redis = fakeredis.FakeRedis(server=server, db=url.db, protocol=2)
    return client
