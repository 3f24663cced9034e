"""Cancelling jobs that somebody holds, without taking them from him; and what is to come after
others: both decided by the scripts, with a clock of our own."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from kombu_reliable.envelope import unseal
from kombu_reliable.store import Store
from kombu_reliable.types import Dependencies, Outgoing
from tests.test_dependencies import CONSTANT, Graph
from tests.test_scripts import ACK, DONE, FAIL, HOUR, LEASE, RELEASE, REQUEUE

ENDS = {'r:ends', 'w:ends'}


class Spared(Graph):
    """One job, held, canceled and left to its owner."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        store.tell_ends_to('ends')
        self.add('a')
        self.start()
        assert self.store.jobs.cancel(self.job(), 'revoked', spare=True) == 'requested'

    def job(self) -> Any:
        [found] = self.store.jobs.in_state('q', 'leased')
        return found

    def run_again(self) -> None:
        held = self.held['a']
        assert self.add('a', run=(held.token, 'a')) == 'a'
        self.settle(ACK, held)

    def told(self) -> list[tuple[str, str]]:
        """Outcome and reason of the ends that were told."""
        found = []
        for end in self.take(queues='ends'):
            _, body = unseal(end.envelope)
            line = json.loads(body.partition(b'\n')[0])
            found.append((line['outcome'], line['reason']))
        return found


def _release(job: Spared) -> None:
    job.end('a', RELEASE)


def _requeue(job: Spared) -> None:
    job.end('a', REQUEUE)


def _lose(job: Spared) -> None:
    job.live(2 * LEASE)


@pytest.fixture
def spared(store: Store) -> Spared:
    return Spared(store)


@pytest.mark.parametrize('come_back', [_release, _requeue, _lose, Spared.run_again])
def test_it_never_starts_again(spared: Spared, come_back: Callable[[Spared], None]) -> None:
    spared.add('d', 'a')
    come_back(spared)
    assert spared.start() == ''
    assert spared.told() == [('canceled', 'revoked'), ('failed', 'dependency')]
    assert spared.dead() == 'd'
    assert not {key for key in spared.left() if key.endswith(':a')}


@pytest.mark.parametrize('come_back', [_release, _requeue, _lose, Spared.run_again])
def test_it_leaves_nothing(spared: Spared, come_back: Callable[[Spared], None]) -> None:
    come_back(spared)
    assert spared.start() == ''
    spared.settle(ACK, *spared.take(queues='ends'))
    assert not spared.left() - ENDS


def test_its_owner_may_renew_and_settle(spared: Spared) -> None:
    spared.add('d', 'a')
    held = spared.held['a']
    assert spared.renew(held) == [DONE]
    assert spared.settle(ACK, held) == [DONE]
    assert spared.start() == 'd'
    assert spared.told() == []


def test_a_failure_is_a_failure(spared: Spared) -> None:
    spared.end('a', FAIL)
    assert spared.dead() == 'a'
    spared.store.jobs.replay(spared.store.jobs.failed()[0])
    assert spared.start() == 'a'


def test_what_nobody_holds_is_gone_at_once(store: Store) -> None:
    graph = Graph(store)
    graph.add('a')
    [ready] = store.jobs.in_state('q', 'ready')
    assert store.jobs.cancel(ready, spare=True) == 'gone'
    assert graph.start() == ''
    assert graph.left() <= CONSTANT


# -- still to come, after others -------------------------------------------------


def add_after(graph: Graph, id: str, on: str, *before: str) -> None:
    depends = Dependencies((on,), within=(HOUR,), after=(before,))
    first, graph._number = graph._number, graph._number + 1
    graph.publish([Outgoing(id, 'q', 0, '0', id.encode(), depends=depends)], first)


def test_it_is_to_come_while_one_before_it_lives(store: Store) -> None:
    graph = Graph(store)
    graph.add('first')
    add_after(graph, 'd', 'last', 'first', 'second')
    assert graph.waiting() == 'd'
    assert graph.start() == 'first'
    graph.add('second')
    graph.end('first')
    assert graph.start() == 'second'
    graph.add('last')
    graph.end('second')
    assert graph.start() == 'last'
    graph.end('last')
    assert graph.start() == 'd'


def test_it_has_come_if_none_before_it_lives(store: Store) -> None:
    graph = Graph(store)
    add_after(graph, 'd', 'last', 'first', 'second')
    assert graph.start() == 'd'


def test_it_is_there_whatever_lives_before_it(store: Store) -> None:
    graph = Graph(store)
    graph.add('last', rank=1)
    add_after(graph, 'd', 'last', 'first')
    assert graph.start() == 'last'
    graph.end('last')
    assert graph.start() == 'd'


def test_many_parts_keep_what_comes_before(store: Store) -> None:
    graph = Graph(store)
    graph.add('first')
    names = tuple(f'x{number}' for number in range(1200))
    depends = Dependencies(names, within=(HOUR,) * 1200, after=((),) * 1199 + (('nobody',),))
    graph.add_many(Outgoing('d', 'q', 0, '0', b'd', depends=depends))
    assert len(graph.edges.unmet('d')) == 1199
    assert 'x1199' not in graph.edges.unmet('d')
