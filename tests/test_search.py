"""Jobs are found by state, queue, task and tags, page by page, however many there are."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

import celery_ext
from celery_ext import Extension, InvalidArgument
from celery_ext.search import LOOKS, Found
from kombu_reliable import open_store, pack_id
from kombu_reliable.types import Outgoing
from tests.support.proxy import Proxy
from tests.support.servers import Server

QUEUES, TASKS, TAGS = ('a', 'b', 'c d'), ('shop.pay', 'shop.mail', 'other'), ('red', 'blue')


@pytest.fixture
def make_ext() -> Iterator[Callable[[str], Extension]]:
    apps = []

    def make(url: str) -> Extension:
        app = Celery('shop', broker=url)
        apps.append(app)
        return celery_ext.install(app)

    yield make
    for app in apps:
        app.close()


@pytest.fixture
def ext(make_ext: Callable[[str], Extension], url: str) -> Extension:
    return make_ext(url)


def send(ext: Extension, task: str = 'shop.pay', **options: Any) -> str:
    return str(ext.app.send_task(task, **options).id)


def all_pages(ext: Extension, limit: int = 7, **wanted: Any) -> list[str]:
    """The ids of all that is found; no page is longer than asked for."""
    found: list[str] = []
    after = ''
    while True:
        page = ext.jobs.search(**wanted, after=after, limit=limit)
        assert len(page.jobs) <= limit
        found += [job.id for job in page.jobs]
        after = page.next
        if not after:
            return found


def test_all_that_fits_is_found_once(ext: Extension) -> None:
    chance = random.Random(5)
    made = []
    for _ in range(90):
        one = {
            'queue': chance.choice(QUEUES), 'task': chance.choice(TASKS),
            'tags': [tag for tag in TAGS if chance.random() < 0.5],
            'state': chance.choice(('ready', 'delayed')),
        }  # fmt: skip
        one['id'] = send(
            ext, one['task'], queue=one['queue'], tags=one['tags'],
            countdown=3600 if one['state'] == 'delayed' else None,
        )  # fmt: skip
        made.append(one)

    def fits(one: Any, state: Any, queue: Any, task: Any, tags: Any) -> bool:
        named = task is None or one['task'] == task or (task == 'shop.*' and 'shop.' in one['task'])
        return (
            state in (None, one['state']) and queue in (None, one['queue']) and named
            and set(tags) <= set(one['tags'])
        )  # fmt: skip

    for state in (None, 'ready', 'leased'):
        for queue in (None, 'c d', 'nobody'):
            for task in (None, 'shop.pay', 'shop.*', 'shop'):
                for tags in ((), ('red',), ('red', 'blue')):
                    wanted = {'state': state, 'queue': queue, 'task': task, 'tags': tags}
                    found = all_pages(ext, **wanted)
                    model = [one['id'] for one in made if fits(one, **wanted)]
                    assert sorted(found) == sorted(model), wanted
    whole = ext.jobs.search(limit=20)
    assert (whole.total, whole.looked) == (90, 20)
    red = ext.jobs.search(tags=['red'], limit=5)
    assert red.total == sum('red' in one['tags'] for one in made)
    # The place to go on may be a number of those to pass over.
    everything = all_pages(ext)
    assert [job.id for job in ext.jobs.search(after='85', limit=20).jobs] == everything[85:]
    assert not ext.jobs.search(after='90').jobs


def test_states_in_the_order_in_which_they_matter(ext: Extension) -> None:
    ready = send(ext, queue='a')
    waiting = send(ext, queue='a', depends_on=[ready])
    delayed = send(ext, queue='a', countdown=60)
    assert all_pages(ext) == [ready, delayed, waiting]
    assert all_pages(ext, state='waiting') == [waiting]
    assert all_pages(ext, state='completed') == []
    for number in range(3):
        send(ext, queue='b', priority=number)
    assert [job.queue for job in ext.jobs.search(state='ready').jobs] == ['a', 'b', 'b', 'b']


def test_a_page_looks_at_so_many_and_no_more(ext: Extension) -> None:
    with ext.app.connection_for_write() as connection:
        connection.default_channel.queue_declare('a')
        with ext.app.amqp.Producer(connection) as producer, producer.batch():
            for number in range(2 * LOOKS + 100):
                name = 'rare' if number == LOOKS + 50 else 'common'
                ext.app.send_task(name, queue='a', producer=producer)
    first = ext.jobs.search(task='rare')
    assert (first.jobs, first.looked, first.total) == ([], LOOKS, 2 * LOOKS + 100)
    second = ext.jobs.search(task='rare', after=first.next)
    assert len(second.jobs) == 1
    third = ext.jobs.search(task='rare', after=second.next)
    assert (third.jobs, third.next) == ([], '')


def test_a_page_takes_no_longer_than_it_may(ext: Extension) -> None:
    for _ in range(200):
        send(ext, 'common', queue='a')
    part = ext.jobs.search(task='rare', limit=10, within=0)
    assert (part.jobs, part.looked, part.next) == ([], 10, '10')
    assert not ext.jobs.search(task='rare', limit=10).next


def test_a_late_page_costs_what_the_first_does(
    make_ext: Callable[[str], Extension], server: Server, database: int
) -> None:
    with Proxy(('127.0.0.1', server.port)) as proxy:
        ext = make_ext(f'reliable+{proxy.url(database)}')
        for number in range(300):
            send(ext, queue='a', tags=['all'], priority=number % 3)

        def commands(**wanted: Any) -> int:
            proxy.clear()
            found: Found = ext.jobs.search(limit=50, **wanted)
            assert len(found.jobs) == 50
            return len(proxy.seen())

        commands()
        assert commands(after='250') == commands() < 70
        after = ''
        for _ in range(5):
            after = ext.jobs.search(tags=['all'], limit=50, after=after).next
        assert commands(tags=['all'], after=after) <= commands(tags=['all']) < 70


def test_nonsense_is_refused(ext: Extension) -> None:
    for wanted in (
        {'state': 'odd'}, {'after': 'x'}, {'after': '-1'}, {'after': '9' * 30}, {'limit': -1},
        {'limit': True}, {'limit': 'many'}, {'tags': ['']},
    ):  # fmt: skip
        with pytest.raises(InvalidArgument):
            ext.jobs.search(**wanted)  # type: ignore[arg-type]


def test_some_jobs_at_once(ext: Extension) -> None:
    ids = [send(ext, queue='a') for _ in range(60)]
    gone = ids[3]
    ext.jobs.cancel(gone)
    found = ext.jobs.some([*ids, 'no such', ids[0]])
    assert set(found) == set(ids) - {gone}
    assert all(found[one].id == one for one in found)
    assert ext.jobs.some([]) == {}


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_a_million_jobs(ext: Extension) -> None:
    """Any page within 50 ms, with and without a filter that has to look."""
    count, step, tagged = 1_000_000, 200, 100_000
    with ext.app.connection_for_write() as connection:
        connection.default_channel.queue_declare('a')
        with ext.app.amqp.Producer(connection) as producer:
            for _ in range(0, tagged, step):
                with producer.batch():
                    for _ in range(step):
                        ext.app.send_task('shop.pay', queue='a', producer=producer, tags=['all'])
    template = open_store(ext.app.connection_for_write())
    first = ext.jobs.search(limit=1).jobs[0].info
    publish = template.operations.publish
    for at in range(tagged, count, 20 * step):
        calls = []
        for begin in range(at, min(at + 20 * step, count), step):
            some = [
                Outgoing(pack_id(f'job-{number}'), 'a', 0, '0', first.envelope)
                for number in range(begin, begin + step)
            ]
            calls.append(publish('filling', begin, some))
        template.run_all(calls)
    assert ext.jobs.search().total == count
    for wanted in (
        {}, {'after': '500000'}, {'after': '999950'}, {'queue': 'a', 'state': 'ready'},
        {'tags': ['all']}, {'tags': ['all'], 'task': 'shop.*'},
    ):  # fmt: skip
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            ext.jobs.search(limit=50, **wanted)  # type: ignore[arg-type]
            took.append(time.perf_counter() - begun)
        print(f'{wanted}: {1000 * min(took):.1f} ms')
        assert min(took) < 0.05, wanted
    begun = time.perf_counter()
    looked = ext.jobs.search(task='rare', limit=50, within=1).looked
    print(f'looking at {looked} in vain: {1000 * (time.perf_counter() - begun):.1f} ms')
    assert looked == LOOKS or time.perf_counter() - begun < 1.5
