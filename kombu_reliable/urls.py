"""Broker and result URLs: parsed once, printed without their password."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from kombu_reliable.errors import InvalidURL
from kombu_reliable.masking import MASK, SECRETS

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

#: What no name of a host contains.
_NOT_IN_HOSTS = frozenset(' \t,;"\'<>\\^`{|}')


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
        return self.format(password=MASK if self.password else None)

    def format(self, password: str | None, *, secrets: bool = False) -> str:
        """Spells the URL with the given password, or without one.

        Args:
            password: what to write as the password.
            secrets: spell the secrets of the query as well; they are masked otherwise.
        """
        query = {
            name: MASK if name in SECRETS and not secrets else text
            for name, text in self.query.items()
        }
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
        # Without a scheme the text may hold anything, even a password.
        what = repr(scheme) if separator else 'what stands there'
        raise InvalidURL(
            f'{what} is no scheme of this transport; '
            f'write one of {", ".join(f"reliable+{name}://" for name in SCHEMES)}'
        )
    if scheme in _PLANNED:
        raise InvalidURL(
            f'reliable+{scheme}:// is planned but not supported yet; '
            'use reliable+redis:// with the address of the primary'
        )
    try:
        parts = urlsplit(f'http://{rest}')
        host = unquote(parts.hostname or '')
        port = parts.port
    except ValueError:
        # The error of urllib quotes what it could not read, perhaps a part of a password.
        raise InvalidURL(_what_is_wrong(scheme, rest)) from None
    if port == 0 or parts.fragment or not _NOT_IN_HOSTS.isdisjoint(host):
        raise InvalidURL(_what_is_wrong(scheme, rest))
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    path = unquote(parts.path)
    kind = SCHEMES[scheme]
    db_text = query.pop('db', None) or query.pop('virtual_host', None)
    if kind in ('tcp', 'tls'):
        in_path = path.strip('/')
        if '@' in in_path:
            raise InvalidURL(_what_is_wrong(scheme, rest))
        if in_path and db_text and in_path != db_text:
            raise InvalidURL(f'the URL names two databases, {in_path!r} and {db_text!r}')
        db_text = in_path or db_text
        path = ''
    elif kind == 'unix' and not path.strip('/'):
        raise InvalidURL('a unix URL names its socket: reliable+unix:///path/to/redis.sock')
    username, password = query.pop('username', None), query.pop('password', None)
    return ServerURL(
        scheme=scheme,
        host=host or ('localhost' if kind in ('tcp', 'tls') else ''),
        port=port or 6379,
        path=path.rstrip('/') if kind == 'embedded' else path,
        db=_database(db_text),
        username=unquote(parts.username) if parts.username else username,
        password=unquote(parts.password) if parts.password else password,
        query=query,
    )


def _database(text: str | None) -> int:
    if not text:
        return 0
    if not text.isdecimal() or len(text) > 9:
        raise InvalidURL(f'the database in the URL is {text!r}, not a number: use /0, /1, ...')
    return int(text)


def _what_is_wrong(scheme: str, rest: str) -> str:
    """Says what urllib could not read, without quoting any of it."""
    location = rest.partition('/')[0].rpartition('@')[2]
    if ',' in location:
        return (
            f'the {scheme} URL names several hosts; write one URL for each and separate the '
            "URLs with ';'"
        )
    return (
        f'broken {scheme} URL: a host, a port from 1 to 65535 and a database are expected, as in '
        f'reliable+{scheme}://:password@host:6379/0; special characters of a password are '
        'percent-encoded (/ is %2F, # is %23, ? is %3F, ; is %3B, @ is %40)'
    )
