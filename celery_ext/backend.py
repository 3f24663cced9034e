"""Results on the same server: Celery's redis backend behind the broker's URLs."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend

from kombu_reliable.client import connect_client, connection_factory, connection_kwargs
from kombu_reliable.options import Options
from kombu_reliable.urls import parse_url

__all__ = ('ReliableBackend',)

#: What Celery's own settings say about connections has precedence over our defaults.
_OURS = frozenset({'retry', 'protocol', 'socket_timeout', 'socket_connect_timeout', 'client_name'})


class ReliableBackend(RedisBackend):
    """Celery's redis result backend for every URL form that the broker takes.

    Example:
        >>> Celery(broker='reliable+redis://localhost', backend='reliable+redis://localhost')
    """

    def __init__(self, url: str | None = None, **kwargs: Any) -> None:
        self._server = parse_url(url or 'reliable://')
        super().__init__(url=f'redis://localhost/{self._server.db}', **kwargs)
        self._adopt_server()
        self.url = self._server.format(self._server.password)

    def _adopt_server(self) -> None:
        """Replaces the address that the base class was given by the real one."""
        if self._server.kind == 'fakeredis':
            return
        options = Options.parse(self._server.query)
        ours = connection_kwargs(self._server, options)
        for name in ('host', 'port', 'connection_class'):
            self.connparams.pop(name, None)
        if self._server.kind not in ('tcp', 'tls'):
            for name in ('socket_connect_timeout', 'socket_keepalive'):
                self.connparams.pop(name, None)
        if self.connparams.get('driver_info') is not None:
            ours.pop('driver_info', None)
        for name, value in ours.items():
            if name not in _OURS and not (value is None and self.connparams.get(name)):
                self.connparams[name] = value
        self.connparams['connection_class'] = connection_factory(self._server)

    def _create_client(self, **params: Any) -> Any:
        if self._server.kind == 'fakeredis':
            return connect_client(self._server, Options())
        return super()._create_client(**params)

    def as_uri(self, include_password: bool = False) -> str:
        """The URL, masked unless asked otherwise."""
        return self.url if include_password else str(self._server)
