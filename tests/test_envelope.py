"""The envelope keeps what kombu says, in a few bytes."""

from __future__ import annotations

import base64
import json
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.serialization import dumps

from kombu_reliable.envelope import CorruptEnvelope, pack_id, seal, unseal

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(head=st.lists(json_values), body=st.binary())
def test_what_was_sealed_comes_back(head: Any, body: bytes) -> None:
    assert unseal(seal(head, body)) == (head, body)


def test_kombus_own_types_come_back() -> None:
    head = [datetime(2026, 1, 2, tzinfo=UTC), uuid.UUID(int=5), Decimal('1.5')]
    assert unseal(seal(head, b''))[0] == head


@pytest.mark.parametrize('size', [16_383, 16_384, 16_385, 1_000_000])
def test_bodies_of_any_size(size: int) -> None:
    body = b'\n' * size
    assert unseal(seal({'h': 1}, body)) == ({'h': 1}, body)


@given(st.binary())
def test_foreign_bytes_are_a_clear_error(data: bytes) -> None:
    try:
        unseal(data)
    except CorruptEnvelope:
        return


def test_a_damaged_envelope_is_a_clear_error() -> None:
    sealed = seal(['head'], b'body' * 100)
    big = seal(['head'], b'x' * 20_000)
    for damaged in (b'', b'9', sealed[:10], b'x' + sealed, b'2nonsense\n', big[:-1]):
        with pytest.raises(CorruptEnvelope):
            unseal(damaged)


def test_what_an_earlier_version_has_sealed_is_read() -> None:
    sealed = 'MYumIKkkpqTAUosBFOiCaF0TEGEBImDiQNoQ6BMsoUacTpCvDXUUjGA+r40FAA=='
    task_id = '00000000-0000-4000-8000-000000000001'
    headers = {'lang': 'py', 'task': 'proj.tasks.add', 'id': task_id}
    head = ['application/json', 'utf-8', headers, {'correlation_id': task_id}]
    assert unseal(base64.b64decode(sealed)) == (head, b'[[1, 2], {}, {}]')


def test_headers_that_contain_themselves_are_a_clear_error() -> None:
    headers: dict[str, Any] = {}
    headers['self'] = headers
    with pytest.raises(RecursionError, match='JSON'):
        seal(headers, b'')


def celery_task() -> tuple[list[Any], bytes]:
    """Head and body of a task, as Celery and kombu make them."""
    app = Celery(set_as_current=False)
    task_id = str(uuid.uuid4())
    made = app.amqp.as_task_v2(task_id, 'proj.tasks.add', (1, 2), reply_to=str(uuid.uuid4()))
    content_type, encoding, body = dumps(made.body)
    properties = {**made.properties, 'delivery_mode': 2, 'priority': 0}
    return [content_type, encoding, made.headers, properties], body.encode()


BRIEF = b'3'


def test_a_celery_message_takes_few_bytes() -> None:
    head, body = celery_task()
    sealed = seal(head, body)
    assert sealed[:1] == BRIEF and len(sealed) < 230
    assert sealed.count(head[2]['id'].encode()) == 1
    assert unseal(sealed) == (head, body)
    longer = body.replace(b'1', b'"' + 1000 * b'e' + b'"')
    sealed = seal(head, longer)
    assert sealed[:1] != BRIEF and len(sealed) < 230
    assert unseal(sealed) == (head, longer)


@given(
    where=st.sampled_from((2, 3)),
    what=st.sampled_from(('id', 'root_id', 'correlation_id', 'lang', 'priority', 'mine')),
    value=json_values,
)
@example(2, 'root_id', 0)
@example(3, 'correlation_id', False)
def test_whatever_a_task_says_comes_back(where: int, what: str, value: Any) -> None:
    head, body = celery_task()
    head[where][what] = value
    assert json.dumps(unseal(seal(head, body))[0]) == json.dumps(head), 'True is not 1'
    assert unseal(seal(head, body))[1] == body


def test_what_is_not_just_a_task_comes_back() -> None:
    head, body = celery_task()
    content_type, encoding, headers, properties = head
    reordered = dict(reversed(headers.items()))
    fewer = {name: value for name, value in headers.items() if name != 'stamps'}
    for other in (
        [*head, ['exchange', 'key']], [content_type, 'utf-16', headers, properties],
        [content_type, encoding, reordered, properties], [content_type, encoding, fewer, {}],
        [content_type, encoding, list(headers), properties], ['', '', {}, {}], head[:3],
    ):  # fmt: skip
        sealed = seal(other, body)
        assert sealed[:1] != BRIEF
        assert json.dumps(unseal(sealed)[0]) == json.dumps(other)
    for end in (b'', b'[]', body[:-1], body + b' '):
        assert unseal(seal(head, end)) == (head, end)


def test_a_brief_envelope_that_was_cut_or_changed_is_a_clear_error() -> None:
    sealed = seal(*celery_task())
    for damaged in (
        *(sealed[:length] for length in range(len(sealed))),
        sealed + b' ',
        *(BRIEF + text for text in (b'[]\n', b'[1]\n', b'{}\n[', b'null\n', b'7\n', b'"text"\n')),
        *(BRIEF + json.dumps([0] * count + [71]).encode() + b'\n[' for count in (3, 22, 24)),
    ):
        with pytest.raises(CorruptEnvelope):
            unseal(damaged)


@given(st.uuids())
def test_a_uuid_is_packed_into_22_characters(identity: uuid.UUID) -> None:
    assert len(pack_id(str(identity))) == 22


@given(st.text())
def test_ids_stay_distinct(identity: str) -> None:
    assert pack_id(identity) == f'={identity}'
    assert pack_id(str(uuid.UUID(int=1)).upper().replace('0', 'A')).startswith('=')
