"""The envelope keeps what kombu says, in a few bytes."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_celery_message_takes_few_bytes() -> None:
    task_id = str(uuid.uuid4())
    head = [
        'application/json', 'utf-8',
        {
            'lang': 'py', 'task': 'proj.tasks.add', 'id': task_id, 'shadow': None, 'eta': None,
            'expires': None, 'group': None, 'group_index': None, 'retries': 0,
            'timelimit': [None, None], 'root_id': task_id, 'parent_id': None,
            'argsrepr': '(1, 2)', 'kwargsrepr': '{}', 'origin': 'gen9@host',
            'ignore_result': False, 'replaced_task_nesting': 0, 'stamped_headers': None,
            'stamps': {},
        },
        {'correlation_id': task_id, 'reply_to': str(uuid.uuid4()), 'delivery_mode': 2,
         'priority': 0},
    ]  # fmt: skip
    body = b'[[1, 2], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
    assert len(seal(head, body)) < 150


@given(st.uuids())
def test_a_uuid_is_packed_into_22_characters(identity: uuid.UUID) -> None:
    assert len(pack_id(str(identity))) == 22


@given(st.text())
def test_ids_stay_distinct(identity: str) -> None:
    assert pack_id(identity) == f'={identity}'
    assert pack_id(str(uuid.UUID(int=1)).upper().replace('0', 'A')).startswith('=')
