"""How a job ends: at most one run, failure details, and ends that no worker reports."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from kombu_reliable import open_envelope
from kombu_reliable.envelope import seal
from kombu_reliable.store import Store
from kombu_reliable.transport.failure import detail_of
from kombu_reliable.types import Delivery, Outgoing, Settlement, Status, Verdict

LEASE = 30_000
HEAD = ['application/json', 'utf-8', {'id': 'a', 'task': 't'}, {}]
ENVELOPE = seal(HEAD, b'[[], {}, {}]')

_numbers = itertools.count()


def put(store: Store, *ids: str, queue: str = 'q', envelope: bytes = ENVELOPE, **more: Any) -> None:
    batch = [Outgoing(id, queue, 0, '0', envelope, **more) for id in ids]
    store.run(store.operations.publish(f'lane{next(_numbers)}', 1, batch))


def take(store: Store, queue: str = 'q', credit: int = 10) -> list[Delivery]:
    call = store.operations.claim('w', f't{next(_numbers)}', credit, [queue])
    return list(store.run(call).deliveries)


def settle(store: Store, verdict: Verdict, one: Delivery, detail: str = '') -> Status:
    batch = [Settlement(verdict, one.queue, one.id, one.token, detail)]
    return store.run(store.operations.settle(batch))[0]


def renew(store: Store, one: Delivery) -> Status:
    return store.run(store.operations.renew([(one.queue, one.id, one.token)]))[0]


def pass_time(store: Store, ms: int) -> None:
    """Somebody is heard meanwhile, so leases end."""
    assert store.operations.now is not None
    end = store.operations.now + ms
    while store.operations.now < end:
        store.operations.now = min(end, store.operations.now + LEASE // 3)
        take(store, 'another', 0)


def extra(store: Store, id: str) -> dict[str, str]:
    """All that is noted of a job but its history."""
    found: Any = store.client.hgetall(store.keys.extra(id))
    return {name.decode(): value.decode() for name, value in found.items() if name != b'h'}


def reason(store: Store, id: str) -> str | None:
    return extra(store, id).get('reason')


# -- at most once ----------------------------------------------------------------------------


def test_a_job_that_runs_once_is_renewed_and_acknowledged_as_any(store: Store) -> None:
    put(store, 'a')
    (held,) = take(store)
    assert settle(store, Verdict.ONCE, held) is Status.DONE
    assert settle(store, Verdict.ONCE, held) is Status.DONE
    for _ in range(4):
        pass_time(store, LEASE // 2)
        assert renew(store, held) is Status.DONE
    assert settle(store, Verdict.ACK, held) is Status.DONE
    assert not store.client.exists(store.keys.job('a'), store.keys.extra('a'))


def test_a_job_that_runs_once_has_failed_when_its_lease_is_lost(store: Store) -> None:
    put(store, 'a', 'b')
    (held,) = take(store, credit=1)
    settle(store, Verdict.ONCE, held)
    pass_time(store, LEASE)
    assert [one.id for one in take(store)] == ['b']
    assert store.counts('q').dead == 1
    assert extra(store, 'a') == {
        'reason': 'lost',
        'n': '1',
        'since': f'{1_700_000_000_000 + LEASE} lost',
    }
    assert renew(store, held) is Status.FENCED
    assert settle(store, Verdict.ACK, held) is Status.FENCED
    assert not store.client.hexists(store.keys.owners, 'a')


def test_its_owner_may_come_back_before_somebody_claims_it(store: Store) -> None:
    put(store, 'a')
    (held,) = take(store)
    settle(store, Verdict.ONCE, held)
    pass_time(store, 2 * LEASE)
    assert renew(store, held) is Status.DONE
    assert take(store) == []
    assert store.counts('q').leased == 1
    assert settle(store, Verdict.ACK, held) is Status.DONE


@pytest.mark.parametrize(('verdict', 'deliveries'), [(Verdict.REQUEUE, 2), (Verdict.RELEASE, 1)])
def test_its_owner_may_give_it_back(store: Store, verdict: Verdict, deliveries: int) -> None:
    """Then it was not lost, and the next run may say for itself whether it is the only one."""
    put(store, 'a')
    (held,) = take(store)
    settle(store, Verdict.ONCE, held)
    settle(store, verdict, held)
    (again,) = take(store)
    assert again.deliveries == deliveries
    pass_time(store, LEASE)
    assert [one.id for one in take(store)] == ['a']


def test_a_next_run_may_be_lost_as_any(store: Store) -> None:
    put(store, 'a')
    (held,) = take(store)
    settle(store, Verdict.ONCE, held)
    put(store, 'a', run=(held.token, 'a'))
    take(store)
    pass_time(store, LEASE)
    assert [one.id for one in take(store)] == ['a']


def test_once_and_the_end_in_one_call(store: Store) -> None:
    put(store, 'a')
    (held,) = take(store)
    batch = [
        Settlement(verdict, held.queue, held.id, held.token)
        for verdict in (Verdict.ONCE, Verdict.FAIL, Verdict.ONCE)
    ]
    assert store.run(store.operations.settle(batch)) == (Status.DONE, Status.DONE, Status.UNHELD)
    assert store.counts('q').dead == 1


# -- verdicts --------------------------------------------------------------------------------


@pytest.mark.parametrize('verdict', [Verdict.REPLACE, Verdict.CANCEL])
def test_what_was_replaced_or_canceled_is_gone(store: Store, verdict: Verdict) -> None:
    put(store, 'a')
    (held,) = take(store)
    assert settle(store, verdict, held) is Status.DONE
    assert not store.client.exists(store.keys.job('a'), store.keys.extra('a'), store.keys.owners)


def test_a_failure_with_details(store: Store) -> None:
    put(store, 'a')
    (held,) = take(store)
    told = {'reason': 'failed', 'type': 'ValueError', 'message': 'no "1"', 'group': 'shop.pay'}
    settle(store, Verdict.FAIL, held, detail_of(told))
    found = extra(store, 'a')
    assert json.loads(found.pop('failure')) == told
    assert found == {'reason': 'failed', 'group': 'shop.pay'}


@pytest.mark.parametrize('detail', ['{', '{"reason": {}}', '{"reason": null, "group": 7}', '{}'])
def test_details_that_make_no_sense_cost_no_dead_letter(store: Store, detail: str) -> None:
    put(store, 'a')
    (held,) = take(store)
    assert settle(store, Verdict.FAIL, held, detail) is Status.DONE
    assert store.counts('q').dead == 1
    assert reason(store, 'a')


def test_details_are_cut() -> None:
    told = {name: '\u20ac' * 10_000 for name in ('reason', 'type', 'message', 'group', 'other')}
    found = json.loads(detail_of(told | {'traceback': 'begin' + 'x' * 9_000 + 'end'}))
    assert {name: len(text) for name, text in found.items()} == {
        'reason': 200, 'type': 200, 'message': 2_000, 'group': 500, 'traceback': 8_000,
    }  # fmt: skip
    assert found['traceback'].endswith('end')


# -- ends that no worker reports -------------------------------------------------------------


def told(store: Store) -> list[tuple[dict[str, Any], bytes]]:
    """What was told, and the envelope behind it, as a consumer gets them."""
    found = []
    for one in take(store, 'ends'):
        raw = open_envelope(one.envelope, 'ends', one.token, one.deliveries)
        assert raw['content-type'] == 'application/octet-stream'
        line, _, envelope = raw['body'].partition(b'\n')
        found.append((json.loads(line), envelope))
        settle(store, Verdict.ACK, one)
    return found


def lose(store: Store, id: str = 'a', once: bool = True) -> None:
    """One job, whose worker dies."""
    put(store, id)
    (held,) = take(store)
    if once:
        settle(store, Verdict.ONCE, held)
    pass_time(store, LEASE)
    assert take(store) == []


def test_a_lost_job_is_told(store: Store) -> None:
    store.tell_ends_to('ends')
    lose(store)
    assert store.client.exists(store.keys.wake('ends'))
    ((end, envelope),) = told(store)
    assert end.pop('at') == store.operations.now
    assert end == {'key': 'a', 'queue': 'q', 'outcome': 'failed', 'reason': 'lost'}
    assert envelope == ENVELOPE
    assert told(store) == []


def test_the_delivery_limit_is_told(store_factory: Callable[..., Store]) -> None:
    store = store_factory(delivery_limit=1)
    store.tell_ends_to('ends')
    lose(store, once=False)
    assert [end['reason'] for end, _ in told(store)] == ['delivery-limit']


def test_what_a_worker_reports_is_not_told(store: Store) -> None:
    store.tell_ends_to('ends')
    for verdict in (Verdict.ACK, Verdict.FAIL, Verdict.CANCEL, Verdict.REPLACE):
        put(store, 'a')
        settle(store, verdict, take(store)[0], detail_of({'reason': 'failed'}))
        store.client.delete(store.keys.job('a'), store.keys.extra('a'))
    assert told(store) == []


def test_nothing_is_told_that_nobody_wants_to_know(store: Store) -> None:
    lose(store)
    store.tell_ends_to('ends')
    store.tell_ends_to('')
    lose(store, 'b')
    assert store.counts('ends').ready == 0
    assert store.counts('q').dead == 2


def test_the_end_of_an_end_is_not_told(store_factory: Callable[..., Store]) -> None:
    store = store_factory(delivery_limit=1)
    store.tell_ends_to('ends')
    lose(store)
    take(store, 'ends')
    pass_time(store, LEASE)
    assert take(store, 'ends') == []
    assert store.counts('ends').dead == 1
    assert store.counts('ends').ready == 0


def test_foreign_data_where_ends_are_told_does_not_undo_a_death(store: Store) -> None:
    store.tell_ends_to('ends')
    store.client.set(store.keys.ready('ends'), 'foreign')
    lose(store)
    assert store.counts('q').dead == 1


def test_not_too_many_wait_to_be_told(store: Store) -> None:
    store.tell_ends_to('ends')
    many: Any = {f'e{number}': number for number in range(10_000)}
    store.client.zadd(store.keys.ready('ends'), many)
    lose(store)
    assert store.counts('ends').ready == 10_000
    assert store.client.hget(store.keys.meta, 'untold') == b'1'


def test_large_and_odd_records_are_told_whole(store: Store) -> None:
    store.tell_ends_to('ends')
    large = seal(HEAD, bytes(range(256)) * 100)
    put(store, 'a', queue='sch\u00f6n', envelope=large)
    (held,) = take(store, 'sch\u00f6n')
    settle(store, Verdict.ONCE, held)
    pass_time(store, LEASE)
    take(store, 'sch\u00f6n')
    ((end, envelope),) = told(store)
    assert end['queue'] == 'sch\u00f6n'
    assert envelope == large
