"""What all decorators and options of calls have in common, shown on a feature of the test's own."""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, Task, chain, chord, group, shared_task, signals
from kombu.utils.json import dumps

import celery_ext
from celery_ext import InertWarning, InvalidArgument, InvalidTemplate, features
from celery_ext.decorators import declare, declared
from celery_ext.options import feature
from celery_ext.templates import check, fill

_names = itertools.count()

HEADER = 'x-marks'


def marked(*marks: str) -> Callable[..., Any]:
    """A decorator such as those of the package."""

    checked = [check(mark) for mark in marks]

    def decorate(fun: Any) -> Any:
        for mark in reversed(checked):
            declare(fun, 'marks', mark)
        return fun

    return decorate


def _checked(marks: Any) -> list[str]:
    return [check(str(mark)) for mark in marks]


@pytest.fixture(autouse=True)
def marks() -> Iterator[None]:
    """The feature: texts, those of the task first."""

    def build(call: features.Call) -> dict[str, Any]:
        wanted = [*call.declared, *call.options.get('marks', ())]
        return {HEADER: [call.fill(mark) for mark in wanted]}

    feature('marks', headers=(HEADER,), build=build, options={'marks': _checked})
    yield
    del features._features['marks'], features._owners['marks']


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**settings: Any) -> Celery:
        broker = f'reliable+fakeredis://decorators{next(_names)}'
        settings = {'broker': broker, 'backend': 'cache+memory://', **settings}
        app = Celery('shop', set_as_current=False, **settings)
        celery_ext.install(app)
        made.append(app)
        return app

    yield make
    for app in made:
        app.close()


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    return make_app()


@pytest.fixture
def sent() -> Iterator[list[Any]]:
    """The headers and bodies of all tasks published meanwhile."""
    collected: list[Any] = []

    def collect(headers: Any, body: Any, **_: Any) -> None:
        collected.append((dict(headers), body))

    signals.before_task_publish.connect(collect, weak=False)
    yield collected
    signals.before_task_publish.disconnect(collect)


def found(sent: list[Any]) -> list[Any]:
    marks = [headers.get(HEADER) for headers, _ in sent]
    sent.clear()
    return marks


@pytest.fixture
def charge(app: Celery) -> Any:
    @app.task(shared=False, name='shop.charge')
    @marked('stripe', 'tenant:{tenant}')
    def charge(tenant: Any, amount: int = 7, **more: Any) -> None: ...

    return charge


# -- decorators ------------------------------------------------------------------


def test_every_way_to_call_a_task(app: Celery, charge: Any, sent: list[Any]) -> None:
    charge.delay(1)
    charge.apply_async((1,))
    charge.apply_async(kwargs={'tenant': 1})
    charge.s(1).delay()
    charge.s(1).apply_async(countdown=5)
    app.send_task('shop.charge', (1,))
    app.signature('shop.charge', (1,)).apply_async()
    group([charge.s(1)]).apply_async()
    chain(charge.s(1), charge.s(2)).apply_async()
    charge.s(tenant=1).delay()
    assert found(sent) == [['stripe', 'tenant:1']] * 10


def test_members_of_a_chord(app: Celery, charge: Any, sent: list[Any]) -> None:
    chord([charge.si(1), charge.si(2)], charge.si(3)).apply_async()
    assert [one for one in found(sent) if one] == [['stripe', 'tenant:1'], ['stripe', 'tenant:2']]


def test_a_call_may_say_more(app: Celery, charge: Any, sent: list[Any]) -> None:
    charge.apply_async((1,), marks=['order:{amount}'])
    charge.s(1).set(marks=['order:{amount}']).delay()
    charge.signature((1,), marks=['order:{amount}']).delay()
    app.send_task('shop.charge', (1,), marks=['order:{amount}'])
    group([charge.s(1)]).apply_async(marks=['order:{amount}'])
    assert found(sent) == [['stripe', 'tenant:1', 'order:7']] * 5
    app.send_task('elsewhere', kwargs={'a': 1}, marks=['a:{a}'])
    app.signature('elsewhere', kwargs={'a': 1}, marks=['a:{a}']).apply_async()
    assert found(sent) == [['a:1']] * 2
    charge.apply_async((1,), marks=None)
    assert found(sent) == [['stripe', 'tenant:1']]


def test_members_of_canvas_carry_plain_data(app: Celery, charge: Any, sent: list[Any]) -> None:
    class Mark:
        def __str__(self) -> str:
            return 'mine'

    second = charge.signature((2,), marks=[Mark()], immutable=True)
    chain(charge.si(1), second).apply_async()
    charge.si(1).apply_async(link=charge.si(2).set(marks=[Mark()]))
    for headers, body in sent:
        assert headers[HEADER] == ['stripe', 'tenant:1']
        assert '"marks": ["mine"]' in dumps(body[2])


def test_what_was_written_by_hand_stays(charge: Any, sent: list[Any]) -> None:
    given = {HEADER: ['own'], 'mine': 1}
    charge.apply_async((1,), headers=given)
    assert found(sent) == [['own']]
    charge.apply_async((1,), headers=given, marks=['more'])
    assert sent[0][0]['mine'] == 1
    assert found(sent) == [['stripe', 'tenant:1', 'more']]
    assert given == {HEADER: ['own'], 'mine': 1}


def test_below_other_decorators_and_in_any_order(app: Celery, sent: list[Any]) -> None:
    def loud(fun: Any) -> Any:
        @functools.wraps(fun)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return fun(*args, **kwargs)

        return wrapped

    def plain(tenant: Any) -> None: ...

    inner = loud(marked('a:{tenant}')(plain))
    outer = marked('b')(inner)
    assert declared_on(plain) == declared_on(loud(plain)) == ('a:{tenant}',)
    assert declared_on(outer) == ('b', 'a:{tenant}')
    app.task(shared=False, name='x', bind=False, autoretry_for=(ValueError,))(outer).delay(3)
    assert found(sent) == [['b', 'a:3']]


def declared_on(fun: Any) -> Any:
    return fun.__celery_ext__['marks']


def test_bound_tasks_shared_tasks_and_classes(
    make_app: Callable[..., Celery], sent: list[Any]
) -> None:
    app = make_app()
    app.set_current()

    @app.task(bind=True, shared=False, autoretry_for=(ValueError,))
    @marked('bound:{x}')
    def bound(self: Any, x: int) -> None: ...

    @shared_task(name='shared.marked', shared=False)
    @marked('shared:{x}')
    def shared(x: int) -> None: ...

    @marked('base:{x}')
    class Base(Task):
        pass

    @marked('own:{x}')
    class Own(Base):
        name = 'own'

        def run(self, x: int) -> None: ...

    @app.task(base=Base, shared=False)
    @marked('fun:{x}')
    def based(x: int) -> None: ...

    @app.task(shared=False)
    def free(x: int) -> None: ...

    for task in (bound, shared, app.register_task(Own()), based, free):
        task.delay(4)
    assert found(sent) == [
        ['bound:4'],
        ['shared:4'],
        ['own:4', 'base:4'],
        ['fun:4', 'base:4'],
        None,
    ]
    assert declared(free) == {}


def test_a_name_sent_before_the_app_was_used(app: Celery, sent: list[Any]) -> None:
    @app.task(shared=False, name='lazy')
    @marked('lazy')
    def lazy() -> None: ...

    assert not app.finalized
    app.send_task('lazy')
    assert found(sent) == [['lazy']]


def test_the_wrong_place(app: Celery, charge: Any) -> None:
    @app.task(shared=False)
    def not_used_yet() -> None: ...

    for wrong in (charge, not_used_yet):
        with pytest.raises(InvalidArgument, match='below'):
            marked('x')(wrong)
    with pytest.raises(InvalidArgument, match='above a function'):
        marked('x')('text')


# -- where it does nothing -------------------------------------------------------


def test_eager_tasks_run_with_one_warning(make_app: Callable[..., Celery]) -> None:
    app = make_app(task_always_eager=True)

    @app.task(shared=False)
    @marked('x:{x}')
    def double(x: int) -> int:
        return 2 * x

    with pytest.warns(InertWarning, match=r'marks.*run eagerly'):
        assert double.delay(2).get() == 4
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert double.apply((2,), marks=['x']).get() == 4
        assert double.s(2).set(marks=['x']).apply().get() == 4
        assert chain(double.s(1), double.s()).apply_async(marks=['a']).get() == 4


def test_other_brokers_get_nothing_but_the_task(
    make_app: Callable[..., Celery], sent: list[Any]
) -> None:
    app = make_app(broker='memory://')

    @app.task(shared=False)
    @marked('x')
    def work() -> None: ...

    with pytest.warns(InertWarning, match='marks'):
        work.delay()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        work.apply_async(marks=['y'])
        app.send_task('elsewhere', marks=['y'])
    assert found(sent) == [None] * 3
    assert 'marks' not in dumps([body for _, body in sent])


# -- templates -------------------------------------------------------------------


class Order:
    id = 5

    def __str__(self) -> str:
        return 'an order'

    def __format__(self, spec: str) -> str:
        return f'formatted {spec}'


@pytest.mark.parametrize(
    ('template', 'args', 'kwargs', 'filled'),
    [
        ('plain', (), {}, 'plain'),
        ('{tenant}', (1,), {}, '1'),
        ('{tenant}', ('Zoë ☃ 🐘\n\0',), {}, 'Zoë ☃ 🐘\n\0'),
        ('{tenant}', (b'x',), {}, "b'x'"),
        ('{tenant}', (None,), {}, 'None'),
        ('{tenant}', (1.5,), {}, '1.5'),
        ('{tenant}', (['{amount}'],), {}, "['{amount}']"),
        ('{tenant}', (Order(),), {}, 'an order'),
        ('{tenant:>3}', (Order(),), {}, 'formatted >3'),
        ('{tenant.id}/{tenant.id:03}', (Order(),), {}, '5/005'),
        ('{tenant[id]}', ({'id': 9},), {}, '9'),
        ('{tenant!r}', ('x',), {}, "'x'"),
        ('{amount}', (1,), {}, '7'),
        ('{amount}', (1, 2), {}, '2'),
        ('{region}', (1,), {'region': 'eu'}, 'eu'),
        ('{{{tenant}}}', (1,), {}, '{1}'),
    ],
)
def test_filling(charge: Any, template: str, args: Any, kwargs: Any, filled: str) -> None:
    assert fill(template, charge, args, kwargs) == filled
    if not args:
        assert fill(template, 'elsewhere', args, kwargs) == filled


@pytest.mark.parametrize(
    ('template', 'args', 'words'),
    [
        ('{customer}', (1,), r"task shop.charge: .* names the argument 'customer'"),
        ('{tenant}', (), r"task shop.charge: .* names the argument 'tenant'"),
        ('{tenant.id}', (1,), r'task shop.charge: .* cannot be filled: AttributeError'),
        ('{tenant[id]}', ({},), r'task shop.charge: .* cannot be filled: KeyError'),
        ('{tenant:d}', ('x',), r'task shop.charge: .* cannot be filled: ValueError'),
        ('{tenant}', ('\ud800',), r'task shop.charge: .* half a character'),
        ('{tenant}', (1, 2, 3), r'task shop.charge: .* do not fit the task: too many'),
    ],
)
def test_what_cannot_be_filled(
    charge: Any, sent: list[Any], template: str, args: Any, words: str
) -> None:
    with pytest.raises(InvalidTemplate, match=words):
        fill(template, charge, args, {})
    if len(args) == 1:
        with pytest.raises(InvalidTemplate, match=words):
            charge.apply_async(args, marks=[template])
    assert sent == []


def test_tasks_that_are_not_registered(app: Celery) -> None:
    with pytest.raises(InvalidTemplate, match=r'task elsewhere: .*tenant.* by keyword'):
        app.send_task('elsewhere', (1,), marks=['{tenant}'])
    with pytest.raises(InvalidTemplate, match=r'task elsewhere: .*tenant.* does not give it$'):
        app.send_task('elsewhere', marks=['{tenant}'])


@pytest.mark.parametrize(
    'template', ['', None, 3, '{', '}', 'a{b', '{}', '{0}', '{a b}', '{a!x}', '{.a}', '{a[}']
)
def test_wrong_templates_are_refused_where_they_are_written(template: Any) -> None:
    with pytest.raises(InvalidTemplate):
        marked(template)
