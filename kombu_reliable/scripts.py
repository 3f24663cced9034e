"""Loads the Lua scripts and turns calls of them into commands and values.

An operation is one file under ``lua/ops``.  It names what it needs with comment lines
``-- @include <file of lua/lib>``; every file is included once, before its first user.
The names of :data:`kombu_reliable.keys.FAMILIES` that a script uses are declared at its top.

Lua makes each function of a script anew at each call, and with cold caches that costs as much as
what the functions do.  ``-- @defer <file>: <name>, <name>`` includes a file whose functions, of
which these are used elsewhere, are made when one of them is first called.  All that is deferred
stands in one function, ``rare``, which is made where the first of these lines stands, and shares no
constants with the rest: a call that needs none of it makes a single function, or none.

``-- @embed <operation>`` makes a whole operation a function of that name, which takes what the
operation takes as its ARGV and returns its reply.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Generic, NamedTuple, TypeVar

import redis.exceptions

from kombu_reliable.errors import (
    AccessRefused,
    ConnectionLost,
    LayoutError,
    ReliableError,
    ServerFull,
)
from kombu_reliable.keys import FAMILIES, LAYOUT
from kombu_reliable.wire import Argument, pack, packed_words

__all__ = (
    'Call',
    'Script',
    'Sources',
    'all_scripts',
    'packaged',
    'script',
    'translate',
    'translating',
)

T = TypeVar('T')

_INCLUDE = re.compile(r'^-- @include (\w+)$', re.MULTILINE)
_EMBED = re.compile(r'^-- @embed (\w+)$', re.MULTILINE)
_CAPITALS = re.compile(r'\b[A-Z_]+\b')
_COMMENT = re.compile(r'^ *--.*\n', re.MULTILINE)
_FUNCTION = re.compile(r'^local function (\w+)', re.MULTILINE)
_DEFER = re.compile(r'^-- @defer (\w+): (\w+(?:, \w+)*)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """One operation: its Lua text and the digest by which a server knows it."""

    name: str
    text: str
    sha: str


class Call(NamedTuple, Generic[T]):
    """One call of a script: the command to send and how to read its reply.

    Blocking and event-driven code send the same calls, so an operation's encoding exists once.

    Args:
        script: the operation.
        meta: the ``meta`` key of the shard; the script derives all others from it.
        args: arguments behind the injected time.
        decode: turns the raw reply into a value.
    """

    script: Script
    meta: str
    args: tuple[Argument, ...]
    decode: Callable[[Any], T]
    now: str = ''

    def command(self) -> tuple[Argument, ...]:
        return ('EVALSHA', self.script.sha, 1, self.meta, self.now, *self.args)

    def packed(self) -> bytes:
        """The command as it goes over the wire."""
        head, beginning = _beginning(self.script.sha, self.meta)
        count, words = packed_words((self.now, *self.args))
        return b'*%d\r\n%b%b' % (head + count, beginning, words)

    def introduced(self) -> bytes:
        """The same with the script itself, for a server that does not know it yet."""
        return pack(('EVAL', self.script.text, 1, self.meta, self.now, *self.args))


@lru_cache(256)
def _beginning(sha: str, meta: str) -> tuple[int, bytes]:
    return packed_words(('EVALSHA', sha, 1, meta))


#: What a script defers: names of files, and of their functions, with commas between.
Deferred = list[tuple[str, str]]
#: Where the files are: from a folder, ``ops`` or ``lib``, and a name to the text.
Sources = Callable[[str, str], str]


@cache
def packaged(folder: str, name: str) -> str:
    """The files of this package."""
    return files('kombu_reliable').joinpath('lua', folder, f'{name}.lua').read_text('utf-8')


def _included(read: Sources, text: str, done: set[str], open_: tuple[str, ...]) -> Iterator[str]:
    for name in _INCLUDE.findall(text):
        if name in open_:
            raise ReliableError(f'lua includes go in a circle: {" -> ".join((*open_, name))}')
        if name not in done:
            library = read('lib', name)
            yield from _included(read, library, done, (*open_, name))
            done.add(name)
            yield library


def _families(text: str) -> str:
    """Declares the key families that ``text`` uses; all would cost each call."""
    words = set(_CAPITALS.findall(text)) - {'META'}
    used = [name for name in FAMILIES if name in words]
    return ''.join(f"local {name} = PREFIX .. '{FAMILIES[name]}'\n" for name in used)


#: What a script says first.
_HEAD = (
    f"local META = KEYS[1]\nlocal LAYOUT = '{LAYOUT}'\n"
    f'local PREFIX = string.sub(META, 1, -{len(FAMILIES["META"]) + 1})\n'
)


def _deferred(read: Sources, deferred: Deferred, done: set[str]) -> Iterator[str]:
    """The files that are deferred, in one function by which their functions are to be had."""
    yield 'local made\nrare = function()\nif made then\nreturn made\nend\n'
    # Its constants are its own: each that it shared would cost each call of the script.
    yield _HEAD
    for name, exported in deferred:
        library = read('lib', name)
        body = ''.join(_included(read, library, set(done), (name,))) + library
        body = _look_up(body, deferred, 'made')
        fields = ', '.join(f'{one} = {one}' for one in exported.split(', '))
        yield f'local function load_{name}()\n{_families(body)}{body}\nreturn {{{fields}}}\nend\n'
    loaders = [f'{one} = load_{name}' for name, names in deferred for one in names.split(', ')]
    yield f'local loaders = {{{", ".join(loaders)}}}\n' + (
        'made = setmetatable({}, {__index = function(_, name)\n'
        'for key, value in pairs(loaders[name]()) do\nmade[key] = value\nend\n'
        'return made[name]\nend})\nreturn made\nend\n'
    )


def _look_up(text: str, deferred: Deferred, where: str) -> str:
    """Makes of each deferred name that ``text`` uses, and has not made itself, a look-up of it."""
    own = _FUNCTION.findall(text)
    names = {one for _, exported in deferred for one in exported.split(', ')}.difference(own)
    if not names:
        return text
    use = re.compile(rf"--.*|'[^'\n]*'|(?<![\w.:])({'|'.join(sorted(names))})\b")
    return use.sub(lambda found: f'{where}.{found[1]}' if found[1] else found[0], text)


def _embedded(read: Sources, operation: str) -> Iterator[str]:
    """Other operations as functions; each brings along all that it uses."""
    for name in _EMBED.findall(operation):
        if _EMBED.search(read('ops', name)):
            raise ReliableError(f'lua operation {name} embeds another one, and cannot be embedded')
        yield f'local function {name}(ARGV)\n{script(name, read).text}\nend\n'


@cache
def script(name: str, read: Sources = packaged) -> Script:
    """Returns the operation ``name`` with its includes resolved.

    Args:
        name: of its file.
        read: where the files are; a test may change some.

    Raises:
        FileNotFoundError: there is no such operation or library.
        ReliableError: libraries include each other in a circle.

    Example:
        >>> script('claim').name
        'claim'
    """
    operation = read('ops', name)
    deferred = _DEFER.findall(operation)
    # Whoever includes a file that the operation defers uses the names that are declared here.
    done = {library for library, _ in deferred}
    body = ''.join(_included(read, operation, done, (name,)))
    families = _families(body + operation)
    later = ''.join(_deferred(read, deferred, done)) if deferred else ''
    # It is made where that is said: whoever does not get there does not pay for it.
    at = max(operation.find('-- @defer '), 0)
    body, before, after = (
        _look_up(part, deferred, 'rare()') for part in (body, operation[:at], operation[at:])
    )
    text = (
        f'{_HEAD}{families}{"local rare" + chr(10) if deferred else ""}'
        f'{"".join(_embedded(read, operation))}{body}{before}{later}{after}'
    )
    text = _COMMENT.sub('', text)  # the server need not read them
    return Script(name, text, hashlib.sha1(text.encode()).hexdigest())


@cache
def all_scripts() -> tuple[Script, ...]:
    """All operations of the package."""
    folder = files('kombu_reliable').joinpath('lua', 'ops')
    names = sorted(entry.name[: -len('.lua')] for entry in folder.iterdir())
    return tuple(script(name) for name in names)


def translate(error: redis.exceptions.ResponseError) -> Exception:
    """Maps an error reply to an exception of this package.

    What is not ours comes back unchanged.
    """
    text = str(error)
    if text.startswith('KRLAYOUT '):
        return LayoutError(text.partition(' ')[2].partition(' script:')[0])
    if 'WRONGTYPE' in text:
        return LayoutError(
            'a key of this namespace holds the data of another program; find it, or choose another '
            f'database or global_keyprefix ({text.partition(" script:")[0]})'
        )
    if isinstance(error, redis.exceptions.OutOfMemoryError) or 'OOM command' in text:
        return ServerFull(
            'the server has reached its maxmemory and refused to store a message; '
            'raise maxmemory or let the workers empty the queues'
        )
    if isinstance(error, redis.exceptions.NoPermissionError):
        return AccessRefused(f'the server forbids a command that is needed: {text}')
    if isinstance(error, _PASSING) or text.startswith(_PASSING_CODES):
        return ConnectionLost(text)
    return error


@contextlib.contextmanager
def translating() -> Iterator[None]:
    """For commands that are no calls of scripts: their errors as :func:`translate` puts them."""
    try:
        yield
    except redis.exceptions.ResponseError as error:
        raise translate(error) from error


#: States of a server that pass: a failover, a slow script, a disk that is full.
_PASSING = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
_PASSING_CODES = ('BUSY ', 'MISCONF ', 'NOREPLICAS ', 'UNBLOCKED ')
