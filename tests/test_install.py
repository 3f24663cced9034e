"""What ``celery_ext.install`` does to an app, and what it leaves alone."""

from __future__ import annotations

import itertools
import logging
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task, signals
from celery.app.control import Control
from celery.result import GroupResult
from kombu.utils.json import dumps

import celery_ext
from celery_ext import (
    ForeignBroker,
    InertWarning,
    InvalidDependency,
    UnknownJob,
    expected,
)
from celery_ext.options import DEPENDS_ON, POLICY
from kombu_reliable import InvalidMessage

_names = itertools.count()


@pytest.fixture
def broker() -> str:
    return f'reliable+fakeredis://install{next(_names)}'


@pytest.fixture
def make_app(broker: str) -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**settings: Any) -> Celery:
        settings = {'broker': broker, 'backend': 'cache+memory://', **settings}
        app = Celery('shop', set_as_current=False, **settings)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app()


class Sent(list[Any]):
    """The headers and bodies of all tasks published meanwhile."""

    @property
    def depends_on(self) -> list[Any]:
        return [headers.get(DEPENDS_ON) for headers, _ in self]


@pytest.fixture
def sent() -> Iterator[Sent]:
    collected = Sent()

    def collect(headers: Any, body: Any, **_: Any) -> None:
        collected.append((dict(headers), body))
        # The transport is not part of these tests.
        headers.pop(DEPENDS_ON, None)
        headers.pop(POLICY, None)

    signals.before_task_publish.connect(collect, weak=False)
    yield collected
    signals.before_task_publish.disconnect(collect)


# -- settings --------------------------------------------------------------------


def test_safe_settings_where_the_user_set_nothing(app: Celery) -> None:
    ext = celery_ext.install(app)
    assert (app.conf.task_acks_late, app.conf.task_reject_on_worker_lost) == (True, True)
    assert ext.defaults == {'task_acks_late': True, 'task_reject_on_worker_lost': True}


def test_installing_twice_is_installing_once(app: Celery) -> None:
    ext = celery_ext.install(app)
    sender = app.send_task
    assert celery_ext.install(app) is ext
    assert app.send_task == sender


def test_nothing_is_read_at_once(app: Celery) -> None:
    app.config_from_object('no.such.module')
    celery_ext.install(app)
    assert not app.configured


def _later(app: Celery) -> None:
    app.conf.task_acks_late = False


def _updated(app: Celery) -> None:
    app.conf.update(task_acks_late=False)


def _from_object(app: Celery) -> None:
    app.config_from_object(types.SimpleNamespace(task_acks_late=False))


def _old_name(app: Celery) -> None:
    app.config_from_object(types.SimpleNamespace(CELERY_ACKS_LATE=False))


def _namespace(app: Celery) -> None:
    app.config_from_object(
        types.SimpleNamespace(CELERY_TASK_ACKS_LATE=False, DEBUG=True), namespace='CELERY'
    )


def _forced(app: Celery) -> None:
    assert app.conf.timezone is None
    app.config_from_object(types.SimpleNamespace(task_acks_late=False), force=True)


def _defaults(app: Celery) -> None:
    app.add_defaults({'task_acks_late': False})


@pytest.mark.parametrize(
    'set_it', [_later, _updated, _from_object, _old_name, _namespace, _forced, _defaults]
)
@pytest.mark.parametrize('before', [True, False])
@pytest.mark.parametrize('configured', [True, False])
def test_what_the_user_sets_wins(
    app: Celery, set_it: Callable[[Celery], None], before: bool, configured: bool
) -> None:
    if configured and set_it not in (_from_object, _old_name, _namespace):
        assert app.conf.timezone is None
    if before:
        set_it(app)
        celery_ext.install(app)
    else:
        celery_ext.install(app)
        set_it(app)
    assert app.conf.task_acks_late is False
    # The other is still open.
    assert app.conf.task_reject_on_worker_lost is True

    @app.task(shared=False)
    def work() -> None: ...

    assert work.acks_late is False
    assert work.reject_on_worker_lost is True


def test_configuration_as_django_apps_have_it(make_app: Callable[..., Celery], broker: str) -> None:
    class LazySettings:
        """Settings that are read when the first of them is needed."""

        reads = 0

        def __getattr__(self, name: str) -> Any:
            type(self).reads += 1
            values = {'CELERY_BROKER_URL': broker, 'CELERY_TASK_REJECT_ON_WORKER_LOST': False}
            try:
                return values[name]
            except KeyError:
                raise AttributeError(name) from None

        def __dir__(self) -> list[str]:
            return ['CELERY_BROKER_URL', 'CELERY_TASK_REJECT_ON_WORKER_LOST', 'DEBUG']

    app = make_app(broker=None)
    app.config_from_object(LazySettings(), namespace='CELERY')
    ext = celery_ext.install(app)
    assert LazySettings.reads == 0
    assert app.conf.task_acks_late is True
    assert app.conf.task_reject_on_worker_lost is False
    assert ext.defaults == {'task_acks_late': True}


def test_what_a_task_says_wins(app: Celery) -> None:
    celery_ext.install(app)

    @app.task(shared=False, acks_late=False)
    def early() -> None: ...

    class Careless(Task):
        reject_on_worker_lost = False

    @app.task(shared=False, base=Careless)
    def careless() -> None: ...

    assert (early.acks_late, early.reject_on_worker_lost) == (False, True)
    assert (careless.acks_late, careless.reject_on_worker_lost) == (True, False)


def test_shared_tasks_and_the_current_app(make_app: Callable[..., Celery]) -> None:
    app = make_app()
    app.set_current()

    @shared_task(name='shared.work', shared=False)
    def work() -> None: ...

    ext = celery_ext.install()
    assert ext.app is app
    assert app.tasks['shared.work'].acks_late is True


def test_another_broker_keeps_its_meaning(make_app: Callable[..., Celery]) -> None:
    app = make_app(broker='memory://')
    ext = celery_ext.install(app)
    assert (app.conf.task_acks_late, app.conf.task_reject_on_worker_lost) == (False, None)
    assert ext.defaults == {}


def test_an_app_with_the_extension_can_be_pickled(app: Celery) -> None:
    celery_ext.install(app)
    assert pickle.loads(pickle.dumps(app)).conf.broker_url == app.conf.broker_url


# -- depends_on ------------------------------------------------------------------


@pytest.fixture
def task(app: Celery) -> Any:
    celery_ext.install(app)

    @app.task(shared=False, name='shop.invoice')
    def invoice(*args: Any) -> None: ...

    return invoice


def test_every_way_to_call_a_task(app: Celery, task: Any, sent: Sent) -> None:
    task.apply_async((1,), depends_on=['a'], dependency_policy='fail')
    task.signature((1,), depends_on='a').delay()
    task.s(1).set(depends_on=['a']).apply_async()
    task.s(1).apply_async(depends_on=['a'])
    app.send_task('shop.invoice', (1,), depends_on=['a'])
    app.send_task('elsewhere', (1,), depends_on=['a'])
    app.signature('elsewhere', (1,), depends_on=['a']).apply_async()
    group([task.s(1)]).apply_async(depends_on=['a'])
    chain(task.s(1), task.s(2)).apply_async(depends_on=['a'])
    assert sent.depends_on == [['a']] * 9
    assert sent[0][0][POLICY] == 'fail'
    assert all(POLICY not in headers for headers, _ in sent[1:])


def test_custom_task_classes(app: Celery, sent: Sent) -> None:
    celery_ext.install(app)

    class Own(Task):
        def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
            return super().apply_async(args, kwargs, queue='own', **options)

    @app.task(shared=False, base=Own, name='own')
    def own() -> None: ...

    own.apply_async(depends_on=['a'])
    assert sent.depends_on == [['a']]


def test_what_may_be_depended_on(app: Celery, task: Any, sent: Sent) -> None:
    one, two = app.AsyncResult('one'), app.AsyncResult('two')
    both = GroupResult('g', [one, two], app=app)
    frozen = task.s(1)
    frozen.freeze('frozen')
    day = 24 * 3600.0
    for given, wanted in [
        (one, ['one']),
        ('one', ['one']),
        ([one, 'two'], ['one', 'two']),
        (both, ['one', 'two']),
        ([both, 'one'], ['one', 'two']),
        (iter([one, two]), ['one', 'two']),
        (frozen, [{'id': 'frozen', 'expected': day}]),
        (expected('x', timeout=5), [{'id': 'x', 'expected': 5.0}]),
        (expected(one, 5), [{'id': 'one', 'expected': 5.0}]),
        ([expected('one', 5), one], [{'id': 'one', 'expected': 5.0}]),
        ([one, expected('one', 5)], [{'id': 'one', 'expected': 5.0}]),
        (None, None),
        ([], None),
        (task.apply((1,)), None),
    ]:
        sent.clear()
        task.apply_async((1,), depends_on=given)
        assert sent.depends_on == [wanted], given


def test_results_of_a_chain_are_expected_while_it_goes_on(
    app: Celery, task: Any, sent: Sent
) -> None:
    last = chain(task.si(1).set(task_id='first'), task.si(2).set(task_id='last')).apply_async()
    sent.clear()
    frozen = task.s()
    frozen.set(depends_on=last)
    assert frozen.options['depends_on'] == [
        {'id': 'last', 'expected': 24 * 3600.0, 'after': ['first']}
    ]


def test_members_of_canvas_carry_ids(app: Celery, task: Any, sent: Sent) -> None:
    """Whatever serializer publishes them: a worker reads them back from a message."""
    result = app.AsyncResult('one')
    for canvas in (
        chain(task.si(1), task.si(2).set(depends_on=[result])),
        task.si(1).set(link=task.si(2).set(depends_on=[result])),
        task.si(1).set(link_error=[task.si(2).set(depends_on=result)]),
        chain(task.si(1), chord([task.si(2).set(depends_on=result)], task.si(3))),
    ):
        sent.clear()
        canvas.apply_async()
        [(headers, body)] = sent
        assert DEPENDS_ON not in headers
        assert '"depends_on": ["one"]' in dumps(body[2])


def test_a_chord_waits_once(app: Celery, task: Any, sent: Sent) -> None:
    header = [task.si(1), task.si(2)]
    chord(header, task.si(3)).apply_async(depends_on=[expected('one', 5)])
    published = [one for one in sent if one[0]['task'] == 'shop.invoice']
    assert [headers[DEPENDS_ON] for headers, _ in published] == [
        [{'id': 'one', 'expected': 5.0}]
    ] * 2
    assert all('"expected"' not in dumps(body[2]) for _, body in published)


def test_a_callback_that_is_used_again_keeps_what_it_waits_for(task: Any, sent: Sent) -> None:
    callback = task.si(2).set(depends_on=['one'])
    for _ in range(2):
        sent.clear()
        task.si(1).set(link=callback).apply_async(depends_on=['one'])
        assert '"depends_on": ["one"]' in dumps(sent[0][1][2])


def test_other_headers_stay(task: Any, sent: Sent) -> None:
    given = {'mine': 1}
    task.apply_async((1,), headers=given, depends_on=['a'])
    assert sent[0][0]['mine'] == 1
    assert given == {'mine': 1}


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        (3, 'takes task ids'),
        (object(), 'takes task ids'),
        (b'one', 'takes task ids'),
        (['one', 3], 'takes task ids'),
        ('', 'empty id'),
        ({'id': 'one'}, 'expected'),
    ],
)
def test_a_wrong_dependency(task: Any, sent: Sent, given: Any, words: str) -> None:
    with pytest.raises(InvalidDependency, match=words):
        task.apply_async((1,), depends_on=given)
    with pytest.raises(InvalidDependency, match=words):
        task.s(1).set(depends_on=given)
    assert sent == []


def test_a_signature_without_id(task: Any) -> None:
    with pytest.raises(InvalidDependency, match=r'freeze\(\)'):
        task.apply_async((1,), depends_on=task.s(1))


@pytest.mark.parametrize('timeout', [0, -1, float('nan'), float('inf'), 'soon', None])
def test_a_wrong_timeout(timeout: Any) -> None:
    with pytest.raises(InvalidDependency, match='timeout'):
        expected('x', timeout)


def test_a_wrong_policy(task: Any, sent: Sent) -> None:
    with pytest.raises(InvalidDependency, match='wait, fail, ignore'):
        task.apply_async((1,), depends_on=['a'], dependency_policy='perhaps')
    assert sent == []


# -- where it does nothing -------------------------------------------------------


def test_eager_tasks_run_with_one_warning(make_app: Callable[..., Celery]) -> None:
    app = make_app(task_always_eager=True)
    celery_ext.install(app)

    @app.task(shared=False)
    def double(x: int) -> int:
        return 2 * x

    with pytest.warns(InertWarning, match='run eagerly'):
        assert double.apply_async((2,), depends_on=['a']).get() == 4
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert double.apply((2,), depends_on=['a'], dependency_policy='fail').get() == 4
        assert double.s(2).set(depends_on=['a']).apply().get() == 4
        assert chain(double.s(1), double.s()).apply_async(depends_on=['a']).get() == 4


def test_depends_on_another_broker_is_an_error(make_app: Callable[..., Celery], sent: Sent) -> None:
    app = make_app(broker='memory://')
    celery_ext.install(app)

    @app.task(shared=False)
    def work() -> None: ...

    work.apply_async()
    for call in (
        lambda: work.apply_async(depends_on=['a']),
        lambda: app.send_task('work', depends_on=['a']),
        lambda: work.s().set(depends_on=['a']).delay(),
    ):
        with pytest.raises(ForeignBroker, match=r'reliable\+'):
            call()
    assert len(sent) == 1
    with app.connection_for_write() as connection, pytest.raises(ForeignBroker):
        work.apply_async(connection=connection, depends_on=['a'])


def test_depends_on_without_the_extension_is_an_error(app: Celery) -> None:
    with pytest.raises(InvalidMessage, match=r'celery_ext\.install'):
        app.send_task('work', depends_on=['a'])


def test_objects_on_another_broker_are_an_error(make_app: Callable[..., Celery]) -> None:
    ext = celery_ext.install(make_app(broker='memory://'))
    for look in (
        lambda: ext.jobs['a'],
        lambda: ext.queues['q'].counts(),
        lambda: ext.dead.page(),
    ):
        with pytest.raises(ForeignBroker, match=r'reliable\+'):
            look()


def test_revoke_on_another_broker_is_celerys(make_app: Callable[..., Celery]) -> None:
    app = make_app(broker='memory://')
    celery_ext.install(app)
    assert app.control.revoke('a') is None


def test_apps_without_the_extension_notice_nothing(make_app: Callable[..., Celery]) -> None:
    celery_ext.install(make_app())
    other = make_app()
    assert 'send_task' not in other.__dict__
    assert other.conf.task_acks_late is False
    assert isinstance(other.control, Control)


def test_objects_on_an_empty_server(app: Celery) -> None:
    ext = celery_ext.install(app)
    assert ext.jobs.get('a') is None
    assert 'a' not in ext.jobs
    with pytest.raises(UnknownJob, match="'a'"):
        ext.jobs['a']


def test_public_names_are_importable() -> None:
    for name in celery_ext.__all__:
        assert getattr(celery_ext, name) is not None
    with pytest.raises(AttributeError):
        celery_ext.nothing  # noqa: B018


def test_tasks_bound_before_the_call_are_named(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    @app.task(shared=False, name='shop.early')
    def early() -> None: ...

    assert early.acks_late is False  # now it has read the configuration
    celery_ext.install(app)
    worker = types.SimpleNamespace(app=app)
    with caplog.at_level(logging.INFO, logger='celery_ext'):
        signals.celeryd_after_setup.send(sender='w@h', instance=worker, conf=app.conf)
    assert 'task_acks_late = True, task_reject_on_worker_lost = True' in caplog.text
    assert 'shop.early' in caplog.text
