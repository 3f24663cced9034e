"""Jobs that wait for others: each promise of the scripts, with a clock of our own."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from kombu_reliable.errors import DependencyCycle, HasDependents, ServerFull
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.scripts import all_scripts, script
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.operations import CYCLE, EDGE_LIMIT, REFUSED
from kombu_reliable.transport.lanes import next_nonce
from kombu_reliable.transport.publisher import _rounds, publish
from kombu_reliable.types import Delivery, Dependencies, Outgoing, Policy, Settlement, Verdict
from tests.conftest import START
from tests.support.servers import Server
from tests.test_scripts import ACK, FAIL, HOUR, LEASE, RELEASE, REQUEUE, Bench

WAIT, FAIL_TOO, IGNORE = Policy.WAIT, Policy.FAIL, Policy.IGNORE
DAY = 24 * HOUR
NAMES = {script.sha: script.name for script in all_scripts()}
STEP = 100  # edges that one claim works through

#: What always stays.
CONSTANT = {'meta', 'pub', 'alarm', 'fenced', 'w:q', 'w:r', 'w:s', 'w:idle'}


class Graph(Bench):
    """Jobs by the ids of what they depend on."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.edges = store.edges
        self.held: dict[str, Delivery] = {}

    def add(
        self, id: str, on: str | Sequence[str] = '', policy: Policy = WAIT, within: int = 0,
        queue: str = 'q', due: str = '0', rank: int = 0, run: tuple[str, str] | None = None,
    ) -> str:  # fmt: skip
        keys = tuple(on.split()) if isinstance(on, str) else tuple(on)
        depends = Dependencies(keys, policy, (within,) * len(keys)) if keys else None
        first, self._number = self._number, self._number + 1
        message = Outgoing(id, queue, rank, due, id.encode(), run=run, depends=depends)
        return self.publish([message], first)[0]

    def add_all(self, ids: Sequence[str], on: str, policy: Policy = WAIT, queue: str = 'r') -> None:
        for at in range(0, len(ids), 100):
            batch = [outgoing(id, [on] if on else [], policy, queue) for id in ids[at : at + 100]]
            first, self._number = self._number, self._number + len(batch)
            self.publish(batch, first)

    def add_many(self, message: Outgoing, memory: dict[str, Any] | None = None) -> None:
        """As the transport does it: in as many parts as it takes."""
        publish(self.store, {} if memory is None else memory, [message])

    def start(self, credit: int = 10, queues: str = 'q r s') -> str:
        """Claims; the ids of those that start, in order."""
        found = self.take(credit, queues)
        self.held.update((one.id, one) for one in found)
        return ' '.join(one.id for one in found)

    def end(self, ids: str, verdict: Verdict = ACK) -> None:
        self.settle(verdict, *(self.held.pop(id) for id in ids.split()), reason='why')

    def waiting(self, queue: str = 'q') -> str:
        found = self.client.zrange(self.keys.waiting(queue), 0, -1)
        return ' '.join(id.decode() for id in found)

    def dead(self, queue: str = 'q') -> str:
        found = self.client.zrange(self.keys.dead(queue), 0, -1)
        return ' '.join(sorted(id.decode() for id in found))

    def why(self, id: str) -> tuple[str | None, str | None]:
        found = self.client.hmget(self.keys.extra(id), 'reason', 'cause')
        reason, cause = (None if field is None else field.decode() for field in found)
        return reason, cause

    def attend(self, ms: int = 0) -> None:
        """An idle worker is heard, and time is served."""
        self.live(ms)
        self.claim(0, 'idle')

    def left(self) -> set[str]:
        return self.key_names() - CONSTANT


@pytest.fixture
def graph(store: Store) -> Graph:
    return Graph(store)


@pytest.fixture
def graph_factory(store_factory: Callable[..., Store]) -> Callable[..., Graph]:
    return lambda **options: Graph(store_factory(**options))


def outgoing(id: str, on: Sequence[str], policy: Policy = WAIT, queue: str = 'q') -> Outgoing:
    depends = Dependencies(tuple(on), policy) if on else None
    return Outgoing(id, queue, 0, '0', id.encode(), depends=depends)


# -- waiting and being released -------------------------------------------------------------


def test_a_dependent_starts_once_its_dependency_has_succeeded(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    assert graph.waiting() == 'd'
    assert graph.edges.unmet('d') == ['p']
    assert graph.edges.dependents('p') == [('d', WAIT)]
    assert graph.start() == 'p'
    graph.attend(3 * LEASE // 4)
    assert graph.start() == ''
    graph.end('p')
    assert graph.start() == 'd'
    graph.end('d')
    assert not graph.left()


def test_the_script_that_ends_a_dependency_wakes_those_who_serve_its_dependents(
    graph: Graph,
) -> None:
    graph.add('p')
    graph.add('d', 'p', queue='r')
    graph.start(queues='q')
    assert not graph.marked('r')
    graph.end('p')
    assert graph.marked('r')
    assert graph.ready('r') == ['d']


def test_a_settlement_that_comes_with_a_claim_releases_in_the_same_call(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    (held,) = graph.take()
    batch = [Settlement(ACK, 'q', 'p', held.token)]
    claimed = graph.store.run(graph.operations.claim('w', 'x', 1, ['q'], batch))
    assert [one.id for one in claimed.deliveries] == ['d']


def test_a_diamond_across_queues(graph: Graph) -> None:
    graph.add('a', queue='q')
    graph.add('b', 'a', queue='r', due='+5000')
    graph.add('c', 'a', queue='s')
    graph.add('d', 'b c', queue='q')
    assert graph.start() == 'a'
    graph.end('a')
    assert graph.start() == 'c'
    graph.end('c')
    assert graph.start() == ''
    graph.wait(5000)
    assert graph.start() == 'b'
    assert graph.start() == ''
    graph.end('b')
    assert graph.start() == 'd'
    graph.end('d')
    graph.attend(LEASE)
    assert not graph.left()


def test_what_is_not_there_counts_as_done(graph: Graph) -> None:
    graph.add('p')
    graph.start()
    graph.end('p')
    graph.add('d', 'p never-heard-of')
    assert graph.start() == 'd'


def test_a_job_that_waits_can_be_waited_for(graph: Graph) -> None:
    graph.add('a')
    graph.add('b', 'a')
    graph.add('c', 'b')
    for id in 'abc':
        assert graph.start() == id
        graph.end(id)


def test_those_that_are_released_together_start_in_order(graph: Graph) -> None:
    graph.add('p')
    for id, rank in (('z', 0), ('low', 0), ('high', 9), ('a', 0)):
        graph.add(id, 'p', rank=rank)
    graph.start()
    graph.end('p')
    assert graph.start() == 'high z low a'


@pytest.mark.parametrize('late', [False, True])
def test_an_own_delay_counts_from_the_publish(graph: Graph, late: bool) -> None:
    graph.add('p')
    graph.add('d', 'p', due='+5000')
    graph.start()
    graph.live(6000 if late else 2000)
    graph.end('p')
    if not late:
        assert graph.start() == ''
        graph.wait(2999)
        assert graph.start() == ''
        graph.wait(1)
    assert graph.start() == 'd'


def test_a_delayed_dependent_wakes_somebody_who_will_watch(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p', due='+5000')
    (held,) = graph.take()
    graph.settle(ACK, held)
    claimed = graph.claim()
    assert claimed.wake_in == 5.0


@pytest.mark.parametrize('verdict', [REQUEUE, RELEASE])
def test_a_dependency_that_comes_again_is_still_waited_for(graph: Graph, verdict: Verdict) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    graph.end('p', verdict)
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd'


def test_a_dependency_whose_lease_was_lost_is_still_waited_for(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    graph.live(2 * LEASE)
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd'


def test_the_next_run_of_a_dependency_is_waited_for(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    held = graph.held['p']
    assert graph.add('p', queue='r', due='+100', run=(held.token, 'p')) == 'p'
    graph.end('p')  # of the run before
    assert graph.start() == ''
    graph.wait(100)
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd'


def test_a_next_run_may_wait_as_well(graph: Graph) -> None:
    graph.add('p')
    graph.add('d')
    graph.start(1)
    assert graph.start(1) == 'd'
    token = graph.held['d'].token
    assert graph.add('d', 'p', run=(token, 'd')) == 'd'
    graph.end('d')
    assert graph.start() == ''
    assert graph.waiting() == 'd'
    graph.end('p')
    assert graph.start() == 'd'


def test_an_ack_by_a_former_owner_releases_nobody(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    late = graph.held['p']
    graph.live(2 * LEASE)
    graph.start()
    graph.settle(ACK, late)
    assert graph.start() == ''


def test_repeated_calls_release_each_once(graph: Graph) -> None:
    graph.add('p')
    assert graph.publish([outgoing('d', ['p'])], first=50) == ('d',)
    assert graph.publish([outgoing('d', ['p'])], first=50) == ('',)
    (held,) = graph.take()
    graph.settle(ACK, held)
    graph.settle(ACK, held)
    assert graph.start() == 'd'
    assert graph.publish([outgoing('d', ['p'])], first=50) == ('',)
    graph.settle(ACK, held)
    graph.end('d')
    assert graph.start() == ''
    assert not graph.left()


# -- still to come --------------------------------------------------------------------------


def test_a_job_that_is_still_to_come_is_waited_for(graph: Graph) -> None:
    graph.add('d', 'p', within=HOUR)
    assert graph.start() == ''
    graph.live(HOUR // 2)
    graph.add('p', queue='r')
    graph.live(HOUR)  # it is there, so there is no hurry
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd'
    graph.end('d')
    assert not graph.left()


def test_what_does_not_come_in_time_fails_those_that_expect_it(graph: Graph) -> None:
    graph.add('d', 'p', within=HOUR)
    graph.live(HOUR - 20_000)
    graph.attend()
    assert graph.waiting() == 'd'
    graph.live(20_000)
    graph.attend()
    assert (graph.waiting(), graph.dead()) == ('', 'd')
    assert graph.why('d') == ('dependency-timeout', 'p')
    assert graph.left() == {'f:q', 'j:d', 'x:d', 'fg:dependency-timeout', 'groups'}


def test_what_does_not_come_in_time_is_ignored_by_who_ignores(graph: Graph) -> None:
    graph.add('d', 'p', IGNORE, within=HOUR)
    graph.live(HOUR)
    assert graph.start() == 'd'
    graph.end('d')
    assert not graph.left()


def test_somebody_watches_the_time_by_which_a_job_must_come(graph: Graph) -> None:
    graph.claim(worker='w')
    graph.add('d', 'p', within=5000)
    assert graph.marked()
    assert graph.claim(worker='w').wake_in == 5.0


def test_nobody_is_given_up_for_an_outage(graph: Graph) -> None:
    graph.add('d', 'p', within=HOUR)
    graph.attend(10_000)
    graph.wait(2 * HOUR)  # and nobody could publish
    assert graph.start() == ''
    graph.add('p')
    assert graph.start() == 'p'
    graph.attend(2 * LEASE - 20_000)
    graph.end('p')
    assert graph.start() == 'd'


# -- failure --------------------------------------------------------------------------------


def test_under_wait_a_failed_dependency_can_be_replayed(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    graph.end('p', FAIL)
    graph.attend(HOUR)
    assert graph.waiting() == 'd'
    graph.store.jobs.replay(graph.store.jobs.look(['p'])[0])
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd'


def test_under_fail_the_whole_chain_fails(graph: Graph) -> None:
    graph.add('a')
    graph.add('b', 'a', FAIL_TOO)
    graph.add('c', 'b', FAIL_TOO, queue='r')
    graph.add('d', 'b', WAIT)
    graph.add('e', 'c', IGNORE)
    graph.start()
    graph.end('a', FAIL)
    assert (graph.dead(), graph.dead('r'), graph.waiting()) == ('a b', 'c', 'd')
    assert graph.why('b') == ('dependency', 'a')
    assert graph.why('c') == ('dependency', 'b')
    assert graph.start() == 'e'


def test_under_ignore_a_failed_dependency_is_as_good_as_one_that_succeeded(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p', IGNORE)
    graph.start()
    graph.end('p', FAIL)
    assert graph.start() == 'd'
    graph.end('d')
    assert not any(key.startswith(('dep', 'up:', 'rel', 'exp')) for key in graph.key_names())


@pytest.mark.parametrize('policy', Policy)
def test_a_dependency_that_has_failed_already(graph: Graph, policy: Policy) -> None:
    graph.add('p')
    graph.start()
    graph.end('p', FAIL)
    graph.add('d', 'p', policy)
    assert graph.marked() == (policy is not WAIT), 'waiting for a replay wakes nobody'
    assert graph.start() == ('d' if policy is IGNORE else '')
    assert graph.waiting() == ('d' if policy is WAIT else '')
    assert graph.dead() == ('d p' if policy is FAIL_TOO else 'p')


def test_the_limit_of_deliveries_is_a_failure(graph_factory: Callable[..., Graph]) -> None:
    graph = graph_factory(delivery_limit=1)
    graph.add('p')
    graph.add('d', 'p', FAIL_TOO)
    graph.start()
    graph.end('p', REQUEUE)
    claimed = graph.claim()
    assert not claimed.deliveries
    assert graph.dead() == 'p'
    assert claimed.wake_in == 0, 'there is more to do at once'
    graph.claim()
    assert graph.dead() == 'd p'


def test_a_job_waits_for_the_others_after_an_ignored_failure(graph: Graph) -> None:
    graph.add('a')
    graph.add('b')
    graph.add('d', 'a b', IGNORE)
    graph.start()
    graph.end('a', FAIL)
    assert graph.start() == ''
    graph.end('b')
    assert graph.start() == 'd'


def test_one_failure_is_enough(graph: Graph) -> None:
    graph.add('a')
    graph.add('b')
    graph.add('d', 'a b', FAIL_TOO)
    graph.start()
    graph.end('a', FAIL)
    assert graph.dead() == 'a d'
    graph.end('b')
    assert graph.start() == ''
    assert not any(key.startswith(('dep', 'up:', 'rel')) for key in graph.key_names())


def cancel_by_worker(graph: Graph) -> None:
    graph.start(queues='q')
    graph.end('p', Verdict.CANCEL)


def cancel(graph: Graph) -> None:
    graph.store.jobs.cancel(graph.store.jobs.look(['p'])[0], cascade=True)


def delete_queue(graph: Graph) -> None:
    graph.store.delete('q')


def trim(graph: Graph) -> None:
    graph.start(queues='q')
    graph.end('p', FAIL)
    graph.wait(8 * DAY)


def discard(graph: Graph) -> None:
    graph.start(queues='q')
    graph.end('p', FAIL)
    graph.store.jobs.discard(graph.store.jobs.look(['p'])[0])


@pytest.mark.parametrize(
    'remove',
    [cancel_by_worker, cancel, lambda graph: graph.store.purge('q'), delete_queue, trim, discard],
)
def test_a_dependency_that_is_gone_cannot_succeed_any_more(
    graph: Graph, remove: Callable[[Graph], None]
) -> None:
    graph.add('p')
    for policy in Policy:
        graph.add(policy.name, 'p', policy, queue='r')
    remove(graph)
    graph.attend()
    graph.attend()
    assert graph.ready('r') == ['IGNORE']
    dead = {'WAIT'} if remove in (trim, discard) else {'WAIT', 'FAIL'}
    assert set(graph.dead('r').split()) >= dead
    assert graph.waiting('r') == ''


def test_a_dependent_that_is_gone_leaves_nothing(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p expected', within=HOUR, queue='r')
    graph.add('e', 'd', queue='r')
    graph.store.purge('r')
    graph.start()
    graph.end('p')
    graph.attend()
    assert not graph.left()


def test_what_others_wait_for_is_not_cancelled_unasked(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    with pytest.raises(HasDependents):
        graph.store.jobs.cancel(graph.store.jobs.look(['p'])[0])
    graph.store.jobs.cancel(graph.store.jobs.look(['d'])[0])
    graph.store.jobs.cancel(graph.store.jobs.look(['p'])[0])
    assert not graph.left()


# -- more and fewer -------------------------------------------------------------------------


def test_dependencies_are_added_while_a_job_waits(graph: Graph) -> None:
    graph.add('a')
    graph.add('b', queue='r')
    graph.add('d', 'a')
    assert graph.edges.add('d', Dependencies(('b', 'unknown'), FAIL_TOO))
    assert graph.edges.unmet('d') == ['a', 'b']
    graph.start()
    graph.end('a')
    assert graph.start() == ''
    graph.end('b')
    assert graph.start() == 'd'
    assert not graph.edges.add('d', Dependencies(('a',)))


def test_dependencies_are_removed_while_a_job_waits(graph: Graph) -> None:
    graph.add('a')
    graph.add('b')
    graph.add('d', 'a b')
    assert graph.edges.remove('d', ['a', 'c']) == 1
    assert graph.edges.unmet('d') == ['b']
    assert graph.start() == 'a b'
    assert graph.edges.remove('d', ['b']) == 1
    assert graph.start() == 'd'
    assert graph.edges.remove('d', ['b']) == 0
    graph.end('a b d')
    assert not graph.left()


# -- cycles ---------------------------------------------------------------------------------


def test_a_job_cannot_wait_for_itself(graph: Graph) -> None:
    graph.add('a', 'a', within=HOUR)
    graph.add('b', 'c', within=HOUR)
    before = graph.contents()
    assert graph.add('c', 'b') == CYCLE
    with pytest.raises(DependencyCycle):
        graph.edges.add('b', Dependencies(('b',)))
    after = graph.contents()
    assert {key for key in after if before.get(key) != after[key]} <= {
        graph.keys.meta.encode(),
        graph.keys.producers.encode(),
    }


def test_a_long_way_round_is_a_cycle_as_well(graph: Graph) -> None:
    ids = [f'{number:02}' for number in range(50)]
    for one, other in itertools.pairwise(ids):
        graph.add(one, other, within=HOUR)
    assert graph.add(ids[-1], ids[0]) == CYCLE
    with pytest.raises(DependencyCycle):
        graph.edges.add(ids[-2], Dependencies((ids[10],)))
    assert graph.add(ids[-1]) == ids[-1]
    for id in reversed(ids):
        assert graph.start() == id
        graph.end(id)
    assert not graph.left()


def test_a_refused_message_does_not_keep_the_others_of_its_call(graph: Graph) -> None:
    graph.add('b', 'c', within=HOUR)
    batch = [outgoing('a', ['x']), outgoing('c', ['b']), Outgoing('e', 'q', 0, '0', b'')]
    assert graph.publish(batch, first=70) == ('a', CYCLE, 'e')
    assert graph.start() == 'a e'


def test_a_wide_graph_is_no_cycle(graph: Graph) -> None:
    """The search up is too long, the one down is not."""
    graph.add('d', 'late', within=HOUR)
    for number in range(30):
        graph.add(f'p{number}', [f'e{number}.{at}' for at in range(100)], within=HOUR)
    assert graph.add('late', [f'p{number}' for number in range(30)]) == 'late'
    assert graph.waiting().split()[-1] == 'p9'


# -- replaced, and used twice ---------------------------------------------------------------


def test_dependents_wait_for_those_for_whom_a_job_makes_room(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    graph.end('p', Verdict.REPLACE)
    graph.add('e', 'p')
    graph.attend(HOUR)
    assert graph.waiting() == 'd e'
    graph.add('p')
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd e'
    graph.end('d e')
    assert not graph.left()


@pytest.mark.parametrize('ended', [False, True])
def test_the_replacement_may_be_faster(graph: Graph, ended: bool) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    twin = graph.add('p')
    assert twin.startswith('~')
    assert graph.start() == twin
    if ended:
        graph.end(twin)
        assert graph.start() == ''
    graph.end('p', Verdict.REPLACE)
    if not ended:
        assert graph.start() == ''
        graph.end(twin)
    assert graph.start() == 'd'
    graph.end('d')
    graph.attend()
    assert not graph.left()


def test_a_replacement_that_fails_can_be_replayed(graph: Graph) -> None:
    graph.add('p')
    graph.add('wait', 'p')
    graph.add('fail', 'p', FAIL_TOO)
    graph.start()
    twin = graph.add('p')
    graph.start()
    graph.end('p', Verdict.REPLACE)
    graph.end(twin, FAIL)
    assert (graph.waiting(), graph.dead()) == ('wait', f'fail {twin}')
    graph.store.jobs.replay(graph.store.jobs.look([twin])[0])
    assert graph.start() == twin
    graph.end(twin)
    assert graph.start() == 'wait'


def test_a_replacement_that_never_comes_is_given_up(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p')
    graph.start()
    graph.end('p', Verdict.REPLACE)
    graph.wait(7 * DAY)
    graph.claim()
    graph.live(2 * LEASE)
    graph.attend()
    assert graph.dead() == 'd'


def test_the_newest_job_of_an_id_is_meant(graph: Graph) -> None:
    graph.add('p')
    twin = graph.add('p')
    graph.add('d', 'p')
    assert graph.edges.unmet('d') == [twin]
    assert graph.start() == f'p {twin}'
    graph.end('p')
    assert graph.start() == ''
    graph.end(twin)
    assert graph.start() == 'd'


# -- many -----------------------------------------------------------------------------------


def test_many_dependents_are_released_step_by_step(graph: Graph) -> None:
    count = 5 * STEP
    graph.add('p')
    ids = [f'{number:04}' for number in range(count)]
    graph.add_all(ids, 'p')
    graph.start(queues='q')
    graph.end('p')
    assert graph.marked('r')
    started: list[str] = []
    steps = 0
    while len(started) < count:
        steps += 1
        assert steps < 50
        claimed = graph.claim(60, 'r')
        if graph.counts('r').waiting:
            assert claimed.wake_in == 0
        started += [one.id for one in claimed.deliveries]
        graph.settle(ACK, *claimed.deliveries)
    assert started == ids
    assert not graph.left()


def test_what_is_published_meanwhile_does_not_mix_with_what_is_being_released(
    graph: Graph,
) -> None:
    graph.add('p')
    ids = [f'{number:04}' for number in range(3 * STEP)]
    graph.add_all(ids, 'p')
    graph.start(queues='q')
    graph.end('p')
    assert graph.counts('r').waiting == 2 * STEP
    graph.add('p')
    graph.add('late', 'p')
    graph.attend()
    graph.attend()
    assert graph.counts('r').ready == 3 * STEP
    assert graph.waiting() == 'late'
    assert graph.start(queues='q') == 'p'
    graph.end('p')
    assert graph.start(queues='q') == 'late'


def test_a_failure_that_is_replayed_meanwhile_spares_the_rest(graph: Graph) -> None:
    graph.add('p')
    ids = [f'{number:04}' for number in range(2 * STEP)]
    graph.add_all(ids, 'p', FAIL_TOO)
    graph.start(queues='q')
    graph.end('p', FAIL)
    spared = graph.counts('r').waiting
    assert spared > STEP
    graph.store.jobs.replay(graph.store.jobs.look(['p'])[0])
    graph.attend()
    assert graph.counts('r').waiting == spared
    graph.start(queues='q')
    graph.end('p')
    graph.attend()
    assert graph.counts('r').ready == spared


def test_many_dependencies_are_published_in_parts(graph: Graph) -> None:
    ids = [f'p{number:04}' for number in range(3 * EDGE_LIMIT)]
    graph.add_all(ids, '')
    graph.add_many(outgoing('d', [*ids, 'unknown']))
    assert graph.edges.unmet('d') == ids
    while held := graph.take(100, 'r'):
        assert graph.start(queues='q') == ''
        graph.settle(ACK, *held)
    assert graph.start(queues='q') == 'd'
    graph.end('d')
    assert not graph.left()


def test_many_that_are_done_already_hold_nothing_back(graph: Graph) -> None:
    graph.add_many(outgoing('d', [f'p{number}' for number in range(1200)]))
    assert graph.start() == 'd'
    graph.end('d')
    graph.attend()
    assert not graph.left()


def test_a_publisher_that_dies_between_the_parts(graph: Graph) -> None:
    """Nothing is ever started before all parts are there."""
    graph.add('p')
    calls = parts_of(graph, outgoing('d', ['p', *(f'u{number}' for number in range(1200))], IGNORE))
    for call in calls[:-1]:
        graph.store.run(call)
    graph.start()
    graph.end('p')
    graph.live(HOUR - 20_000)
    assert graph.start() == ''
    graph.live(30_000)
    graph.attend()
    assert (graph.waiting(), graph.dead()) == ('', 'd')
    assert graph.why('d') == ('dependency-timeout', None)
    assert not any(key.startswith(('dep', 'up:', 'rel', 'exp')) for key in graph.key_names())


@pytest.mark.parametrize('known', ['publish_featured', 'depend'])
def test_parts_on_a_server_that_knows_one_of_two_scripts(graph: Graph, known: str) -> None:
    """As after a restart, when somebody else has used it before."""
    graph.add('p')
    graph.store.client.script_flush()
    graph.store.load_scripts([script(known)])
    graph.add_many(outgoing('d', ['p', *(f'u{number}' for number in range(1200))]))
    assert graph.edges.unmet('d') == ['p']
    assert graph.start() == 'p'
    graph.end('p')
    assert graph.start() == 'd'


def parts_of(graph: Graph, message: Outgoing) -> list[Any]:
    return [call for calls in _rounds(graph.operations, next_nonce(), [message]) for call in calls]


@pytest.mark.parametrize('at', range(6))
def test_parts_that_are_sent_again_change_nothing(graph: Graph, at: int) -> None:
    graph.add('p')
    graph.add('q', queue='r')
    calls = parts_of(graph, outgoing('d', ['p', *(f'u{number}' for number in range(1200)), 'q']))
    assert len(calls) == 5
    for call in calls[:at]:
        graph.store.run(call)
    for call in calls:
        graph.store.run(call)
    assert graph.edges.unmet('d') == ['p', 'q']
    assert graph.start() == 'p q'
    graph.end('p q')
    assert graph.start() == 'd'
    for call in calls:
        graph.store.run(call)
    graph.end('d')
    assert graph.start() == ''
    graph.attend()
    assert not graph.left()


def test_a_cycle_in_a_later_part_refuses_the_whole(graph: Graph) -> None:
    graph.add('b', 'd', within=HOUR)
    with pytest.raises(DependencyCycle):
        graph.add_many(outgoing('d', [*(f'u{number}' for number in range(1200)), 'b']))
    assert graph.waiting() == 'b'
    assert graph.left() == {'j:b', 'up:b', 'wt:q', 'dep:d', 'deps', 'exp'}


def test_a_dependent_with_many_dependencies_goes_in_steps(graph: Graph) -> None:
    ids = [f'p{number:04}' for number in range(3 * EDGE_LIMIT)]
    graph.add_all(ids, '')
    graph.add_many(outgoing('d', ids))
    graph.store.purge('q')
    assert graph.waiting() == ''
    graph.add('d', 'p0000')  # the same again: what is undone of the first must not touch it
    for _ in range(3 * EDGE_LIMIT // STEP + 1):
        graph.attend()
    assert graph.edges.dependents('p0001') == []
    assert graph.edges.dependents('p0000') == [('d', WAIT)]
    while held := graph.take(100, 'r'):
        graph.settle(ACK, *held)
    assert graph.start(queues='q') == 'd'
    graph.end('d')
    assert not graph.left()


def test_a_chain_of_failures_goes_in_steps(graph: Graph) -> None:
    count = 3 * STEP
    graph.add('0000')
    for number in range(1, count):
        graph.add(f'{number:04}', f'{number - 1:04}', FAIL_TOO)
    graph.start()
    graph.end('0000', FAIL)
    assert 0 < graph.counts().waiting < count
    for _ in range(10):
        graph.attend()
    assert graph.counts().dead == count
    assert not any(key.startswith(('dep', 'up:', 'rel')) for key in graph.key_names())


MANY = 10_000


def test_no_call_holds_the_server_up(graph: Graph, backend: Server | None) -> None:
    if backend is None:
        pytest.skip('fakeredis keeps no time')
    graph.store.load_scripts()
    graph.client.config_set('slowlog-log-slower-than', 1000)
    graph.client.config_set('slowlog-max-len', 10_000)
    graph.client.slowlog_reset()
    ids = [f'{number:05}' for number in range(MANY)]
    for policy, verdict in ((WAIT, ACK), (FAIL_TOO, FAIL)):
        graph.add('p')
        graph.add_all(ids, 'p', policy)
        graph.start(queues='q')
        graph.end('p', verdict)
        for _ in range(MANY):
            held = graph.take(100, 'r')
            graph.settle(ACK, *held)
            if not held and not graph.counts('r').waiting:
                break
    assert (graph.counts('r').ready, graph.counts('r').dead) == (0, MANY)
    others = [f'o{number:05}' for number in range(MANY)]
    graph.add_all(others, '', queue='s')
    graph.add_many(outgoing('d', others))
    for first in range(0, 1000, 100):
        for id in others[first : first + 100]:
            graph.add(f'd{id}', id)
    graph.settle(ACK, *[one for _ in range(3) for one in graph.take(100, 's')])
    graph.store.purge('q')
    for _ in range(MANY // STEP + 1):
        graph.attend()
    slow = Counter[str]()
    for entry in graph.client.slowlog_get(10_000):
        words = entry['command'].split()
        name = NAMES.get(words[1].decode()) if words[0] == b'EVALSHA' else None
        if name is not None:
            slow.update(
                {f'{name} > {ms} ms': 1 for ms in (1, 2, 5, 10) if entry['duration'] > 1000 * ms}
            )
    calls = 2 * (100 + 100) + 294 + 1000 + 100 + 21 + 101 + 101
    print(calls, 'calls', dict(sorted(slow.items())))
    # A machine that does other things stops the server now and then.
    assert sum(count for name, count in slow.items() if '> 5 ms' in name) < 0.1 * calls, slow
    assert sum(count for name, count in slow.items() if '> 10 ms' in name) < 0.03 * calls, slow


# -- trouble --------------------------------------------------------------------------------


def test_a_full_server_refuses_cleanly(server: Server) -> None:
    with Server(server.binary) as own, own.client() as client:
        graph = Graph(Store(client, Operations(Keys(), Options(), START)))
        graph.add('p')
        graph.add('b')
        graph.add('d', 'p')
        graph.add('e', 'p b')
        before = graph.contents()
        client.config_set('maxmemory', 1)
        with pytest.raises(ServerFull):
            graph.add('f', 'p')
        with pytest.raises(ServerFull):
            graph.edges.add('d', Dependencies(('b',)))
        assert graph.contents() == before
        assert graph.edges.remove('e', ['b']) == 1
        assert graph.start(1) == 'p'
        graph.end('p')
        assert graph.ready() == ['b', 'd', 'e']


@pytest.mark.parametrize('family', ['r:r', 'wt:r', 'x:d'])
def test_foreign_data_in_the_way_of_one_holds_back_no_other(graph: Graph, family: str) -> None:
    graph.add('p')
    graph.add('d', 'p', queue='r')
    graph.add('e', 'p', queue='s')
    prefix = graph.keys.meta.removesuffix('meta')
    graph.client.delete(f'{prefix}{family}')
    graph.client.set(f'{prefix}{family}', 'foreign')
    graph.start()
    graph.end('p')
    graph.attend()
    assert graph.start(queues='s') == 'e'
    graph.client.delete(f'{prefix}{family}')
    graph.live(40_000)
    graph.attend()
    assert graph.start(queues='r') == 'd'


def test_a_foreign_entry_in_the_list_of_releases_is_dropped(graph: Graph) -> None:
    graph.add('p')
    graph.add('d', 'p', IGNORE)
    graph.client.rpush(graph.keys.releases, 'foreign', 'nonsense;a;b')
    graph.start()
    graph.end('p', Verdict.CANCEL)
    assert graph.start() == 'd'
    graph.end('d')
    assert not graph.left()


def test_a_refusal_whose_reply_was_lost_is_one_again(graph: Graph) -> None:
    message = outgoing('a', ['a'])
    assert graph.publish([message], 7, 'x') == (CYCLE,)
    assert graph.publish([message], 7, 'x') == (CYCLE,)
    graph.add('b')
    assert graph.start() == 'b'
    late = Outgoing('b', 'q', 0, '0', b'', run=(graph.held['b'].token, 'b'))
    assert graph.publish([late], 8, 'x') == ('b',)
    assert graph.publish([late], 8, 'x') == ('',)
    assert graph.publish([late], 9, 'x') == (REFUSED,)
    assert graph.publish([late], 9, 'x') == (REFUSED,)


def test_what_retention_deletes_at_once_leaves_nothing(store_factory: Callable[..., Store]) -> None:
    graph = Graph(store_factory(failed_limit=1))
    graph.add('a')
    graph.add('z', on='a', policy=FAIL_TOO)
    graph.add('b', on='a', policy=FAIL_TOO)
    graph.start()
    graph.end('a', Verdict.CANCEL)
    graph.start()
    assert graph.dead() == 'z'
    assert graph.key_names() - CONSTANT == {'j:z', 'x:z', 'f:q', 'fg:dependency', 'groups'}


def test_who_waits_for_what_retention_deletes_is_told_though_others_just_were(
    graph: Graph,
) -> None:
    """One claim tells those who fail with it, and what depends on them, and then deletes it."""
    graph.add('p')
    graph.start()
    graph.end('p', FAIL)
    graph.add('w', 'p')
    graph.wait(7 * DAY + 1)
    graph.add('d', 'p', FAIL_TOO)
    graph.add('e', 'd', FAIL_TOO)
    answer = graph.claim(0)
    assert (graph.dead(), graph.waiting(), answer.wake_in) == ('d e', 'w', 0)
    graph.attend()
    assert graph.why('w') == ('dependency', 'p')
    assert graph.waiting() == ''
