"""Broker and result URLs: parsed once, printed without their password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from kombu_reliable.errors import InvalidURL

__all__ = ('ALIASES', 'SCHEMES', 'ServerURL', 'parse_url')

#: What may follow ``reliable+``, and the kind of server that it names.
SCHEMES: dict[str, str] = {
    'redis': 'tcp',
    'valkey': 'tcp',
    'rediss': 'tls',
    'valkeys': 'tls',
    'unix': 'unix',
    'embedded': 'embedded',
    'fakeredis': 'fakeredis',
    'sentinel': 'sentinel',
    'cluster': 'cluster',
}

#: Names under which kombu knows the transport.
ALIASES = ('reliable', *(f'reliable+{scheme}' for scheme in SCHEMES))

_PLANNED = frozenset({'sentinel', 'cluster'})


@dataclass(frozen=True, slots=True)
class ServerURL:
    """Where a server is.

    Args:
        scheme: a key of :data:`SCHEMES`.
        host: host of a TCP or TLS server, name of a fakeredis server.
        port: port of a TCP or TLS server.
        path: socket of a unix server, data directory of an embedded one ('' for the default).
        db: number of the database.
        username: ACL user, if any.
        password: never part of ``str`` or ``repr``.
        query: transport options that the URL carries.

    Example:
        >>> str(parse_url('reliable+redis://:secret@localhost/1'))
        'reliable+redis://:**@localhost:6379/1'
    """

    scheme: str
    host: str = ''
    port: int = 6379
    path: str = ''
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return SCHEMES[self.scheme]

    def __str__(self) -> str:
        return self.format(password='**' if self.password else None)

    def format(self, password: str | None) -> str:
        """Spells the URL with the given password, or without one."""
        query = {name: '**' if name == 'password' else text for name, text in self.query.items()}
        if self.kind in ('tcp', 'tls'):
            host = f'[{self.host}]' if ':' in self.host else self.host
            location = f'{host}:{self.port}/{self.db}'
        else:
            location = quote(self.host) + quote(self.path)
            if self.db:
                query['db'] = str(self.db)
        tail = '&'.join(f'{quote(name)}={quote(text, "*")}' for name, text in query.items())
        return (
            f'reliable+{self.scheme}://{_user_info(self.username, password)}{location}'
            f'{"?" if tail else ""}{tail}'
        )

    def without_password(self) -> ServerURL:
        return replace(self, password=None)


def _user_info(username: str | None, password: str | None) -> str:
    if username is None and password is None:
        return ''
    secret = '' if password is None else f':{quote(password, "*")}'
    return f'{quote(username or "", "")}{secret}@'


def parse_url(url: str) -> ServerURL:
    """Parses a URL as users write it, with or without ``reliable+`` in front.

    Raises:
        InvalidURL: the URL makes no sense; the message never contains the password.
    """
    scheme, separator, rest = url.partition('://')
    scheme = scheme.removeprefix('reliable+')
    if scheme == 'reliable':
        scheme = 'redis'
    if not separator or scheme not in SCHEMES:
        raise InvalidURL(
            f'{scheme!r} is no scheme of this transport; '
            f'write one of {", ".join(f"reliable+{name}://" for name in SCHEMES)}'
        )
    if scheme in _PLANNED:
        raise InvalidURL(
            f'reliable+{scheme}:// is planned but not supported yet; '
            'use reliable+redis:// with the address of the primary'
        )
    try:
        parts = urlsplit(f'http://{rest}')
        port = parts.port or 6379
    except ValueError as error:
        raise InvalidURL(f'broken {scheme} URL: {_harmless(error)}') from None
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    kind = SCHEMES[scheme]
    db_text = query.pop('db', None) or query.pop('virtual_host', None)
    if kind in ('tcp', 'tls'):
        db_text = path.strip('/') or db_text
        path = ''
    elif kind == 'unix' and not path.strip('/'):
        raise InvalidURL('a unix URL names its socket: reliable+unix:///path/to/redis.sock')
    return ServerURL(
        scheme=scheme,
        host=unquote(parts.hostname or '') or ('localhost' if kind in ('tcp', 'tls') else ''),
        port=port,
        path=path.rstrip('/') if kind == 'embedded' else path,
        db=_database(db_text),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        query=query,
    )


def _database(text: str | None) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise InvalidURL(f'the database in the URL is {text!r}, not a number: use /0, /1, ...')
    return int(text)


def _harmless(error: ValueError) -> str:
    """urllib quotes what it could not read, and that may be part of a password."""
    return 'the port is not a number' if 'ort' in str(error) else 'it cannot be parsed'
