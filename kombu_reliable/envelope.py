"""Packs a kombu message into a few bytes and back.

A Celery message is nearly the same every time.  What is the same in each small task is left out;
any other message is deflated against a preset dictionary.  Both are part of the data layout: never
change them, add another kind.
"""

from __future__ import annotations

import binascii
import re
import zlib
from base64 import urlsafe_b64decode
from typing import Any

from kombu.utils.json import JSONEncoder, loads

from kombu_reliable.errors import ReliableError

__all__ = ('CorruptEnvelope', 'due_of', 'pack_id', 'seal', 'unpack_id', 'unseal', 'with_due')

#: A larger body is stored as it is: it repeats nothing of the dictionary, and users who
#: want large bodies compressed tell kombu so.
_DEFLATE_UP_TO = 16_384
_WINDOW = -15
_DEFLATED, _PLAIN, _BRIEF = b'1', b'2', b'3'
#: In front of a message that was published with a delay stands when it is due.
_DUE, _DUE_END = b'@', b';'

_DICTIONARY = (
    b'"expiration":"compression":"application/data","binary"'
    b'"application/x-python-serialize","application/json","utf-8",'
    b'{"lang":"py","task":"proj.tasks.","id":"","shadow":null,"eta":null,"expires":null,'
    b'"group":null,"group_index":null,"retries":0,"timelimit":[null,null],"root_id":"'
    b'","parent_id":null,"argsrepr":"()","kwargsrepr":"{}","origin":"gen1234@localhost",'
    b'"ignore_result":false,"replaced_task_nesting":0,"stamped_headers":null,"stamps":{}},'
    b'{"correlation_id":"","reply_to":"","delivery_mode":2,"delivery_info":'
    b'{"exchange":"","routing_key":"celery"},"priority":0}]\n'
    b'[[], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
)

#: Has read the dictionary; what seals a message is a copy of it.  It is small, because copying and
#: clearing what zlib takes by default would cost more than packing a message.
_READY = zlib.compressobj(3, zlib.DEFLATED, -12, 5, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)

#: What a task has that is sent to a queue of its own name and calls nothing back: a head of
#: ``[*_ENCODING, headers, properties]`` with just these names, and such an end of its body.
_ENCODING = ['application/json', 'utf-8']
_HEADERS = (
    'lang', 'task', 'id', 'shadow', 'eta', 'expires', 'group', 'group_index', 'retries',
    'timelimit', 'root_id', 'parent_id', 'argsrepr', 'kwargsrepr', 'origin', 'ignore_result',
    'replaced_task_nesting', 'stamped_headers', 'stamps',
)  # fmt: skip
_PROPERTIES = ('correlation_id', 'reply_to', 'delivery_mode', 'priority')
_ID, _ROOT, _CORRELATION = _HEADERS.index('id'), _HEADERS.index('root_id'), len(_HEADERS)
_END = b', {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'

#: A larger body is worth deflating.
_BRIEF_UP_TO = 256

#: Stands for the id of the task.
_SAME = 0

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


def seal(head: Any, body: bytes) -> bytes:
    """Packs a message.

    Args:
        head: whatever JSON, as kombu extends it, can say.
        body: the body as kombu serialized it.
    """
    values = _brief(head, body)
    if values is not None:
        return b'%b%b\n%b' % (_BRIEF, _to_json(values).encode(), body[: -len(_END)])
    text = _to_json(head).encode()
    if len(body) > _DEFLATE_UP_TO:
        return b'%b%d %d\n%b%b' % (_PLAIN, len(text), len(body), text, body)
    deflate = _READY.copy()
    return _DEFLATED + deflate.compress(text + b'\n' + body) + deflate.flush()


def _brief(head: Any, body: bytes) -> list[Any] | None:
    """What is to be said of a usual small task, in front of its body; None of any other message."""
    if len(body) > _BRIEF_UP_TO or not body.endswith(_END) or len(head) != 4:
        return None
    *encoding, headers, properties = head
    if (
        encoding != _ENCODING
        or type(headers) is not dict
        or type(properties) is not dict
        or tuple(headers) != _HEADERS
        or tuple(properties) != _PROPERTIES
    ):
        return None
    identity = headers['id']
    root, correlation = headers['root_id'], properties['correlation_id']
    if not (type(identity) is type(root) is type(correlation) is str):
        return None
    values = [*headers.values(), *properties.values(), len(body)]
    if root == identity:
        values[_ROOT] = _SAME
    if correlation == identity:
        values[_CORRELATION] = _SAME
    return values


def _in_full(brief: bytes) -> tuple[Any, bytes]:
    """Head and body of a usual small task."""
    text, _, rest = brief.partition(b'\n')
    *values, length = loads(text)
    body = rest + _END
    if len(body) != length:
        raise ValueError('it is cut short')
    for place in (_ROOT, _CORRELATION):
        if values[place] == _SAME:
            values[place] = values[_ID]
    headers = dict(zip(_HEADERS, values, strict=False))
    properties = dict(zip(_PROPERTIES, values[len(headers) :], strict=True))
    return [*_ENCODING, headers, properties], body


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
        kind, rest = envelope[:1], envelope[1:]
        if kind == _DUE:
            rest = rest.partition(_DUE_END)[2]
            kind, rest = rest[:1], rest[1:]
        if kind == _BRIEF:
            return _in_full(rest)
        text, body = _split(kind, rest)
        return loads(text), body
    except Exception as error:
        # Foreign bytes can upset any step, and kombu's decoders in ways of their own.
        raise CorruptEnvelope(f'not an envelope: {error}') from error


def _split(kind: bytes, rest: bytes) -> tuple[bytes, bytes]:
    if kind == _DEFLATED:
        inflate = zlib.decompressobj(_WINDOW, _DICTIONARY)
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
