"""``@unique`` and ``unique=``: what they say, what they refuse, and what a call returns."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain, chord, group, shared_task, signals

import celery_ext
from celery_ext import DuplicateJob, InertWarning, InvalidArgument, InvalidTemplate, unique
from celery_ext.following import NAME as FOLLOW
from kombu_reliable import InvalidMessage, open_job
from kombu_reliable.transport.unique import take_unique

_names = itertools.count()


@pytest.fixture
def app() -> Iterator[Celery]:
    broker = f'reliable+fakeredis://unique{next(_names)}'
    made = Celery('shop', broker=broker, backend='cache+memory://', set_as_current=False)
    celery_ext.install(made)
    yield made
    made.close()


@pytest.fixture
def make(app: Celery) -> Callable[..., Any]:
    """Makes a task with a decorator's arguments."""

    def make(*args: Any, name: str = '', **wanted: Any) -> Any:
        @app.task(shared=False, name=name or f'shop.task{next(_names)}')
        @unique(*args, **wanted)
        def made(customer: Any = 0, order: Any = None) -> None: ...

        return made

    return make


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    """The headers of all tasks published meanwhile."""
    collected: list[dict[str, Any]] = []

    def collect(headers: Any, **_: Any) -> None:
        collected.append(dict(headers))

    signals.before_task_publish.connect(collect, weak=False)
    yield collected
    signals.before_task_publish.disconnect(collect)


def ours(headers: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in headers.items() if name.startswith(('x-un', 'x-on'))}


def locks(app: Any) -> list[str]:
    store = app.celery_ext.store
    prefix = store.keys.unique('')
    found = store.client.scan_iter(prefix + '*')
    return sorted(key.decode().removeprefix(prefix) for key in found)


# -- keys ------------------------------------------------------------------------------------


def test_calls_with_the_same_arguments_are_one_job(app: Any, make: Any) -> None:
    task = make('{customer}')
    first = task.delay(1)
    for again in (
        task.delay(1),
        task.delay(customer=1),
        task.apply_async((1,), {'order': 2}, countdown=5),
        task.s(1).delay(),
        app.send_task(task.name, (1,)),
    ):
        assert again.id == first.id
    assert task.delay(2).id != first.id
    assert locks(app) == [f'{task.name}:1', f'{task.name}:2']


def test_without_a_key_the_task_is_unique(make: Any) -> None:
    task = make()
    assert task.delay(1).id == task.delay(2).id
    assert make().delay(1).id != task.delay(1).id


def test_keys_are_the_tasks_own_unless_they_are_global(app: Any, make: Any) -> None:
    assert make('k').delay().id != make('k').delay().id
    first, second = make('k', scope='global'), make('k', scope='global')
    assert first.delay().id == second.delay().id
    # Neither can a task's name reach into what is another's.
    tricky = [make('b:c', name='a'), make('c', name='a:b'), make('c', name='a%3Ab')]
    assert len({task.delay().id for task in tricky}) == 3
    assert len(locks(app)) == 6


def test_a_key_from_inside_an_argument(app: Any, make: Any) -> None:
    task = make('{order.id}-{customer}')
    task.apply_async((5,), {'order': SimpleNamespace(id=9)}, serializer='pickle')
    assert locks(app) == [f'{task.name}:9-5']


@pytest.mark.parametrize('key', ['\u00fc\U0001f600', '\0', '\n\r', 'x' * 5000, '{{}}', ':%'])
def test_keys_with_anything_in_them(make: Any, key: str) -> None:
    task, other = make(key), make('{customer}')
    assert task.delay().id == task.delay().id
    assert other.delay(key).id == other.delay(key).id
    assert other.delay(key).id != other.delay(key + 'x').id


def test_long_keys_differ_to_their_end(app: Any, make: Any) -> None:
    task = make('{customer}')
    ids = {task.delay('\u00fc' * 400 + end).id for end in 'abca'}
    assert len(ids) == 3
    assert all(len(key.encode()) <= 300 for key in locks(app))


# -- options of a call -----------------------------------------------------------------------


def test_a_call_says_more_than_its_task(app: Any, make: Any, sent: list[dict[str, Any]]) -> None:
    task = make('{customer}', ttl=600, on_conflict='raise', until='start')
    key = f'{task.name}:1'
    task.delay(1)
    full = {
        'x-unique-key': key, 'x-unique-for': 600_000, 'x-on-conflict': 'raise',
        'x-unique-until': 'start',
    }  # fmt: skip
    assert ours(sent.pop()) == full
    task.apply_async((1,), unique={'on_conflict': 'replace', 'ttl': 0.5})
    assert ours(sent.pop()) == {**full, 'x-unique-for': 500, 'x-on-conflict': 'replace'}
    with pytest.raises(DuplicateJob):
        task.apply_async((1,), unique=True)
    task.apply_async((1,), unique='other')
    assert ours(sent.pop())['x-unique-key'] == f'{task.name}:other'
    task.apply_async((1,), unique=False)
    assert ours(sent.pop()) == {}
    task.s(1).set(unique=False).delay()
    assert ours(sent.pop()) == {}
    app.send_task('unknown', kwargs={'a': 1}, unique={'key': '{a}'})
    assert ours(sent.pop())['x-unique-key'] == 'unknown:1'


def test_what_was_skipped(app: Any, make: Any) -> None:
    task = make()
    published: list[str] = []

    def note(headers: Any, **_: Any) -> None:
        published.append(headers['id'])

    signals.after_task_publish.connect(note, weak=False)
    first = task.delay()
    second = task.apply_async(task_id='mine')
    signals.after_task_publish.disconnect(note)
    assert second.id == first.id
    assert published == [first.id]
    assert 'mine' not in app.celery_ext.jobs


def test_an_error_names_the_other(make: Any) -> None:
    task = make('k', on_conflict='raise')
    first = task.delay()
    with pytest.raises(DuplicateJob, match=f'task {first.id} has the unique key') as caught:
        task.delay()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.id) == (str(caught.value), first.id)


def test_replace(app: Any, make: Any) -> None:
    task = make(on_conflict='replace')
    ids = [task.apply_async(countdown=60).id for _ in range(5)]
    assert [one in app.celery_ext.jobs for one in ids] == [False] * 4 + [True]
    assert app.celery_ext.jobs[ids[-1]].state == 'delayed'


# -- bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'wanted',
    [
        {'ttl': 0}, {'ttl': -1}, {'ttl': 'soon'}, {'ttl': float('nan')}, {'ttl': float('inf')},
        {'ttl': True}, {'ttl': 1e20},
        {'on_conflict': 'ignore'}, {'until': 'later'}, {'scope': 'all'},
    ],
)  # fmt: skip
def test_values_that_make_no_sense(make: Any, wanted: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(wanted))):
        unique(**wanted)
    with pytest.raises(InvalidArgument, match=next(iter(wanted))):
        make().apply_async(unique=wanted)


def test_other_bad_input(app: Any, make: Any) -> None:
    with pytest.raises(InvalidTemplate, match='wrong'):
        unique('{customer')
    with pytest.raises(InvalidTemplate):
        unique('')
    task = make('{missing}', name='shop.bad')
    with pytest.raises(InvalidTemplate, match=r"shop\.bad.*'missing'"):
        task.delay(1)
    with pytest.raises(InvalidTemplate, match='half a character'):
        make('{customer}').delay('\ud800')
    with pytest.raises(InvalidArgument, match='needs a key'):
        make(scope='global').delay()
    for wrong in (7, ['k'], {'keys': 'k'}):
        with pytest.raises(InvalidArgument):
            make().apply_async(unique=wrong)
    assert locks(app) == []


@pytest.mark.parametrize(
    'headers',
    [
        {'x-unique-key': 7}, {'x-unique-key': ''}, {'x-unique-key': '\ud800'},
        {'x-unique-for': 5}, {'x-on-conflict': 'skip'},
        {'x-unique-key': 'k', 'x-on-conflict': 'no'},
        {'x-unique-key': 'k', 'x-unique-until': 'no'},
        {'x-unique-key': 'k', 'x-unique-for': 0}, {'x-unique-key': 'k', 'x-unique-for': '5'},
        {'x-unique-key': 'k', 'x-unique-for': 2**53}, {'x-unique-key': 'k', 'x-unique-for': True},
    ],
)  # fmt: skip
def test_headers_that_make_no_sense(headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidMessage, match='x-'):
        take_unique(dict(headers))


def test_headers_are_taken_out(app: Any) -> None:
    """A retry, which copies them, is not to ask again; but its start frees the key."""
    app.send_task('any', unique={'key': 'k', 'ttl': 5, 'until': 'start'})
    (job,) = app.celery_ext.jobs.in_state('ready')
    assert ours(open_job(job.info)['headers']) == {'x-unique-until': 'start'}
    assert take_unique({'x-unique-until': 'start'}) is None


def test_a_message_with_a_key_goes_to_one_queue(app: Any) -> None:
    with app.connection_for_write() as connection:
        channel = connection.channel()
        for queue in ('one', 'two'):
            channel.queue_declare(queue)
            channel.exchange_declare('both', type='direct')
            channel.queue_bind(queue, 'both', 'key')
        with connection.Producer() as producer:
            producer.publish('x', exchange='both', routing_key='key')
            with pytest.raises(InvalidMessage, match='several queues'):
                producer.publish(
                    'x', exchange='both', routing_key='key', headers={'x-unique-key': 'k'}
                )


def test_batches_of_kombu(app: Any) -> None:
    with app.connection_for_write() as connection, connection.Producer() as producer:

        def publish(body: str, conflict: str, key: str = 'k') -> None:
            headers = {'x-unique-key': key, 'x-on-conflict': conflict, 'id': body, 'task': 't'}
            producer.publish(body, routing_key='q', headers=headers)

        with producer.batch():
            publish('a', 'skip')
            publish('b', 'skip')
            publish('c', 'skip', 'other')
        assert app.celery_ext.queues['q'].counts().ready == 2
        with pytest.raises(DuplicateJob) as caught, producer.batch():
            publish('d', 'raise')
            publish('e', 'skip', 'third')
        assert caught.value.id == 'a'
        assert app.celery_ext.queues['q'].counts().ready == 3


# -- where others count on it ----------------------------------------------------------------


def waiting(app: Any) -> list[tuple[str, list[str]]]:
    found = app.celery_ext.jobs.in_state('waiting')
    return [(job.task, list(job.depends_on)) for job in found]


def test_what_others_count_on_is_followed(app: Any, make: Any) -> None:
    task, other = make('k'), app.signature('shop.other', immutable=True)
    first = task.delay()
    follow = [(FOLLOW, [first.id])]
    for call in (
        lambda: group(task.s(), other).delay(),
        lambda: chain(task.s(), other).delay(),
        lambda: chord([task.s(), other])(other),
        lambda: task.apply_async(link=other),
        lambda: task.apply_async(link_error=other),
    ):
        call()
        assert waiting(app) == follow
        app.celery_ext.queues['celery'].purge('waiting')


def test_who_follows_has_the_place_of_the_other(app: Any, make: Any) -> None:
    task = make('k')
    first = task.apply_async(queue='mail')
    members = group(task.s().set(queue='mail', priority=3, countdown=60)).delay()
    (job,) = app.celery_ext.jobs.in_state('waiting')
    assert job.id == members.results[0].id
    assert (job.queue, job.priority, job.task) == ('mail', 3, FOLLOW)
    app.celery_ext.jobs.cancel(first, cascade=True)
    store = app.celery_ext.store
    store.run(store.operations.claim('', 'token', 0, ['mail']))
    assert waiting(app) == []
    assert app.celery_ext.jobs[job.id].state == 'ready'


def test_nobody_follows_where_nobody_looks(app: Any, make: Any) -> None:
    task = make('k')
    task.delay()
    group(task.s().set(ignore_result=True)).delay()
    assert waiting(app) == []


# -- elsewhere -------------------------------------------------------------------------------


def test_shared_tasks(app: Any) -> None:
    @shared_task(name='shop.shared')
    @unique()
    def shared() -> None: ...

    task = app.tasks['shop.shared']
    assert task.delay().id == task.delay().id


def test_eager_tasks_and_other_brokers(app: Any) -> None:
    other = Celery('other', broker='memory://', set_as_current=False)
    celery_ext.install(other)
    ran = []

    @other.task(shared=False, name='shop.elsewhere')
    @unique()
    def elsewhere() -> None:
        ran.append(1)

    with pytest.warns(InertWarning, match='unique'):
        assert elsewhere.delay().id != elsewhere.delay().id
    with pytest.warns(InertWarning, match='unique'):
        elsewhere.apply()
    assert ran == [1]
    other.close()
