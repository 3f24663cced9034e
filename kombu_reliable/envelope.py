"""Packs a kombu message into a few bytes and back.

A Celery message is nearly the same every time, so its head is deflated against a preset
dictionary.  The dictionaries are part of the data layout: never change one, add another.
"""

from __future__ import annotations

import binascii
import re
import zlib
from base64 import urlsafe_b64decode
from collections import deque
from typing import Any

from kombu.utils.json import JSONEncoder, loads

from kombu_reliable.errors import ReliableError

__all__ = (
    'CorruptEnvelope',
    'due_of',
    'pack_id',
    'prepare_to_seal',
    'seal',
    'unpack_id',
    'unseal',
    'with_due',
)

#: A larger body is stored as it is: it repeats nothing of the dictionary, and users who
#: want large bodies compressed tell kombu so.
_DEFLATE_UP_TO = 16_384
_WINDOW = -15
_DEFLATED, _PLAIN = b'3', b'2'
#: In front of a message that was published with a delay stands when it is due.
_DUE, _DUE_END = b'@', b';'

#: By kind; the first is read only.
_DICTIONARIES = {
    b'1': b'"expiration":"compression":"application/data","binary"'
    b'"application/x-python-serialize","application/json","utf-8",'
    b'{"lang":"py","task":"proj.tasks.","id":"","shadow":null,"eta":null,"expires":null,'
    b'"group":null,"group_index":null,"retries":0,"timelimit":[null,null],"root_id":"'
    b'","parent_id":null,"argsrepr":"()","kwargsrepr":"{}","origin":"gen1234@localhost",'
    b'"ignore_result":false,"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}},'
    b'{"correlation_id":"","reply_to":"","delivery_mode":2,"delivery_info":'
    b'{"exchange":"","routing_key":"celery"},"priority":0}]\n'
    b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
    _DEFLATED: b'"expiration":"compression":"application/data","binary"'
    b'"application/x-python-serialize","lang":"py","task":"id":"shadow":null,"eta":null,'
    b'"expires":null,"group":null,"group_index":null,"retries":0,"timelimit":[null,null],'
    b'"root_id":"parent_id":null,"argsrepr":"kwargsrepr":"{}","origin":"gen'
    b'"ignore_result":true,"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}},'
    b'"subtask_type": null, "immutable": false}{"task": "kwargs": {}, "options": {"task_id": "'
    b'", "reply_to": "", "group_id": "'
    b'["application/json","utf-8",["py","proj.tasks.","",null,null,null,null,null,0,[null,null],"'
    b'",null,"()","{}","gen1234@localhost",false,0,null,{}],'
    b'{"correlation_id":"","reply_to":"","delivery_mode":2,"priority":0}]\n'
    b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]',
}

#: Has read the dictionary; what seals a message is a copy of it.  It is small, because copying and
#: clearing what zlib takes by default would cost more than packing a message.
_READY = zlib.compressobj(
    3, zlib.DEFLATED, -12, 5, zlib.Z_DEFAULT_STRATEGY, _DICTIONARIES[_DEFLATED]
)

#: Copies that were made in advance.
_copies: deque[zlib._Compress] = deque()

#: A uuid in just the form to which it can be unpacked again.
_UUID = re.compile('[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}').fullmatch

_URL_SAFE = bytes.maketrans(b'+/', b'-_')

#: Encodes as kombu does; made once.  What contains itself is too deep, and found without a list
#: of all that was met.
_to_json = JSONEncoder(separators=(',', ':'), check_circular=False).encode


class CorruptEnvelope(ReliableError, ValueError):
    """A record that this package did not write, or that was damaged."""


def pack_id(identity: str) -> str:
    """The key of a job: a uuid as 22 characters, anything else behind a ``=``.

    Example:
        >>> pack_id('00000000-0000-0000-0000-000000000000')
        'AAAAAAAAAAAAAAAAAAAAAA'
    """
    if not _UUID(identity):
        return f'={identity}'
    packed = binascii.unhexlify(identity.replace('-', ''))
    return binascii.b2a_base64(packed, newline=False)[:22].translate(_URL_SAFE).decode()


def _uuid_text(packed: bytes) -> str:
    digits = packed.hex()
    return '-'.join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def unpack_id(key: str) -> str:
    """The id behind the key of a job, also behind that of a further job under the same id.

    Example:
        >>> unpack_id('~17~AAAAAAAAAAAAAAAAAAAAAA')
        '00000000-0000-0000-0000-000000000000'
    """
    if key.startswith('~'):
        key = key[1:].partition('~')[2]
    if key.startswith('='):
        return key[1:]
    try:
        packed = urlsafe_b64decode(f'{key}==') if len(key) == 22 else b''
    except ValueError:
        packed = b''
    return _uuid_text(packed) if len(packed) == 16 else key


def prepare_to_seal() -> None:
    """Does what the next message needs whatever it says; for moments in which one waits anyway."""
    if not _copies:
        _copies.append(_READY.copy())


def _deflater() -> zlib._Compress:
    try:
        return _copies.pop()
    except IndexError:
        return _READY.copy()


def seal(head: Any, body: bytes) -> bytes:
    """Packs a message.

    Args:
        head: whatever JSON, as kombu extends it, can say.
        body: the body as kombu serialized it.
    """
    text = _to_json(head).encode()
    if len(body) > _DEFLATE_UP_TO:
        return b'%b%d %d\n%b%b' % (_PLAIN, len(text), len(body), text, body)
    deflate = _deflater()
    return _DEFLATED + deflate.compress(text + b'\n' + body) + deflate.flush()


def with_due(envelope: bytes, due: str) -> bytes:
    """Adds when a message is due: ``'+<ms>'`` from its publish, or ``'<ms>'`` since the epoch."""
    return b'%b%b%b%b' % (_DUE, due.encode(), _DUE_END, envelope)


def due_of(envelope: bytes) -> str:
    """What :func:`with_due` has added, or ``''``."""
    if envelope[:1] != _DUE:
        return ''
    return envelope[1:40].partition(_DUE_END)[0].decode(errors='replace')


def unseal(envelope: bytes) -> tuple[Any, bytes]:
    """Unpacks what :func:`seal` packed.

    Raises:
        CorruptEnvelope: these bytes are no envelope.
    """
    try:
        text, body = _split(envelope)
        return loads(text), body
    except Exception as error:
        # Foreign bytes can upset any step, and kombu's decoders in ways of their own.
        raise CorruptEnvelope(f'not an envelope: {error}') from error


def _split(envelope: bytes) -> tuple[bytes, bytes]:
    kind, rest = envelope[:1], envelope[1:]
    if kind == _DUE:
        envelope = rest.partition(_DUE_END)[2]
        kind, rest = envelope[:1], envelope[1:]
    if kind in _DICTIONARIES:
        inflate = zlib.decompressobj(_WINDOW, _DICTIONARIES[kind])
        text, _, body = inflate.decompress(rest).partition(b'\n')
        if not inflate.eof:
            raise ValueError('it is cut short')
        return text, body
    if kind != _PLAIN:
        raise ValueError('unknown kind')
    lengths, _, rest = rest.partition(b'\n')
    head_length, body_length = map(int, lengths.split())
    if len(rest) != head_length + body_length:
        raise ValueError('it is cut short')
    return rest[:head_length], rest[head_length:]
