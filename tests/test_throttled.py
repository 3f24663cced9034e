"""What ``@throttled``, ``throttles=...`` and ``fair_by`` write into the headers of a message."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, chord, signals
from kombu import Queue
from kombu.exceptions import InconsistencyError
from kombu.utils.json import dumps

import celery_ext
from celery_ext import InvalidTemplate, Throttle, fair_by, throttled
from kombu_reliable import InvalidArgument

_names = itertools.count()

THROTTLES = 'x-throttles'
FAIR = 'x-fair-key'


@pytest.fixture
def make_app() -> Iterator[Callable[..., Celery]]:
    made: list[Celery] = []

    def make(**settings: Any) -> Celery:
        broker = f'reliable+fakeredis://throttled{next(_names)}'
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


class Sent(list[Any]):
    """The headers and bodies of all tasks published meanwhile."""

    def take(self, header: str) -> list[Any]:
        found = [headers.get(header) for headers, _ in self]
        self.clear()
        return found


@pytest.fixture
def sent() -> Iterator[Sent]:
    collected = Sent()

    def collect(headers: Any, body: Any, **_: Any) -> None:
        collected.append((dict(headers), body))

    signals.before_task_publish.connect(collect, weak=False)
    yield collected
    signals.before_task_publish.disconnect(collect)


@pytest.fixture
def charge(app: Celery) -> Any:
    @app.task(shared=False, name='shop.charge')
    @throttled('stripe', concurrency=5, rate='100/m', burst=2)
    @throttled('tenant:{tenant}', concurrency=1)
    def charge(tenant: Any, amount: int = 7) -> None: ...

    return charge


STRIPE = {'name': 'stripe', 'concurrency': 5, 'rate': '100/m', 'burst': 2}
TENANT = {'name': 'tenant:1', 'concurrency': 1}


# -- throttles -------------------------------------------------------------------


def test_the_throttles_of_a_task(app: Celery, charge: Any, sent: Sent) -> None:
    charge.delay(1)
    app.send_task('shop.charge', kwargs={'tenant': 1})
    chain(charge.si(1), charge.si(2)).apply_async()
    assert sent.take(THROTTLES) == [[STRIPE, TENANT]] * 3


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        (['mail'], [STRIPE, TENANT, {'name': 'mail'}]),
        ('mail', [STRIPE, TENANT, {'name': 'mail'}]),
        (('order:{amount}',), [STRIPE, TENANT, {'name': 'order:7'}]),
        (Throttle('mail', 0), [STRIPE, TENANT, {'name': 'mail', 'concurrency': 0}]),
        ([Throttle('stripe', concurrency=1)], [{'name': 'stripe', 'concurrency': 1}, TENANT]),
        (['stripe', 'tenant:1'], [STRIPE, TENANT]),
        ([{'name': 'x', 'rate': '1/s'}], [STRIPE, TENANT, {'name': 'x', 'rate': '1/s'}]),
        ({Throttle('x')}, [STRIPE, TENANT, {'name': 'x'}]),
        ([], [STRIPE, TENANT]),
        (None, [STRIPE, TENANT]),
    ],
)
def test_those_of_a_call_come_on_top(charge: Any, sent: Sent, given: Any, wanted: Any) -> None:
    charge.apply_async((1,), throttles=given)
    charge.s(1).set(throttles=given).delay()
    charge.signature((1,), throttles=given).delay()
    assert sent.take(THROTTLES) == [wanted] * 3


def test_members_of_canvas_carry_plain_data(charge: Any, sent: Sent) -> None:
    second = charge.si(2).set(throttles=[Throttle('mail', rate='5/s')])
    for canvas in (
        chain(charge.si(1), second),
        chord([charge.si(1)], second),
        charge.si(1).set(link=second),
        charge.signature((1,), {}, link=charge.signature((2,), throttles=Throttle('mail'))),
    ):
        sent.clear()
        canvas.apply_async()
        assert '"throttles": [{"name": "mail"' in dumps([body for _, body in sent])


def test_a_throttle_for_several_tasks(app: Celery, sent: Sent) -> None:
    stripe = Throttle('stripe', concurrency=5)

    @app.task(shared=False)
    @throttled(stripe)
    def one() -> None: ...

    one.delay()
    assert sent.take(THROTTLES) == [[{'name': 'stripe', 'concurrency': 5}]]
    with pytest.raises(InvalidArgument, match='has its limits'):
        throttled(stripe, rate='1/s')


@pytest.mark.parametrize('name', ['ключ', '🐘', 'a b\n\t', 'x' * 300, 'a:b:c', '\'"\\', '{{}}'])
def test_names_of_all_kinds(app: Celery, sent: Sent, name: str) -> None:
    app.send_task('x', throttles=[name], fair_by=name)
    [(headers, _)] = sent
    assert headers[THROTTLES] == [{'name': name.format()}]
    assert headers[FAIR] == name.format()


@pytest.mark.parametrize(
    ('limits', 'words'),
    [
        ({'rate': '100/fortnight'}, '100/fortnight'),
        ({'rate': 100}, 'rate 100'),
        ({'rate': '-1/s'}, 'rate'),
        ({'rate': ''}, 'rate'),
        ({'concurrency': -1}, 'concurrency -1'),
        ({'concurrency': 1.5}, 'concurrency 1.5'),
        ({'concurrency': True}, 'concurrency True'),
        ({'concurrency': '5'}, 'concurrency'),
        ({'rate': '1/s', 'burst': 0}, 'burst 0'),
        ({'burst': 3}, 'burst'),
    ],
)
def test_wrong_limits(limits: dict[str, Any], words: str) -> None:
    for make in (throttled, Throttle):
        with pytest.raises(InvalidArgument, match=words):
            make('x', **limits)


@pytest.mark.parametrize('name', ['', '{', '{}', 'a{0}', None, 3, b'x', len, ['x']])
def test_wrong_names(name: Any) -> None:
    for make in (throttled, Throttle, fair_by):
        with pytest.raises((InvalidArgument, InvalidTemplate)):
            make(name)


@pytest.mark.parametrize(
    'given', [3, b'x', [3], [None], [b'x'], ['{'], [''], [{'nome': 'x'}], [{'name': 'x', 'a': 1}],
              [{'name': 'x', 'rate': '1/fortnight'}]],
)  # fmt: skip
def test_wrong_throttles_of_a_call(charge: Any, sent: Sent, given: Any) -> None:
    for call in (
        lambda: charge.apply_async((1,), throttles=given),
        lambda: charge.s(1).set(throttles=given),
        lambda: charge.signature((1,), throttles=given).delay(),
    ):
        with pytest.raises((InvalidArgument, InvalidTemplate)):
            call()
    assert sent == []


def test_a_template_that_names_a_missing_argument(app: Celery, sent: Sent) -> None:
    @app.task(shared=False, name='shop.refund')
    @throttled('tenant:{tenant_id}')
    def refund(tenant: Any) -> None: ...

    for call in (lambda: refund.delay(1), lambda: app.send_task('shop.refund', (1,))):
        with pytest.raises(InvalidTemplate, match=r"task shop\.refund.*'tenant_id'"):
            call()
    assert sent == []


# -- turns -----------------------------------------------------------------------


def test_turns_by_a_key_of_a_queue(make_app: Callable[..., Celery], sent: Sent) -> None:
    app = make_app()
    app.conf.task_routes = {'routed': 'reports'}
    reports = app.celery_ext.queues['reports']
    assert reports.fair_by is None
    reports.fair_by = '{customer}'
    assert app.celery_ext.queues['reports'].fair_by == '{customer}'

    @app.task(shared=False, name='routed')
    def routed(customer: Any) -> None: ...

    @app.task(shared=False, name='other')
    def other(x: Any) -> None: ...

    routed.delay(1)
    other.apply_async((2,), queue='reports')
    app.send_task('elsewhere', kwargs={'customer': 'acme'}, queue='reports')
    app.send_task('elsewhere', queue=Queue('reports'))
    assert sent.take(FAIR) == ['1', '-', 'acme', '-']
    routed.apply_async((1,), queue='mail')
    other.delay(2)
    assert sent.take(FAIR) == [None, None]
    routed.apply_async((1,), fair_by='own')
    routed.apply_async((1,), headers={FAIR: 'by hand'})
    assert sent.take(FAIR) == ['own', 'by hand']
    reports.fair_by = None
    routed.delay(1)
    assert sent.take(FAIR) == [None]
    with pytest.raises(InvalidTemplate):
        reports.fair_by = '{'


def test_a_router_that_never_answers_the_same(make_app: Callable[..., Celery], sent: Sent) -> None:
    app = make_app()
    asked = itertools.count()

    def route(name: str, *_: Any, **__: Any) -> Any:
        return {'queue': f'q{next(asked)}'}

    app.conf.task_routes = (route,)
    app.celery_ext.queues['q0'].fair_by = '{customer}'
    queues: list[Any] = []

    def collect(routing_key: str, **_: Any) -> None:
        queues.append(routing_key)

    signals.before_task_publish.connect(collect, weak=False)
    try:
        app.send_task('x', kwargs={'customer': 'acme'})
    finally:
        signals.before_task_publish.disconnect(collect)
    assert (queues, sent.take(FAIR)) == (['q0'], ['acme'])


def test_turns_by_a_key_of_a_task_or_a_call(app: Celery, sent: Sent) -> None:
    @app.task(shared=False, name='shop.report')
    @fair_by('{customer}')
    def report(customer: Any) -> None: ...

    report.delay('acme')
    report.apply_async(('acme',), fair_by='vip:{customer}')
    report.s('acme').set(fair_by='vip').delay()
    assert sent.take(FAIR) == ['acme', 'vip:acme', 'vip']
    with pytest.raises(InvalidTemplate, match=r"task shop\.report.*'tenant'"):
        report.apply_async(('acme',), fair_by='{tenant}')


def test_other_exchanges_are_no_queue(app: Celery, sent: Sent) -> None:
    app.celery_ext.queues['celery'].fair_by = '{customer}'
    with pytest.raises(InconsistencyError):
        app.send_task('x', kwargs={'customer': 1}, exchange='topics', routing_key='celery')
    app.send_task('x', kwargs={'customer': 1})
    assert sent.take(FAIR) == [None, '1']
