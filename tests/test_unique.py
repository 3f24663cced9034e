"""Unique keys in the store: who gets a key, who loses it, and what must never hold it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from kombu_reliable import DuplicateJob, open_envelope
from kombu_reliable.envelope import seal
from kombu_reliable.store import Store
from kombu_reliable.types import (
    Delivery,
    Dependencies,
    Marks,
    Outgoing,
    Policy,
    Settlement,
    Status,
    Unique,
    Verdict,
)

LEASE = 30_000
#: Of a unique key: shorter than a lease, and longer than a test takes, as the server forgets it
#: by its own clock.
LIFE = 20_000
ENVELOPE = seal(['application/json', 'utf-8', {'id': 'a', 'task': 't'}, {}], b'[[], {}, {}]')

#: What is there when no job is.
CONSTANTS = ('meta', 'pub', 'alarm', 'fenced', 'noticed')

_numbers = itertools.count()


def put(
    store: Store, id: str, conflict: str = 'skip', key: str = 'k', life: int = 0, due: str = '0',
    queue: str = 'q', **more: Any,
) -> str:  # fmt: skip
    """What the server answers to a publish."""
    message = Outgoing(
        id, queue, 0, due, ENVELOPE, unique=Unique(key, life, conflict) if key else None, **more
    )
    return store.run(store.operations.publish(f'lane{next(_numbers)}', 1, [message]))[0]


def take(store: Store, queue: str = 'q', credit: int = 10) -> list[Delivery]:
    call = store.operations.claim('w', f't{next(_numbers)}', credit, [queue])
    return list(store.run(call).deliveries)


def settle(store: Store, one: Delivery, verdict: Verdict = Verdict.ACK, detail: str = '') -> Status:
    batch = [Settlement(verdict, one.queue, one.id, one.token, detail)]
    return store.run(store.operations.settle(batch))[0]


def pass_time(store: Store, ms: int) -> None:
    """Somebody is heard meanwhile, so leases end."""
    assert store.operations.now is not None
    end = store.operations.now + ms
    while store.operations.now < end:
        store.operations.now = min(end, store.operations.now + LEASE // 3)
        take(store, 'another', 0)


def locks(store: Store) -> list[str]:
    prefix = store.keys.unique('')
    return sorted(key.decode().removeprefix(prefix) for key in store.client.keys(prefix + '*'))


def left(store: Store) -> list[str]:
    """What is in the store, but for the few keys that are always there."""
    prefix = store.keys.meta.removesuffix('meta')
    found = (key.decode().removeprefix(prefix) for key in store.client.keys('*'))
    return sorted(one for one in found if one not in CONSTANTS and not one.startswith('w:'))


def states(store: Store, *ids: str) -> list[str]:
    found = [store.jobs.get(id) for id in ids]
    return [job.state if job else '-' for job in found]


# -- one at a time ---------------------------------------------------------------------------


@pytest.mark.parametrize('due', ['0', '+5000'])
def test_a_second_one_is_skipped_or_refused(store: Store, due: str) -> None:
    assert put(store, '=a', due=due) == '=a'
    assert put(store, '=b') == '!skip =a'
    assert put(store, '=c', 'raise') == '!raise =a'
    assert put(store, '=d', key='other') == '=d'
    assert states(store, 'b', 'c') == ['-', '-']


def test_also_while_it_runs_waits_or_was_taken_back(store: Store) -> None:
    put(store, '=a')
    (held,) = take(store)
    assert put(store, '=b') == '!skip =a'
    settle(store, held, Verdict.REQUEUE)
    assert put(store, '=b') == '!skip =a'
    take(store)
    pass_time(store, LEASE + 1)
    take(store, 'another', 0)
    assert put(store, '=b') == '!skip =a'
    put(store, '=x', key='')
    put(store, '=y', key='k2', depends=Dependencies(('=x',)))
    assert put(store, '=z', key='k2') == '!skip =y'


ENDS: dict[str, Callable[[Store, Delivery], Any]] = {
    'ack': lambda store, held: settle(store, held),
    'fail': lambda store, held: settle(store, held, Verdict.FAIL, 'rejected'),
    'cancel': lambda store, held: settle(store, held, Verdict.CANCEL),
    'replace': lambda store, held: settle(store, held, Verdict.REPLACE),
    'canceled from outside': lambda store, held: store.jobs.cancel('a'),
}


@pytest.mark.parametrize('how', ENDS)
def test_the_key_is_free_when_its_job_has_ended(store: Store, how: str) -> None:
    put(store, '=a')
    (held,) = take(store)
    ENDS[how](store, held)
    assert locks(store) == []
    assert put(store, '=b') == '=b'
    assert locks(store) == ['k']


def test_the_key_goes_with_a_job_that_never_ran(store: Store) -> None:
    for due in ('0', '+5000'):
        put(store, '=a', due=due)
        store.jobs.cancel('a')
        assert locks(store) == []
        put(store, '=a', due=due)
        store.purge('q')
        assert locks(store) == []
        put(store, '=a', due=due)
        store.jobs.purge('q')
        assert locks(store) == []
        put(store, '=a', due=due)
        store.delete('q')
        assert locks(store) == []
    put(store, '=x', key='')
    put(store, '=a', depends=Dependencies(('=x',)))
    store.purge('q')
    take(store, 'q', 0)  # what the end of '=x' means
    assert left(store) == []


def test_the_limit_of_deliveries(store_factory: Callable[..., Store]) -> None:
    store = store_factory(delivery_limit=1)
    put(store, '=a')
    take(store)
    pass_time(store, LEASE + 1)
    assert put(store, '=b') == '!skip =a'  # it is dead when the next claim finds it
    assert take(store) == []
    assert states(store, 'a') == ['failed']
    assert locks(store) == []


def test_a_job_that_was_lost_or_is_unwanted(store: Store) -> None:
    put(store, '=a')
    settle(store, take(store)[0], Verdict.ONCE)
    pass_time(store, LEASE + 1)
    take(store)
    assert states(store, 'a') == ['failed']
    assert locks(store) == []
    put(store, '=b')
    (held,) = take(store)
    store.jobs.cancel('b', spare=True)
    assert put(store, '=c') == '!skip =b'
    settle(store, held, Verdict.REQUEUE)
    take(store)
    assert states(store, 'b') == ['-']
    assert locks(store) == []


def test_the_key_moves_with_its_job(store: Store) -> None:
    put(store, '=a')
    store.jobs.move('a', 'r')
    assert put(store, '=b') == '!skip =a'
    (held,) = take(store, 'r')
    settle(store, held)
    assert left(store) == []


def test_a_late_owner_frees_nothing(store: Store) -> None:
    put(store, '=a')
    (late,) = take(store)
    pass_time(store, LEASE + 1)
    (held,) = take(store)
    assert settle(store, late) is Status.FENCED
    assert put(store, '=b') == '!skip =a'
    settle(store, held)
    assert put(store, '=b') == '=b'


# -- a lock without its job ------------------------------------------------------------------


def test_a_lock_that_was_left_behind_holds_nobody_back(store: Store) -> None:
    client, keys = store.client, store.keys
    put(store, '=a')
    client.delete(keys.job('=a'), keys.extra('=a'))
    assert put(store, '=b') == '=b'
    client.delete(keys.extra('=b'))
    assert put(store, '=c') == '=c'
    client.hset(keys.extra('=c'), 'u', '1;0;another')
    assert put(store, '=d') == '=d'
    client.zrem(keys.ready('q'), '=d')
    assert put(store, '=e') == '=e'
    lock = client.get(keys.unique('k'))
    settle(store, take(store)[-1], Verdict.FAIL, 'rejected')
    assert states(store, 'e') == ['failed']
    client.set(keys.unique('k'), lock)
    assert put(store, '=f') == '=f'


@pytest.mark.parametrize('foreign', ['', 'x', '1;2', '1;0;=a', 'list'])
def test_foreign_data_in_its_place(store: Store, foreign: str) -> None:
    key = store.keys.unique('k')
    if foreign == 'list':
        store.client.rpush(key, 'x')
    else:
        store.client.set(key, foreign)
    assert put(store, '=a') == '=a'
    assert put(store, '=b') == '!skip =a'
    settle(store, take(store)[0])
    assert locks(store) == []


def test_foreign_data_in_the_job(store: Store) -> None:
    put(store, '=a')
    store.client.delete(store.keys.extra('=a'))
    store.client.set(store.keys.extra('=a'), 'foreign')
    assert put(store, '=b') == '=b'
    for one in take(store):
        settle(store, one)
    assert locks(store) == []


def test_a_job_that_lost_its_key_does_not_take_that_of_the_next(store: Store) -> None:
    put(store, '=a', life=LIFE)
    (first,) = take(store)
    pass_time(store, LIFE)
    assert put(store, '=b', life=LIFE) == '=b'
    settle(store, first)
    assert locks(store) == ['k']
    assert put(store, '=c') == '!skip =b'


def test_the_same_id_again_after_its_key_has_expired(store: Store) -> None:
    """The key tells apart two jobs with one id."""
    put(store, '=a', life=LIFE)
    (first,) = take(store)
    pass_time(store, LIFE)
    twin = put(store, '=a')
    assert twin.startswith('~')
    settle(store, first)
    assert put(store, '=b') == f'!skip {twin}'
    settle(store, take(store)[0])
    assert left(store) == []


# -- a limited time --------------------------------------------------------------------------


def test_a_key_with_a_limited_life(store: Store) -> None:
    put(store, '=a', life=LIFE)
    pass_time(store, LIFE - 1)
    assert put(store, '=b') == '!skip =a'
    pass_time(store, 1)
    assert put(store, '=b') == '=b'


def test_the_server_forgets_a_key_whose_life_has_ended(store: Store) -> None:
    put(store, '=a', life=LIFE)
    assert 0 < store.client.pttl(store.keys.unique('k')) <= LIFE
    put(store, '=b', 'replace')
    assert store.client.pttl(store.keys.unique('k')) == -1


# -- replace ---------------------------------------------------------------------------------


def ends_of(store: Store) -> list[tuple[str, str, str]]:
    told = []
    for one in take(store, 'ends'):
        raw = open_envelope(one.envelope, 'ends', one.token, one.deliveries)
        end = json.loads(raw['body'].partition(b'\n')[0])
        told.append((end['key'], end['outcome'], end['reason']))
        settle(store, one)
    return told


@pytest.mark.parametrize('due', ['0', '+5000'])
def test_a_queued_job_is_replaced(store: Store, due: str) -> None:
    store.tell_ends_to('ends')
    put(store, '=a', due=due)
    assert put(store, '=b', 'replace', due='+100') == '=b'
    assert states(store, 'a', 'b') == ['-', 'delayed']
    assert ends_of(store) == [('=a', 'canceled', 'replaced')]
    pass_time(store, 100)
    settle(store, take(store)[0])
    assert left(store) == []


def test_each_replacement_has_a_delay_of_its_own(store: Store) -> None:
    for number in range(10):
        put(store, f'=a{number}', 'replace', due='+500')
        pass_time(store, 400)
        assert take(store) == []
    pass_time(store, 100)
    assert [one.id for one in take(store)] == ['=a9']


def test_the_same_id_may_replace_itself(store: Store) -> None:
    put(store, '=a', due='+500')
    assert put(store, '=a', 'replace', due='+900') == '=a'
    pass_time(store, 900)
    assert [one.id for one in take(store)] == ['=a']


def test_behind_one_that_runs_waits_the_newest(store: Store) -> None:
    put(store, '=a')
    (held,) = take(store)
    for number in range(5):
        assert put(store, f'=b{number}', 'replace') == f'=b{number}'
    assert store.counts('q').waiting == 1
    assert take(store) == []
    assert put(store, '=c') == '!skip =b4'
    settle(store, held)
    (next_,) = take(store)
    assert next_.id == '=b4'
    assert put(store, '=c', 'raise') == '!raise =b4'
    settle(store, next_)
    assert left(store) == []


@pytest.mark.parametrize('verdict', [Verdict.FAIL, Verdict.CANCEL, Verdict.ACK])
def test_the_successor_starts_however_the_first_ends(store: Store, verdict: Verdict) -> None:
    put(store, '=a')
    (held,) = take(store)
    put(store, '=b', 'replace')
    settle(store, held, verdict, 'rejected')
    take(store, 'q', 0)  # the end of a failure is worked off by a claim
    assert [one.id for one in take(store)] == ['=b']


def test_the_successor_waits_for_retries_of_the_first(store: Store) -> None:
    put(store, '=a')
    (held,) = take(store)
    put(store, '=b', 'replace')
    put(store, '=a', key='', run=(held.token, '=a'), due='+100')
    assert put(store, '=c', 'replace') == '=c'
    pass_time(store, 100)
    (again,) = take(store)
    assert again.id == '=a'
    settle(store, again)
    assert [one.id for one in take(store)] == ['=c']


def test_the_successor_has_its_own_delay_and_dependencies(store: Store) -> None:
    put(store, '=x', key='')
    put(store, '=a', queue='r')
    (held,) = take(store, 'r')
    on = Dependencies(('=x',), Policy.FAIL)
    put(store, '=b', 'replace', due='+500', queue='r', depends=on)
    settle(store, held)
    assert states(store, 'b') == ['waiting']
    settle(store, take(store)[0])
    assert states(store, 'b') == ['delayed']
    pass_time(store, 500)
    assert [one.id for one in take(store, 'r')] == ['=b']


def test_the_successor_of_one_with_the_same_id(store: Store) -> None:
    put(store, '=a')
    (held,) = take(store)
    twin = put(store, '=a', 'replace')
    assert twin.startswith('~')
    assert take(store) == []
    settle(store, held)
    (next_,) = take(store)
    assert next_.id == twin
    settle(store, next_)
    assert left(store) == []


def test_a_running_job_with_a_successor_can_be_canceled(store: Store) -> None:
    put(store, '=a')
    take(store)
    put(store, '=b', 'replace')
    assert store.jobs.cancel('a') == 'requested'
    take(store, 'q', 0)
    assert [one.id for one in take(store)] == ['=b']


def test_one_whose_worker_died_is_replaced(store: Store) -> None:
    """Nobody has it, though its worker could come back: he is too late then."""
    put(store, '=a')
    (late,) = take(store)
    pass_time(store, LEASE + 1)
    put(store, '=b', 'replace')
    assert settle(store, late) is Status.FENCED
    (held,) = take(store)
    assert held.id == '=b'
    assert put(store, '=c') == '!skip =b'


def test_who_waits_for_what_was_replaced(store: Store) -> None:
    """It was canceled: what that means is a matter of the policy."""
    put(store, '=a')
    put(store, '=x', key='', depends=Dependencies(('=a',), Policy.WAIT))
    put(store, '=y', key='', depends=Dependencies(('=a',), Policy.IGNORE))
    put(store, '=b', 'replace')
    take(store, 'q', 0)
    take(store, 'q', 0)
    assert states(store, 'x', 'y') == ['failed', 'ready']


# -- next runs, replays ----------------------------------------------------------------------


def test_a_next_run_keeps_the_key_and_is_not_in_its_own_way(store: Store) -> None:
    put(store, '=a')
    for conflict in ('skip', 'raise', 'replace'):
        (held,) = take(store)
        assert put(store, '=a', conflict, run=(held.token, '=a')) == '=a'
        assert put(store, '=b') == '!skip =a'
    settle(store, take(store)[0])
    assert left(store) == []


def test_a_next_run_of_one_that_has_lost_its_key(store: Store) -> None:
    put(store, '=a', life=1000)
    (held,) = take(store)
    pass_time(store, 1000)
    put(store, '=b')
    assert put(store, '=a', run=(held.token, '=a')) == '=a'
    assert put(store, '=c') == '!skip =b'
    for one in take(store):
        settle(store, one)
    assert left(store) == []


def test_a_fenced_run_gets_nothing(store: Store) -> None:
    put(store, '=a')
    (late,) = take(store)
    pass_time(store, LEASE + 1)
    (held,) = take(store)
    settle(store, held)
    assert put(store, '=a', run=(late.token, '=a')) == '!'
    assert locks(store) == []


def test_a_replay_takes_the_key_again(store: Store) -> None:
    put(store, '=a', life=LIFE)
    settle(store, take(store)[0], Verdict.FAIL, 'rejected')
    pass_time(store, 2 * LIFE)
    store.jobs.replay('a')
    pass_time(store, LIFE - 1)
    assert put(store, '=b') == '!skip =a'
    settle(store, take(store)[0])
    assert left(store) == []


def test_a_replay_that_comes_too_late_is_refused(store: Store) -> None:
    put(store, '=a')
    settle(store, take(store)[0], Verdict.FAIL, 'rejected')
    put(store, '=b')
    with pytest.raises(DuplicateJob, match='task b has its unique key') as caught:
        store.jobs.replay('a')
    assert caught.value.id == 'b'
    assert states(store, 'a') == ['failed']
    assert store.jobs.replay_group('rejected') == 0
    assert states(store, 'a') == ['failed']
    settle(store, take(store)[0])
    assert store.jobs.replay_group('rejected') == 1
    assert put(store, '=c') == '!skip =a'


def test_of_two_dead_letters_one_can_be_replayed(store: Store) -> None:
    for id in ('=a', '=b'):
        put(store, id)
        settle(store, take(store)[0], Verdict.FAIL, 'rejected')
    assert store.jobs.replay_group('rejected') == 1
    assert sorted(states(store, 'a', 'b')) == ['failed', 'ready']


def test_a_dead_letter_that_goes_frees_nothing(store: Store) -> None:
    put(store, '=a')
    settle(store, take(store)[0], Verdict.FAIL, 'rejected')
    put(store, '=b')
    store.jobs.discard('a')
    assert put(store, '=c') == '!skip =b'


# -- the start of a run ----------------------------------------------------------------------


def test_a_key_that_is_free_from_the_start(store: Store) -> None:
    put(store, '=a')
    (held,) = take(store)
    assert not store.unlock('=a', 'another token')
    assert put(store, '=b') == '!skip =a'  # a worker has it, but it does not run yet
    assert store.unlock('=a', held.token)
    assert not store.unlock('=a', held.token)
    assert put(store, '=b') == '=b'
    settle(store, held)
    assert put(store, '=c') == '!skip =b'


def test_an_old_run_frees_nothing(store: Store) -> None:
    put(store, '=a')
    (late,) = take(store)
    pass_time(store, LEASE + 1)
    take(store)
    assert not store.unlock('=a', late.token)
    assert put(store, '=b') == '!skip =a'


# -- publishes that are repeated -------------------------------------------------------------


def publish(store: Store, lane: str, number: int, *messages: Outgoing) -> tuple[str, ...]:
    return store.run(store.operations.publish(lane, number, messages))


def message(id: str, conflict: str = 'skip', key: str = 'k') -> Outgoing:
    return Outgoing(id, 'q', 0, '0', ENVELOPE, unique=Unique(key, 0, conflict))


def test_a_repeated_publish_is_no_conflict_with_itself(store: Store) -> None:
    for conflict in ('skip', 'raise', 'replace'):
        one = message(f'={conflict}', conflict, conflict)
        assert publish(store, conflict, 5, one) == (f'={conflict}',)
        assert publish(store, conflict, 5, one) == ('',)
    assert store.counts('q').ready == 3


@pytest.mark.parametrize('conflict', ['skip', 'raise'])
def test_a_repeated_conflict_is_told_again(store: Store, conflict: str) -> None:
    """Who has not got the answer must not take his message for stored."""
    publish(store, 'x', 1, message('=a'))
    publish(store, 'y', 4, message('=z', key='other'))
    for _ in range(2):
        assert publish(store, 'y', 5, message('=b', conflict)) == (f'!{conflict} =a',)
    assert publish(store, 'y', 4, message('=z', key='other')) == ('',)
    settle(store, take(store)[0])
    assert publish(store, 'y', 5, message('=b', conflict)) == ('=b',)
    assert publish(store, 'y', 5, message('=b', conflict)) == ('',)


def test_a_batch(store: Store) -> None:
    batch = [message('=a'), message('=b'), message('=c', key='other'), message('=d', 'replace')]
    assert publish(store, 'x', 1, *batch) == ('=a', '!skip =a', '=c', '=d')
    assert publish(store, 'x', 1, *batch) == ('', '', '', '')
    assert sorted(one.id for one in take(store)) == ['=c', '=d']


@pytest.mark.parametrize(
    'key', ['\u00fc', '\U0001f600', 'a\0b', '\n', ';0;', '"\\', ' ', '%s', '{}', '\u2028', '1;0;=a']
)
def test_keys_with_anything_in_them(store: Store, key: str) -> None:
    assert put(store, '=a', key=key) == '=a'
    assert put(store, '=b', key=key) == '!skip =a'
    assert locks(store) == [key]
    settle(store, take(store)[0])
    assert left(store) == []


def test_a_job_that_is_not_even_kept_for_a_moment_frees_its_key(store: Store) -> None:
    short, long_ = Marks(retain=500, limit=1), Marks(retain=5_000, limit=1)
    put(store, '=a', key='', marks=long_)
    put(store, '=b', marks=short)
    for one in take(store):
        settle(store, one)
    assert states(store, 'b') == ['-']
    assert locks(store) == []
