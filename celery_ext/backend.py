"""Results on the same server: Celery's redis backend behind the broker's URLs."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend

from kombu_reliable.client import connect_client, connection_factory, connection_kwargs
from kombu_reliable.options import Options
from kombu_reliable.urls import parse_url

__all__ = ('ReliableBackend',)

#: What Celery sets for itself: results may wait and retry where the transport must not.
_CELERYS = frozenset(
    {'retry', 'protocol', 'socket_timeout', 'socket_connect_timeout', 'client_name', 'driver_info'}
)
#: What belongs to an address or to its security, and goes with the base class's address.
_ADDRESS = ('host', 'port', 'path', 'ssl_', 'connection_class', 'socket_connect', 'socket_keep')


class ReliableBackend(RedisBackend):
    """Celery's redis result backend for every URL form that the broker takes.

    Example:
        >>> Celery(broker='reliable+redis://localhost', backend='reliable+redis://localhost')
    """

    connparams: dict[str, Any]

    def __init__(self, url: str | None = None, **kwargs: Any) -> None:
        self._server = parse_url(url or 'reliable://')
        super().__init__(url=f'redis://localhost/{self._server.db}', **kwargs)
        self._adopt_server()
        self.url = self._server.format(self._server.password, secrets=True)

    def _adopt_server(self) -> None:
        """Replaces the address that the base class was given by the real one."""
        if self._server.kind == 'fakeredis':
            return
        given = dict(self._server.query)
        tls = self.app.conf.get('redis_backend_use_ssl')
        options = Options.parse({**({'ssl': tls} if tls else {}), **given})
        ours = connection_kwargs(self._server, options)
        params = {
            name: value
            for name, value in self.connparams.items()
            if name in ours or not name.startswith(_ADDRESS)
        }
        params.update(
            (name, value)
            for name, value in ours.items()
            if name not in _CELERYS and not (value is None and params.get(name))
        )
        params['connection_class'] = connection_factory(self._server, options)
        self.connparams = params

    def _create_client(self, **params: Any) -> Any:
        if self._server.kind == 'fakeredis':
            return connect_client(self._server, Options())
        return super()._create_client(**params)

    def as_uri(self, include_password: bool = False) -> str:
        """The URL, masked unless asked otherwise."""
        return self.url if include_password else str(self._server)
