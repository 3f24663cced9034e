"""Tags in the store: who is found by them, in every state, and that nothing of them is left."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kombu_reliable.client import connect_client
from kombu_reliable.errors import InvalidArgument, InvalidMessage
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.store.checks import LONGEST_TAG, MOST_TAGS
from kombu_reliable.transport.marks import take_marks
from kombu_reliable.types import Marks, Outgoing
from kombu_reliable.urls import parse_url
from tests.support.servers import Server, busy
from tests.test_many_jobs import TOO_LONG, SlowLog
from tests.test_scripts import ACK, CANCEL, FAIL, HOUR, LEASE, RELEASE, REPLACE, REQUEUE, Bench

DAY = 24 * HOUR
PAGE_MS = 20


class MarkBench(Bench):
    """Publishes jobs with marks."""

    #: What is left when all jobs are gone.
    ALWAYS = frozenset({'meta', 'pub', 'alarm', 'fenced', 'w:q', 'w:r', 'queues', 'ev', 'noticed'})

    def add(
        self, id: str, *tags: str, queue: str = 'q', due: str = '0', run: Any = None,
        track: str | None = None, retain: int | None = None, limit: int = 100, rank: int = 0,
    ) -> str:  # fmt: skip
        marks = Marks(tags, track, retain, limit)
        message = Outgoing(id, queue, rank, due, id.encode(), run=run, marks=marks)
        first, self._number = self._number, self._number + 1
        return self.publish([message], first)[0]

    def tagged(self, *tags: str, **options: Any) -> list[str]:
        return list(self.store.tags.find(tags, **options).keys)

    def tags(self, id: str) -> set[str]:
        [job] = self.store.jobs.look([id])
        return set(job.tags)

    def left(self) -> set[str]:
        return self.key_names() - self.ALWAYS


@pytest.fixture
def bench(store: Store) -> MarkBench:
    return MarkBench(store)


# -- found in every state ----------------------------------------------------------


def test_jobs_are_found_by_their_tags(bench: MarkBench) -> None:
    bench.add('one', 'a', 'b')
    bench.add('two', 'b', 'c')
    bench.add('three', 'a', 'b', 'c')
    bench.put('plain')
    assert bench.tagged('a') == ['three', 'one'], 'the newest comes first'
    assert bench.tagged('a', newest_first=False) == ['one', 'three']
    assert bench.tagged('a', 'b', 'c') == ['three']
    assert bench.tagged('a', 'c') == ['three']
    assert bench.tagged('a', 'c', any=True) == ['three', 'two', 'one']
    assert bench.tagged('c', 'nobody') == []
    assert bench.tagged('c', 'nobody', any=True) == ['three', 'two']
    assert bench.tags('one') == {'a', 'b'}
    assert bench.store.tags.top() == [('b', 3), ('c', 2), ('a', 2)]
    assert bench.store.tags.top(offset=1, limit=1) == [('c', 2)]
    assert bench.store.tags.count('b') == 3


def test_a_tag_stays_with_its_job_until_the_end(bench: MarkBench) -> None:
    bench.add('job', 'a', due=f'+{HOUR}')
    assert bench.tagged('a') == ['job']
    bench.wait(HOUR + 1)
    [held] = bench.take()
    assert bench.tagged('a') == ['job']
    bench.settle(REQUEUE, held)
    [held] = bench.take()
    bench.live(2 * LEASE)
    [held] = bench.take()
    assert held.deliveries == 3
    bench.settle(FAIL, held, reason='rejected')
    assert bench.tagged('a') == ['job'], 'a dead letter is found as well'
    bench.store.jobs.replay(bench.store.jobs.look(['job'])[0])
    [held] = bench.take()
    assert bench.tags('job') == {'a'}
    bench.settle(ACK, held)
    assert bench.tagged('a') == []
    assert bench.left() == set()


@pytest.mark.parametrize('verdict', [ACK, CANCEL])
def test_the_end_of_a_job_takes_its_tags(bench: MarkBench, verdict: Any) -> None:
    bench.add('job', 'a', 'b')
    bench.add('other', 'b')
    job, other = bench.take()
    bench.settle(verdict, job)
    assert (bench.tagged('a'), bench.tagged('b')) == ([], ['other'])
    assert bench.store.tags.top() == [('b', 1)]
    bench.settle(verdict, other)
    assert bench.left() == set()


def test_what_makes_room_for_others_takes_its_tags(bench: MarkBench) -> None:
    bench.add('job', 'a')
    [held] = bench.take()
    bench.settle(REPLACE, held)
    assert bench.tagged('a') == []


ENDS: dict[str, Callable[[MarkBench], Any]] = {
    'cancel': lambda bench: bench.store.jobs.cancel(bench.store.jobs.look(['job'])[0]),
    'purge': lambda bench: bench.store.purge('q'),
    'empty': lambda bench: bench.store.jobs.purge('q', ['ready']),
    'delete': lambda bench: bench.store.delete('q'),
}


@pytest.mark.parametrize('end', ENDS)
def test_who_removes_a_job_removes_its_tags(bench: MarkBench, end: str) -> None:
    bench.add('job', 'a', 'b', retain=HOUR)
    ENDS[end](bench)
    assert bench.left() == set()


def test_retention_of_dead_letters_takes_their_tags(bench: MarkBench) -> None:
    bench.add('job', 'a', retain=HOUR)
    bench.settle(FAIL, *bench.take(), reason='rejected')
    bench.wait(8 * DAY)
    bench.claim(0)
    assert bench.left() == set()


def test_discarding_a_dead_letter_takes_its_tags(bench: MarkBench) -> None:
    bench.add('job', 'a')
    bench.settle(FAIL, *bench.take(), reason='rejected')
    bench.store.jobs.discard(bench.store.jobs.look(['job'])[0])
    assert bench.left() == set()


def test_a_release_leaves_the_tags(bench: MarkBench) -> None:
    bench.add('job', 'a')
    bench.settle(RELEASE, *bench.take())
    assert bench.tagged('a') == ['job']
    bench.settle(ACK, *bench.take())
    assert bench.left() == set()


def test_a_next_run_keeps_the_tags_and_may_add_some(bench: MarkBench) -> None:
    bench.add('job', 'a')
    [held] = bench.take()
    bench.store.tags.add(['job'], ['at-run'])
    assert bench.add('job', 'b', run=(held.token, 'job')) == 'job'
    assert bench.tags('job') == {'a', 'b', 'at-run'}
    bench.settle(ACK, held)
    assert bench.tagged('a', 'b', 'at-run') == ['job']
    bench.settle(ACK, *bench.take())
    bench.wait(2 * HOUR)
    bench.claim(0)
    assert bench.left() == set()


def test_a_plain_next_run_keeps_the_tags(bench: MarkBench) -> None:
    bench.add('job', 'a')
    [held] = bench.take()
    message = Outgoing('job', 'q', 0, '0', b'again', run=(held.token, 'job'))
    assert bench.publish([message], 1000, lane='other') == ('job',)
    assert bench.tagged('a') == ['job']
    bench.settle(ACK, *bench.take())
    assert bench.left() == set()


def test_tags_move_with_their_job(bench: MarkBench) -> None:
    bench.add('job', 'a')
    bench.store.jobs.move(bench.store.jobs.look(['job'])[0], 'r')
    assert bench.tagged('a') == ['job']
    bench.settle(ACK, *bench.take(queues='r'))
    assert bench.left() == set()


def test_a_second_job_with_the_id_has_tags_of_its_own(bench: MarkBench) -> None:
    bench.add('job', 'a')
    twin = bench.add('job', 'b')
    assert (bench.tagged('a'), bench.tagged('b')) == (['job'], [twin])
    bench.settle(ACK, *bench.take())
    assert bench.left() == set()


def test_a_repeated_publish_counts_once(bench: MarkBench) -> None:
    message = Outgoing('job', 'q', 0, '0', b'job', marks=Marks(('a',)))
    assert bench.publish([message], 5) == ('job',)
    assert bench.publish([message], 5) == ('',)
    assert bench.store.tags.top() == [('a', 1)]


# -- at run time -------------------------------------------------------------------


@pytest.mark.parametrize('state', ['ready', 'leased', 'delayed', 'failed'])
def test_tags_can_be_given_and_taken(bench: MarkBench, state: str) -> None:
    bench.put('job', due=f'+{HOUR}' if state == 'delayed' else '0')
    held = bench.take() if state in ('leased', 'failed') else []
    if state == 'failed':
        bench.settle(FAIL, *held, reason='rejected')
    tags = bench.store.tags
    assert tags.add(['job', 'nobody'], ['a', 'b']) == ['done', 'unknown']
    assert bench.tagged('a', 'b') == ['job']
    assert tags.remove(['job'], ['a', 'c']) == ['done']
    assert (bench.tagged('a'), bench.tagged('b')) == ([], ['job'])
    assert bench.store.jobs.look(['job'])[0].state == state
    if state == 'leased':
        bench.settle(ACK, *held)
        assert bench.store.jobs.look(['job'])[0].state == 'completed', 'kept, as it is tagged'
        bench.wait(2 * HOUR)
        bench.claim(0)
        assert bench.left() == set()


def test_the_settlement_knows_of_tags_that_were_given_meanwhile(
    store_factory: Callable[..., Store],
) -> None:
    bench = MarkBench(store_factory(completed_retention=0))
    bench.put('job')
    held = bench.take()
    bench.store.tags.add(['job'], ['a'])
    bench.settle(ACK, *held)
    assert bench.left() == set()


def test_a_tag_that_is_taken_and_given_again(bench: MarkBench) -> None:
    bench.add('old', 'a')
    bench.add('job', 'a')
    bench.add('new', 'a')
    bench.store.tags.remove(['job'], ['a'])
    bench.store.tags.add(['job'], ['a'])
    assert bench.tagged('a') == ['new', 'job', 'old'], 'it keeps its place'
    assert bench.store.tags.top() == [('a', 3)]


def test_a_job_has_a_limited_number_of_tags(bench: MarkBench) -> None:
    bench.add('job', *(f't{number}' for number in range(MOST_TAGS - 1)))
    assert bench.store.tags.add(['job'], ['x', 'y']) == ['too-many']
    assert bench.tagged('x') == []
    assert bench.store.tags.add(['job'], ['x', 't0']) == ['done']
    assert len(bench.tags('job')) == MOST_TAGS


# -- bad input ---------------------------------------------------------------------

BAD = {
    'empty': [''], 'long': ['x' * 10_000], 'number': [7], 'none': [None], 'bytes': [b'a'],
    'half a character': ['\ud800'], 'many': [f't{number}' for number in range(1_000)],
    'a mapping': {'a': 1}, 'a longer one': ['é' * LONGEST_TAG],
}  # fmt: skip


@pytest.mark.parametrize('tags', BAD.values(), ids=BAD)
def test_bad_tags_are_refused_before_anything_is_sent(bench: MarkBench, tags: Any) -> None:
    with pytest.raises(InvalidMessage, match='tag'):
        take_marks({'x-tags': tags}, Options())
    with pytest.raises(InvalidArgument, match='tag'):
        bench.store.tags.add(['job'], tags)
    with pytest.raises(InvalidArgument, match='tag'):
        bench.store.tags.find(tags)


def test_no_tag_is_no_question(bench: MarkBench) -> None:
    with pytest.raises(InvalidArgument, match='at least one'):
        bench.tagged()


def test_good_tags() -> None:
    headers = {'x-tags': ['b', 'a', 'b'], 'task': 'shop.charge', 'x-track': True, 'other': 1}
    assert take_marks(headers, Options()) == Marks(('b', 'a'), 'shop.charge', HOUR, 10_000)
    assert headers == {'task': 'shop.charge', 'other': 1}, 'and what was read is taken out'
    assert take_marks({'x-tags': 'one'}, Options()) == Marks(('one',), None, HOUR, 10_000)
    assert take_marks({'x-tags': []}, Options()) is None
    assert take_marks({'x-track': False}, Options()) is None


@pytest.mark.parametrize(
    'tag', ['{a}', 'a:b', ' ', 'a\nb', '"', "'", '\\', 'x' * LONGEST_TAG, '漢']
)
def test_strange_tags_work(bench: MarkBench, tag: str) -> None:
    bench.add('job', tag, 'b')
    assert bench.tagged(tag) == ['job']
    assert bench.tags('job') == {tag, 'b'}
    assert dict(bench.store.tags.top()) == {tag: 1, 'b': 1}
    bench.settle(ACK, *bench.take())
    assert bench.left() == set()


def test_foreign_data_in_the_place_of_tags_costs_no_job(bench: MarkBench) -> None:
    bench.client.set(bench.keys.tag('a'), 'foreign')
    bench.client.set(bench.keys.tags, 'foreign')
    bench.add('job', 'a', 'b')
    assert bench.tagged('b') == ['job']
    [held] = bench.take()
    assert bench.settle(ACK, held) == [1]
    assert bench.left() == {'tag:a', 'tags'}


# -- pages -------------------------------------------------------------------------


def fill(bench: MarkBench, rng: random.Random, count: int, tags: str) -> dict[str, set[str]]:
    jobs = {}
    for number in range(count):
        chosen = {tag for tag in tags if rng.random() < 0.5} or {tags[0]}
        jobs[f'j{number}'] = chosen
        bench.add(f'j{number}', *sorted(chosen))
    return jobs


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('newest_first', [True, False])
def test_pages_have_every_job_once(bench: MarkBench, seed: int, newest_first: bool) -> None:
    rng = random.Random(seed)
    jobs = fill(bench, rng, 60, 'abcd')
    order = list(jobs) if not newest_first else list(reversed(jobs))
    for wanted, any_ in (('a', False), ('ab', False), ('abc', True), ('bd', True), ('abcd', False)):
        fits = any if any_ else all
        expected = [job for job in order if fits(tag in jobs[job] for tag in wanted)]
        how: dict[str, Any] = {'any': any_, 'newest_first': newest_first}
        for offset in (0, 1, 7, len(expected) - 1, len(expected), 100):
            page = bench.tagged(*wanted, offset=max(0, offset), limit=5, **how)
            assert page == expected[max(0, offset) :][:5]
        found, after = [], ''
        while True:
            part = bench.store.tags.find(tuple(wanted), after=after, limit=7, **how)
            found += part.keys
            after = part.next
            if not after:
                break
        assert found == expected
        if not newest_first:
            walked = [
                key
                for step in bench.store.tags.walk(tuple(wanted), any=any_, step=9)
                for key in step
            ]
            assert walked == expected


def test_a_walk_leaves_alone_what_comes_meanwhile(bench: MarkBench) -> None:
    for number in range(5):
        bench.add(f'j{number}', 'a')
    seen = []
    for step in bench.store.tags.walk(['a'], step=2):
        seen += step
        for key in step:
            bench.add(f'{key}+', 'a')
    assert len(seen) <= 7 and seen[:5] == [f'j{number}' for number in range(5)]


# -- many --------------------------------------------------------------------------


def index(bench: MarkBench, count: int, chunk: int = 2_000, prefix: str = 'job') -> None:
    """Tagged jobs as publishes leave them, but quicker."""
    keys, order = bench.keys, 0
    bench.client.hset(keys.meta, mapping={'v': '1', 'seq': count})
    for first in range(0, count, chunk):
        with bench.client.pipeline(transaction=False) as pipe:
            ready, sets = {}, {tag: {} for tag in ('all', 'even', 'odd', 'rare')}
            for number in range(first, first + chunk):
                order += 1
                key = f'{prefix}{number:06}'
                half = 'even' if number % 2 == 0 else 'odd'
                tags = ['all', half] + (['rare'] if number % 1_000 == 0 else [])
                for tag in tags:
                    sets[tag][key] = order
                ready[key] = order
                pipe.set(keys.job(key), f'x0001700000000000{1:04}q' + 'e' * 100)
                listed = ','.join(f'"{tag}"' for tag in tags)
                noted = {'feat': 'ht', 'order': order, 'tags': f'[{listed}]', 'h': '1 put '}
                pipe.hset(keys.extra(key), mapping=noted)
            for tag, members in sets.items():
                if members:
                    pipe.zadd(keys.tag(tag), members)
                    pipe.zincrby(keys.tags, len(members), tag)
            pipe.zadd(keys.ready('q'), ready)
            pipe.execute()


def median_ms(server: Server, call: Callable[[], Any], times: int = 7) -> float:
    return sorted(busy(server, call) * 1000 for _ in range(times))[times // 2]


QUESTIONS: dict[str, dict[str, Any]] = {
    'one tag': {'tags': ['all']},
    'one tag, the middle': {'tags': ['all'], 'offset': 100_000},
    'both': {'tags': ['all', 'even']},
    'a rare one': {'tags': ['all', 'rare']},
    'none has both': {'tags': ['even', 'odd']},
    'any': {'tags': ['even', 'odd', 'rare'], 'any': True},
    'both, a deep page': {'tags': ['all', 'even'], 'offset': 50_000},
}


def slowest(bench: MarkBench, server: Server) -> dict[str, float]:
    """How long a page takes, in ms, with all that is known of its jobs."""
    jobs = bench.store.jobs

    def page(tags: list[str], **how: Any) -> None:
        jobs.look(bench.store.tags.find(tags, limit=100, **how).keys)

    return {
        name: median_ms(server, lambda how=question: page(**how))
        for name, question in QUESTIONS.items()
    }


@pytest.fixture
def real(server: Server, database: int) -> Iterator[MarkBench]:
    """A bench on a real server, by its own clock."""
    options = Options()
    url = parse_url(f'reliable+redis://127.0.0.1:{server.port}/{database}')
    store = Store(connect_client(url, options), Operations(Keys(database), options))
    store.load_scripts()
    yield MarkBench(store)
    store.client.close()


def check_many(bench: MarkBench, server: Server, count: int) -> None:
    index(bench, count)
    with server.client() as client:
        client.config_set('slowlog-log-slower-than', TOO_LONG)
        took = slowest(bench, server)
        print({name: round(ms, 1) for name, ms in took.items()})
        assert max(took.values()) < PAGE_MS, took
        log = SlowLog(bench.store, server)
        done = 0
        operations = bench.store.jobs.operations
        for step in bench.store.tags.walk(['even']):
            statuses = bench.store.run(operations.cancel(step, 'canceled', False))
            done += statuses.count('gone')
            log.look()
        client.config_set('slowlog-log-slower-than', 10_000)
    assert done == count // 2
    assert log.steps >= count // 2 // 50
    assert not log.too_many(), log.slow
    assert bench.store.tags.count('even') == 0
    assert bench.store.tags.count('all') == count // 2


def test_ten_thousand_tagged_jobs(real: MarkBench, server: Server) -> None:
    check_many(real, server, 10_000)


@pytest.mark.matrix
@pytest.mark.timeout(600)
def test_two_hundred_thousand_tagged_jobs(real: MarkBench, server: Server) -> None:
    check_many(real, server, 200_000)
