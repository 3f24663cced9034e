"""The kombu transport: from a connection's URL to channels that share a poller."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any
from urllib.parse import quote

import redis
import redis.exceptions
from kombu.exceptions import OperationalError
from kombu.transport import virtual
from kombu.utils.url import maybe_sanitize_url

from kombu_reliable import hooks
from kombu_reliable.errors import ConnectionLost, InvalidURL
from kombu_reliable.masking import SECRETS, Masked, mask_secrets, unmask
from kombu_reliable.options import Options
from kombu_reliable.store import Store
from kombu_reliable.transport.channel import Channel
from kombu_reliable.transport.endpoint import endpoint_for
from kombu_reliable.transport.fanout import FanoutBinding, FanoutReceiver
from kombu_reliable.transport.line import LOST
from kombu_reliable.transport.poller import Poller
from kombu_reliable.transport.queues import Lifetime
from kombu_reliable.transport.reactor import Reactor
from kombu_reliable.transport.routing import Routes
from kombu_reliable.urls import ServerURL, parse_url

__all__ = ('Transport', 'open_store')


class Transport(virtual.Transport):
    """Leased delivery on Redis and Valkey.

    Args:
        client: the kombu connection; its URL says where the server is.

    Raises:
        InvalidURL: the URL makes no sense.
        InvalidOption: a transport option is unknown or has an impossible value.
    """

    Channel = Channel

    can_parse_url = True
    polling_interval = None
    default_port = 6379
    #: Celery asks for this name before it uses fanout for events, mingle, gossip,
    #: and ``worker_disable_prefetch``.
    driver_type = 'redis'
    driver_name = 'kombu_reliable'

    #: kombu repeats a publish on these, for ever if nobody set a limit.  Its own
    #: ``InconsistencyError`` (no queue is bound) must not be among them.
    recoverable_connection_errors = (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        ConnectionLost,
        OSError,
    )
    #: Celery connects anew on these.  The last one is what a publish raises that must not wait.
    connection_errors = (
        *virtual.Transport.connection_errors,
        *recoverable_connection_errors,
        OperationalError,
    )
    channel_errors = (*virtual.Transport.channel_errors, redis.exceptions.ResponseError)
    recoverable_channel_errors = ()

    implements = virtual.Transport.implements.extend(
        asynchronous=True,
        batch_publish=True,
        exchange_type=frozenset(['direct', 'topic', 'fanout']),
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        self.url = _adopt(client)
        options = Options.parse(
            {
                **(client.transport_options or {}),
                **_tls_of(client),
                **self.url.query,
            }
        )
        self.endpoint = endpoint_for(self.url, options)
        if self.url.kind == 'fakeredis':
            # A server inside this process has nothing that an event loop could wait for.
            self.implements = self.implements.extend(asynchronous=False)
        super().__init__(client, **kwargs)
        self.fanout_bindings: dict[str, FanoutBinding] = {}
        #: How the queues that were declared here are to live.
        self.lifetimes: dict[str, Lifetime] = {}
        #: Types of exchanges that others have declared.
        self.exchange_kinds: dict[str, str] = {}
        self.poller = Poller(self.endpoint)
        self.fanout = FanoutReceiver(self.endpoint)
        self.reactor = Reactor([self.fanout, self.poller])

    @cached_property
    def routes(self) -> Routes:
        """Where messages to named exchanges go."""
        return Routes(self.endpoint.store)

    @property
    def consumer_name(self) -> str:
        """The name under which this connection holds messages."""
        return self.poller.worker

    def driver_version(self) -> str:
        return str(redis.__version__)

    def as_uri(self, uri: str, include_password: bool = False, mask: str = '**') -> str:
        password = self.url.password
        if password is not None and not include_password:
            password = mask
        return self.url.format(password)

    def establish_connection(self) -> Transport:
        """Makes sure that the server can be used.

        Raises:
            AccessRefused, UnsupportedServer, LayoutError: what waiting cannot mend.
        """
        self.endpoint.verify()
        return self

    def verify_connection(self, connection: Any) -> bool:
        return connection is self

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        self.reactor.drain(timeout, partial(hooks.stopping, self))

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.reactor.register(loop)
        self.endpoint.serve_in_loop(True)

    def unregister_from_event_loop(self, connection: Any, loop: Any) -> None:
        self._leave_loop()
        self.reactor.unregister()

    def _leave_loop(self) -> None:
        if self.reactor.in_loop:
            self.endpoint.serve_in_loop(False)

    def close_connection(self, connection: Any) -> None:
        for channel in list(self.channels):
            channel.close()
        self.poller.close()
        for queue, binding in self.fanout_bindings.items():
            with contextlib.suppress(*LOST):  # the entry ends by itself
                self.fanout.stop_listening(binding.exchange, queue)
        self.fanout.close()
        self.endpoint.attendance.leave_all(self)
        self._leave_loop()
        self.reactor.close()

    def _collect(self, connection: Any) -> None:
        """Forgets without a word to the server: in a forked child its sockets are not ours."""
        attendance = self.endpoint.attendance
        attendance.drop(self)
        for channel in self.channels:
            attendance.drop(channel)
            channel.forget()
        self.channels.clear()
        self.poller.forget()
        self.fanout.close()
        self._leave_loop()
        self.reactor.close()


def open_store(connection: Any) -> Store:
    """The store behind a kombu connection; it connects when it is first used.

    Args:
        connection: a :class:`kombu.Connection`, open or not.  The store goes on without it.

    Raises:
        InvalidURL: it is not a connection of this package.

    Example:
        >>> store = open_store(app.connection_for_write())
        >>> store.jobs.counts('celery').ready
        3
    """
    transport = connection.transport
    if not isinstance(transport, Transport):
        raise InvalidURL(f'{connection.as_uri()} is not a broker of kombu_reliable')
    store: Store = transport.endpoint.store
    return store


def _tls_of(client: Any) -> dict[str, Any]:
    """Celery's ``broker_use_ssl``: True, or a dict of settings."""
    if not client.ssl:
        return {}
    return {'ssl': client.ssl if isinstance(client.ssl, dict) else {}}


def _adopt(client: Any) -> ServerURL:
    """Reads a connection's URL and normalises the connection.

    kombu and Celery print, log and send around what a connection is made of.  Afterwards the
    password stands in ``client.password`` alone, which they mask, every other secret is masked
    by us, and the alternates survive kombu's ``switch``.
    """
    url = parse_url(_spelled(client))
    secrets = {name: url.query[name] for name in url.query if name in SECRETS}
    url = replace(
        url,
        username=url.username or client.userid or None,
        password=url.password or client.password or None,
        query={name: text for name, text in url.query.items() if name not in secrets},
    )
    client.uri_prefix = 'reliable'
    client.transport_cls = 'reliable'
    client.hostname = url.format(None).removeprefix('reliable+')
    client.userid, client.password = url.username, url.password
    client.virtual_host = str(url.db)
    client.port = url.port if url.kind in ('tcp', 'tls') else None
    client.transport_options = mask_secrets({**(client.transport_options or {}), **secrets})
    if isinstance(client.ssl, dict):
        client.ssl = mask_secrets(client.ssl)
    if client.alt and not isinstance(client.cycle, _Alternates):
        client.cycle = _Alternates(client)
    return url


def _spelled(client: Any) -> str:
    hostname = client.hostname or ''
    if '://' in hostname:
        return str(hostname)
    # kombu's ``switch`` takes alternates apart; ``_Alternates`` saved their query.
    scheme = str(client.transport_cls).removeprefix('reliable').removeprefix('+') or 'redis'
    user = ''
    if client.userid or client.password:
        user = f'{quote(client.userid or "", "")}:{quote(client.password or "", "")}@'
    port = f':{client.port}' if client.port else ''
    path = client.virtual_host or ''
    return f'{scheme}://{user}{hostname}{port}/{path.lstrip("/")}'


class _Alternates:
    """The turns of a connection's failover URLs.

    kombu shows the list that a connection holds, so only masked URLs stay there, and the turns
    yield the real ones.

    kombu hands each part of a URL's query to a function that knows none of them.  Written as
    part of the path, the query comes back in one piece.

    Raises:
        InvalidURL: an alternate makes no sense; better said now than in an outage.
    """

    def __init__(self, client: Any) -> None:
        urls = [str(unmask(alternate)) for alternate in client.alt]
        client.alt = [Masked(_shown(url), url) for url in urls]
        self._turns: Iterator[str] = client.failover_strategy(
            [url.replace('?', '%3F') for url in urls]
        )
        next(self._turns)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._turns)


def _shown(url: str) -> str:
    if url.startswith('reliable'):
        return str(parse_url(url))
    return str(maybe_sanitize_url(url))
