"""Queues that do not live for ever: ``x-expires`` and ``auto_delete``, as the scripts keep them."""

from __future__ import annotations

import pytest

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.types import QueueCounts
from tests.conftest import START
from tests.support.servers import Server
from tests.test_scripts import ACK, DONE, HOUR, LEASE, RELEASE, Bench, names

SIGN = 20_000  # a consumer signs at least so often, ms
LINGER = 10_000  # what was on its way to a queue that was deleted arrives within this time, ms


def binding(queue: str) -> str:
    return f'["{queue}","{queue}"]'


class Lives(Bench):
    """A bench with short verbs for queues."""

    def declare(self, queue: str = 'q', life: int = 0, auto: bool = False) -> int:
        return self.store.run(self.operations.declare(queue, life, auto))

    def bind(self, queue: str = 'q', exchange: str = 'x') -> bool:
        return self.store.run(self.operations.bind(exchange, binding(queue), queue))

    def attend(self, queue: str = 'q', consumer: str = 'c') -> float | None:
        return self.store.run(self.operations.attend(queue, consumer))

    def leave(self, queue: str = 'q', consumer: str = 'c') -> bool:
        return self.store.run(self.operations.leave(queue, consumer))

    def others_work(self, ms: int) -> None:
        """Time passes while somebody claims from another queue every 10 s."""
        while ms > 0:
            self.wait(min(ms, 10_000))
            ms -= 10_000
            self.claim(0, queues='other', worker='idle')

    def bound(self, exchange: str = 'x') -> list[str]:
        return self.store.bindings(exchange)


@pytest.fixture
def lives(store: Store) -> Lives:
    bench = Lives(store)
    bench.claim(0, queues='other', worker='idle')
    return bench


def test_an_ordinary_queue_is_known_and_never_deleted(lives: Lives) -> None:
    assert not lives.store.knows('q')
    assert lives.declare() == 0
    assert lives.bind() is True
    assert lives.bind() is False
    lives.put('a')
    assert lives.declare() == 1
    assert lives.attend() is None
    assert lives.leave() is False
    lives.others_work(HOUR)
    assert lives.counts().ready == 1
    assert lives.bound() == [binding('q')]
    assert lives.store.knows('q')


def test_an_unused_queue_goes_with_its_bindings_and_messages(lives: Lives) -> None:
    lives.declare(life=60_000)
    lives.bind()
    lives.bind(exchange='y:1')
    lives.put('a')
    lives.put('b', due='+999000')
    lives.others_work(59_999)
    assert lives.counts() == QueueCounts(1, 1, 0, 0)
    assert lives.store.knows('q')
    lives.others_work(1)
    assert not lives.bound()
    lives.others_work(1)  # the next step
    assert lives.counts() == QueueCounts(0, 0, 0, 0)
    assert not lives.bound('y:1')
    assert not lives.store.knows('q')
    lives.others_work(3 * LINGER)
    assert lives.key_names() == {'meta', 'pub'}


@pytest.mark.parametrize('use', ['declare', 'get', 'consumer'])
def test_a_queue_that_is_used_stays(lives: Lives, use: str) -> None:
    lives.declare(life=30_000)
    lives.put('a')
    for _ in range(10):
        if use == 'declare':
            lives.declare(life=30_000)
        else:
            lives.attend(consumer='c' if use == 'consumer' else '')
        lives.others_work(20_000)
    assert lives.counts().ready == 1
    lives.others_work(60_000)
    assert lives.counts().ready == 0


def test_a_consumer_signs_three_times_in_the_life_of_its_queue(lives: Lives) -> None:
    lives.declare(life=9_000)
    assert lives.attend() == 3.0
    lives.declare('long', life=24 * HOUR)
    assert lives.attend('long') == SIGN / 1000
    lives.declare('auto', auto=True)
    assert lives.attend('auto') == SIGN / 1000
    lives.declare('short', life=1)
    assert lives.attend('short') == 0.1


def test_a_queue_outlives_a_silent_consumer_by_its_life(lives: Lives) -> None:
    """The consumer may have died just before its next sign."""
    lives.declare(life=30_000)
    lives.attend()
    lives.others_work(39_999)
    assert lives.store.knows('q')
    lives.others_work(1)
    assert not lives.store.knows('q')


def test_an_auto_delete_queue_goes_with_its_last_consumer(lives: Lives) -> None:
    lives.declare(auto=True)
    lives.bind()
    lives.put('a')
    lives.others_work(HOUR)  # it waits for its first consumer
    assert lives.counts().ready == 1
    lives.attend(consumer='c')
    lives.attend(consumer='d')
    assert lives.leave(consumer='c') is False
    assert lives.leave(consumer='c') is False
    assert lives.counts().ready == 1
    assert lives.leave(consumer='d') is True
    assert lives.counts().ready == 0
    assert not lives.bound()


def test_an_auto_delete_queue_goes_when_its_last_consumer_fell_silent(lives: Lives) -> None:
    lives.declare(auto=True)
    lives.bind()
    lives.attend()
    lives.others_work(3 * SIGN - 1)
    assert lives.bound()
    lives.others_work(1)
    assert not lives.bound()


def test_one_who_fell_silent_does_not_keep_an_auto_delete_queue(lives: Lives) -> None:
    lives.declare(auto=True)
    lives.attend(consumer='dead')
    lives.others_work(SIGN)
    lives.attend(consumer='alive')
    lives.others_work(2 * SIGN)
    assert lives.leave(consumer='alive') is True


def test_consumers_that_fell_silent_do_not_pile_up(lives: Lives) -> None:
    lives.declare(life=5_000)
    for number in range(20):
        lives.attend(consumer=f'c{number}')
        lives.others_work(4_000)
    assert lives.client.zcard(lives.keys.attendance('q')) <= 2


def test_leased_messages_postpone_the_end(lives: Lives) -> None:
    lives.declare(life=5_000)
    lives.bind()
    lives.put('a', 'b')
    held = lives.take(1)
    for _ in range(6):
        lives.others_work(10_000)
        assert lives.renew(*held) == [DONE]
    assert lives.counts() == QueueCounts(1, 0, 1, 0)
    assert lives.bound()
    assert lives.settle(ACK, *held) == [DONE]
    lives.others_work(LEASE)
    assert not lives.bound()
    assert lives.counts() == QueueCounts(0, 0, 0, 0)


def test_what_was_leased_when_its_queue_was_deleted_can_be_settled(lives: Lives) -> None:
    lives.declare(auto=True)
    lives.attend()
    lives.put('a', 'b', 'c')
    held = lives.take(3)
    assert lives.leave() is True
    assert lives.settle(ACK, held[0]) == [DONE]
    assert lives.settle(RELEASE, held[1]) == [DONE]
    lives.others_work(LEASE + 3 * LINGER)  # the third owner is never heard again
    assert lives.key_names() == {'meta', 'pub'}


def test_a_publish_that_was_on_its_way_is_found_later(lives: Lives) -> None:
    lives.declare(life=5_000, auto=True)
    lives.bind()
    lives.attend()
    assert lives.leave() is True
    lives.put('late')
    lives.others_work(LINGER)
    assert lives.counts().ready == 0
    lives.others_work(3 * LINGER)
    assert lives.key_names() == {'meta', 'pub'}


def test_a_queue_may_be_declared_again_at_once(lives: Lives) -> None:
    lives.declare(life=5_000, auto=True)
    lives.attend()
    lives.leave()
    lives.declare(life=60_000)
    lives.bind()
    lives.put('a')
    lives.others_work(59_000)
    assert lives.counts().ready == 1
    assert lives.bound()


def test_the_last_declaration_wins(lives: Lives) -> None:
    lives.declare(life=5_000, auto=True)
    lives.bind()
    lives.declare()
    lives.others_work(HOUR)
    assert lives.bound()
    lives.declare(life=5_000)
    lives.others_work(5_000)
    assert not lives.store.knows('q')


def test_a_silent_server_counts_against_no_queue(lives: Lives) -> None:
    lives.declare(life=5_000)
    lives.declare('auto', auto=True)
    lives.attend()
    lives.attend('auto')
    lives.wait(HOUR)  # an outage: nobody could sign
    lives.claim(0, queues='other')
    assert lives.store.knows('q')
    assert lives.store.knows('auto')
    lives.attend()
    lives.others_work(LEASE)
    assert not lives.store.knows('auto')


def test_a_big_queue_is_deleted_in_steps(lives: Lives) -> None:
    lives.declare(life=5_000)
    for number in range(250):
        lives.bind(exchange=f'x{number}')
    for letter in 'abcdef':
        lives.put(*names(letter, 100))
    lives.others_work(5_000)
    assert lives.counts().ready == 400
    claims = 0
    while lives.counts().ready and claims < 10:
        claims += 1
        lives.claim(0, queues='other')
    assert claims <= 3
    lives.others_work(3 * LINGER)
    assert lives.key_names() == {'meta', 'pub'}


def test_without_any_claim_the_memory_of_a_deleted_queue_goes_by_itself(lives: Lives) -> None:
    lives.declare(auto=True)
    lives.attend()
    lives.leave()
    assert 0 < lives.client.pttl(lives.keys.life('q')) <= 40_000


def test_delete(lives: Lives) -> None:
    lives.declare()
    lives.bind()
    lives.bind(exchange='y')
    lives.put(*names('a', 100))
    lives.put(*names('b', 100))
    lives.put(*names('c', 100))
    assert lives.store.delete('q', if_empty=True) is False
    assert lives.store.delete('q', [('x', binding('q')), ('y', binding('q'))]) is True
    assert lives.key_names() == {'meta', 'pub'}


def test_delete_spares_a_queue_that_is_used(lives: Lives) -> None:
    lives.declare(life=5_000)
    lives.bind()
    lives.attend()
    assert lives.store.delete('q', if_unused=True) is False
    lives.leave()
    assert lives.store.delete('q', if_unused=True) is True
    assert not lives.bound()  # nobody had to name its bindings
    assert not lives.store.knows('q')


def test_unbind(lives: Lives) -> None:
    lives.declare(life=5_000)
    lives.bind()
    lives.store.run(lives.operations.unbind('x', binding('q'), 'q'))
    assert not lives.bound()
    assert not lives.client.exists(lives.keys.bound('q'))


def test_a_fanout_queue_has_no_life_of_its_own(lives: Lives) -> None:
    lives.declare(life=5_000, auto=True)
    lives.store.run(lives.operations.listen('x', 'me', 'q'))
    assert not lives.client.exists(lives.keys.life('q'))
    lives.others_work(10_000)
    assert 'alarm' not in lives.key_names()


def test_a_full_server_knows_queues(server: Server) -> None:
    """Or no worker could start on it and empty it."""
    with Server(server.binary) as own, own.client() as client:
        lives = Lives(Store(client, Operations(Keys(), Options(), START)))
        lives.put('a')
        client.config_set('maxmemory', 1)
        lives.declare()
        lives.declare('auto', auto=True)
        lives.bind('auto')
        assert lives.attend('auto') == SIGN / 1000
        assert lives.leave('auto') is True
