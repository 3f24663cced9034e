"""The envelope keeps what kombu says, in a few bytes."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.serialization import dumps

from kombu_reliable.envelope import CorruptEnvelope, pack_id, prepare_to_seal, seal, unseal
from kombu_reliable.transport.messages import envelope, open_envelope

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


def test_a_message_that_was_prepared_for_is_as_any_other() -> None:
    plain = [seal(['head'], b'body') for _ in range(2)]
    prepare_to_seal()
    prepare_to_seal()
    assert [seal(['head'], b'body') for _ in range(3)] == [plain[0], *plain]


def test_headers_that_contain_themselves_are_a_clear_error() -> None:
    headers: dict[str, Any] = {}
    headers['self'] = headers
    with pytest.raises(RecursionError, match='JSON'):
        seal(headers, b'')


def celery_message() -> dict[str, Any]:
    """As Celery and kombu make it."""
    app = Celery(set_as_current=False)
    task_id = str(uuid.uuid4())
    made = app.amqp.as_task_v2(task_id, 'proj.tasks.add', (1, 2), reply_to=str(uuid.uuid4()))
    _, _, body = dumps(made.body)
    properties = {**made.properties, 'delivery_mode': 2, 'priority': 0}
    return {
        'body': body, 'content-type': 'application/json', 'content-encoding': 'utf-8',
        'headers': made.headers, 'properties': properties,
    }  # fmt: skip


def test_a_celery_message_takes_few_bytes() -> None:
    message = celery_message()
    sealed = envelope(message, message['headers'], 'celery', '', 'celery')
    assert len(sealed) < 145
    assert isinstance(unseal(sealed)[0][2], list)


def test_other_headers_come_back_with_their_names() -> None:
    headers = celery_message()['headers']
    reordered = dict(reversed(headers.items()))
    fewer = {name: value for name, value in headers.items() if name != 'stamps'}
    for one in (headers, {**headers, 'mine': [1]}, reordered, fewer, {}):
        message = {**celery_message(), 'headers': one}
        sealed = envelope(message, one, 'celery', '', 'celery')
        found = open_envelope(sealed, 'celery', 'tag', 1)['headers']
        assert list(found.items()) == [*one.items(), ('x-delivery-count', 1)]


def test_a_list_of_headers_that_is_none_of_ours_is_corrupt() -> None:
    sealed = seal(['application/json', 'utf-8', ['py', 'task'], {}], b'')
    with pytest.raises(CorruptEnvelope):
        open_envelope(sealed, 'celery', 'tag', 1)


@given(st.uuids())
def test_a_uuid_is_packed_into_22_characters(identity: uuid.UUID) -> None:
    assert len(pack_id(str(identity))) == 22


@given(st.text())
def test_ids_stay_distinct(identity: str) -> None:
    assert pack_id(identity) == f'={identity}'
    assert pack_id(str(uuid.UUID(int=1)).upper().replace('0', 'A')).startswith('=')
