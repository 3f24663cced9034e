"""Foreign and damaged data in every place: what it may cost, and whom."""

from __future__ import annotations

import itertools

import pytest

from kombu_reliable.envelope import CorruptEnvelope, seal
from kombu_reliable.store import Store
from kombu_reliable.transport.messages import payload
from kombu_reliable.types import Outgoing, QueueCounts, Status, Verdict
from tests.test_scripts import Bench

ACK, FAIL, REQUEUE = Verdict.ACK, Verdict.FAIL, Verdict.REQUEUE
DONE, FENCED = Status.DONE, Status.FENCED
LEASE = 30_000

_numbers = itertools.count()


@pytest.fixture
def bench(store: Store) -> Bench:
    return Bench(store)


def store_one(bench: Bench, envelope: bytes, due: str = '0') -> str:
    """Publishes a message and returns the key of its record."""
    number = next(_numbers)
    [id] = bench.publish([Outgoing(f'i{number}', 'q', 0, due, envelope)], number, 'cuts')
    return bench.keys.job(id)


@pytest.mark.parametrize('family', ['ready', 'delayed', 'leased', 'dead'])
def test_foreign_data_in_one_queue_costs_the_others_nothing(bench: Bench, family: str) -> None:
    bench.put('a', 'b')
    bench.put('c', due='+1000')
    bench.put('x', 'y', queue='r')
    bench.put('z', queue='r', due='+1000')
    key = getattr(bench.keys, family)('q')
    bench.client.delete(key)
    bench.client.set(key, 'foreign')
    bench.wait(1000)
    claimed = bench.store.run(bench.operations.claim('w', 't', 10, ['q', 'r']))
    assert {'x', 'y', 'z'} <= {one.id for one in claimed.deliveries}
    assert [one.token for one in claimed.deliveries] == [
        f't.{number}' for number in range(1, len(claimed.deliveries) + 1)
    ]
    if family != 'dead':
        assert 'WRONGTYPE' in claimed.problem
    ours = [one for one in claimed.deliveries if one.queue == 'r']
    assert bench.renew(*claimed.deliveries) == [DONE] * len(claimed.deliveries)
    assert bench.settle(ACK, *ours) == [DONE] * 3
    assert bench.client.get(key) == b'foreign'
    # Nothing of the queue was lost: it goes on where it stood.
    bench.client.delete(key)
    bench.live(3 * LEASE)
    left = {one.id for one in claimed.deliveries if one.queue == 'q'}
    left |= {one.id for one in bench.take(10, 'q')}
    assert left == {'ready': {'c'}, 'delayed': {'a', 'b'}}.get(family, {'a', 'b', 'c'})


def test_a_queue_that_cannot_be_read_wakes_nobody_again_and_again(bench: Bench) -> None:
    bench.put('a')
    bench.client.delete(bench.keys.ready('q'))
    bench.client.set(bench.keys.ready('q'), 'foreign')
    claimed = bench.store.run(bench.operations.claim('w', 't', 10, ['q']))
    assert (claimed.left, bench.marked()) == (False, False)


@pytest.mark.parametrize(
    'owner', ['', 'nonsense', ';;', 'a;b;c', 'a;nan;c', 'a;1e9;c', ';5', '\x00;\xff'.encode()]
)
def test_a_garbled_owner_costs_a_delivery_at_most(bench: Bench, owner: str | bytes) -> None:
    bench.put('a', 'b')
    held = bench.take(1)
    bench.client.hset(bench.keys.owners, 'a', owner)
    bench.client.hset(bench.keys.owners, 'b', owner)
    assert bench.settle(ACK, *held) == [FENCED]
    bench.live(LEASE)
    again = bench.take()
    assert {one.id: one.deliveries <= 2 for one in again} == {'a': True, 'b': True}
    assert bench.settle(ACK, *again) == [DONE] * 2
    assert bench.counts() == QueueCounts(0, 0, 0, 0)


def test_a_garbled_place_of_an_owner_does_not_hold_back_others(bench: Bench) -> None:
    bench.put('a', 'b')
    held = bench.take()
    bench.client.hset(bench.keys.owners, 'a', f'{held[0].token};here;w')
    assert bench.settle(REQUEUE, *held) == [DONE] * 2
    assert sorted(bench.take_ids()) == ['a', 'b']


def test_strangers_in_the_sets_are_ignored(bench: Bench) -> None:
    bench.put('a')
    for name in ('', 'nobody', b'\xff\x00', 'q'):
        bench.client.zadd(bench.keys.alarms, {name: 0})
        bench.client.zadd(bench.keys.ready('q'), {name: -1})
        bench.client.zadd(bench.keys.delayed('q'), {name: 0})
        bench.client.zadd(bench.keys.leased('q'), {name: 0})
        bench.client.zadd(bench.keys.dead('q'), {name: 0})
    bench.client.hset(bench.keys.meta, mapping={'keeper': 'x;y;z', 'deputy': ';', 'hold': 'soon'})
    assert bench.take_ids() == ['a']
    bench.wait(1)
    assert bench.take_ids() == []
    assert bench.counts() == QueueCounts(0, 0, 1, 0)


@pytest.mark.parametrize('kind', ['hash', 'list', 'text'])
def test_foreign_data_in_place_of_a_record_or_its_extras(bench: Bench, kind: str) -> None:
    bench.put('a', 'b', 'c')
    held = bench.take(1)
    assert bench.settle(REQUEUE, *held) == [DONE]
    plant = {
        'hash': lambda key: bench.client.hset(key, 'n', 'many'),
        'list': lambda key: bench.client.rpush(key, 'x'),
        'text': lambda key: bench.client.set(key, 'x'),
    }[kind]
    for key in (bench.keys.extra('a'), bench.keys.job('b'), bench.keys.extra('c')):
        bench.client.delete(key)
        plant(key)
    held = bench.take()
    assert [one.id for one in held] == (['a', 'b', 'c'] if kind == 'text' else ['a', 'c'])
    assert bench.settle(FAIL, *held) == [DONE] * len(held)
    assert bench.counts() == QueueCounts(0, 0, 0, len(held))


@pytest.mark.parametrize('due', ['0', '+1000'])
def test_a_record_cut_at_any_length_becomes_a_dead_letter(bench: Bench, due: str) -> None:
    envelope = seal(['application/json', 'utf-8', {'h': 1}, {'p': 2}], b'body')
    whole = len(bench.client.get(store_one(bench, envelope)) or b'')
    assert bench.settle(ACK, *bench.take()) == [DONE]
    for length in range(whole):
        key = store_one(bench, envelope, due)
        bench.client.set(key, (bench.client.get(key) or b'')[:length])
    bench.wait(1000)
    held = [one for _ in range(3) for one in bench.take(100)]
    assert len(held) == whole
    for one in held:
        with pytest.raises(CorruptEnvelope):
            payload(one)


def test_foreign_data_in_place_of_the_dead_letters_loses_no_message(bench: Bench) -> None:
    bench.put('a', 'b')
    bench.client.set(bench.keys.dead('q'), 'foreign')
    held = bench.take()
    assert bench.settle(FAIL, *held) == [DONE] * 2
    again = bench.take()
    assert [(one.id, one.deliveries) for one in again] == [('a', 2), ('b', 2)]
    bench.client.delete(bench.keys.dead('q'))
    assert bench.settle(FAIL, *again) == [DONE] * 2
    assert bench.counts() == QueueCounts(0, 0, 0, 2)
