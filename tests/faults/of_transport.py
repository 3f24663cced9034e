"""Operations of the transport, as programs on kombu use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis
from kombu import Consumer, Exchange, Queue
from kombu.exceptions import ChannelError

from kombu_reliable import Verdict
from tests.faults.table import Act, operation
from tests.faults.world import LEASE, World
from tests.support.wait import wait_for

#: As Celery's default, but without pauses.
POLICY = {'max_retries': 3, 'interval_start': 0.0, 'interval_step': 0.01}

#: What a lost claim may cost: its lease, the hold after a silence, and finding it out.
AFTER_A_CLAIM = 5 * LEASE + 2.0

#: Of all that consumes.  A lost claim counts as a delivery.
CONSUMES: dict[str, Any] = {
    'patience': AFTER_A_CLAIM, 'loose': ['x:'], 'steps': 'a queue is declared, then consumed'
}  # fmt: skip


def send(w: World, *bodies: Any, queue: str = 'q', **options: Any) -> None:
    """Publishes past the proxy."""
    with w.far_connection.Producer() as producer:
        for body in bodies:
            producer.publish(body, routing_key=queue, **options)


def publish(w: World, *bodies: Any, **options: Any) -> None:
    options.setdefault('routing_key', 'q')
    # kombu opens it anew for a repetition, which would end consumers on the same one.
    with w.publishing.Producer() as producer:
        for body in bodies:
            producer.publish(body, retry=True, retry_policy=POLICY, **options)


class Consuming:
    """Consumes until as many messages have come as are expected, and nothing is unsettled.

    Args:
        w: where.
        expected: how many messages.
        settle: what is done with each.
        queue: where they are.
        prefetch: how many may be held.
        no_ack: they are settled when they come.
        meanwhile: called once, when it waits.
        at_last: called when it waits and something has come.
    """

    def __init__(
        self,
        w: World,
        expected: int,
        settle: Callable[[Any], None] = lambda message: message.ack(),
        queue: Queue | None = None,
        prefetch: int = 2,
        no_ack: bool = False,
        meanwhile: Callable[[], None] | None = None,
        at_last: Callable[[], None] | None = None,
    ) -> None:
        self.w = w
        self.expected = expected
        self.settle = settle
        self.queue = queue or Queue('q')
        self.prefetch = prefetch
        self.no_ack = no_ack
        self.meanwhile = meanwhile
        self.at_last = at_last
        self.seen: list[Any] = []

    def _got(self, message: Any) -> None:
        self.seen.append(message.payload)
        if not self.no_ack:
            self.settle(message)

    def __call__(self) -> list[Any]:
        connection = self.w.connection
        channel = connection.channel()
        try:
            with Consumer(
                channel, [self.queue], on_message=self._got, accept=['json'], no_ack=self.no_ack
            ) as consumer:
                consumer.qos(prefetch_count=self.prefetch)
                self._drain()
        finally:
            channel.close()
        return sorted(self.seen)

    def _holds(self, keeper: Any) -> bool:
        return self.at_last is not None and bool(keeper.leases())

    def _drain(self) -> None:
        connection = self.w.connection
        keeper = connection.transport.endpoint.keeper
        deadline = time.monotonic() + 30
        while len(self.seen) < self.expected or keeper.unsettled or self._holds(keeper):
            assert time.monotonic() < deadline, f'only {self.seen} came'
            try:
                connection.drain_events(timeout=0.1)
            except TimeoutError:
                # It waits by now.
                if self.seen and self.at_last is not None:
                    self.at_last()
                if self.meanwhile is not None:
                    self.meanwhile, meanwhile = None, self.meanwhile
                    meanwhile()


# -- connections ---------------------------------------------------------------------


@operation(cold=True)
def connect(w: World) -> Act:
    def act() -> Any:
        w.connection.connect()
        return w.connection.connected

    return act


@operation(cold=True)
def ensure_connection(w: World) -> Act:
    def act() -> Any:
        w.connection.ensure_connection(max_retries=2, interval_start=0)
        return w.connection.connected, w.connection.transport.verify_connection(
            w.connection.transport
        )

    return act


@operation(**CONSUMES | {'loose': ['x:', 'r:', 'l:', 'own']})
def close(w: World) -> Act:
    """What was acknowledged stays so, and what was not handed out goes back, in whatever order."""
    send(w, 1, 2, 3)

    seen: list[Any] = []

    def act() -> Any:
        channel = w.connection.channel()
        keeper = channel.keeper

        def got(message: Any) -> None:
            if not seen:
                seen.append(message.payload)
                message.ack()

        consumer = Consumer(channel, [Queue('q')], on_message=got, accept=['json'])
        consumer.qos(prefetch_count=1)
        consumer.consume()
        while not seen:
            try:
                w.connection.drain_events(timeout=0.1)
            except TimeoutError:
                continue
        w.connection.close()
        wait_for(lambda: not keeper.unsettled, 5, 'confirmation')
        return len(seen), len(w.client.keys('*:j:*'))

    return act


# -- exchanges and queues ------------------------------------------------------------


@operation(steps='a queue is declared, then bound')
def declare_and_bind(w: World) -> Act:
    queue = Queue('q', Exchange('x', 'topic'), routing_key='a.*')

    def act() -> Any:
        with w.connection.channel() as channel:
            queue(channel).declare()

    return act


@operation(steps='a queue is declared, then consumed', loose=['qc:'])
def declare_one_that_expires(w: World) -> Act:
    queue = Queue('q', Exchange('x', 'direct'), routing_key='k', expires=60)

    def act() -> Any:
        with w.connection.channel() as channel:
            queue(channel).declare()

    return act


@operation()
def declare_passively(w: World) -> Act:
    send(w, 1, 2)
    Queue('q', Exchange('x', 'direct'), routing_key='k')(w.far_connection.channel()).declare()

    def act() -> Any:
        with w.connection.channel() as channel:
            channel.exchange_declare('x', passive=True)
            known = channel.queue_declare('q', passive=True).message_count
            try:
                channel.queue_declare('other', passive=True)
            except ChannelError as error:
                return known, error.code, channel.get_table('x')
            return None

    return act


@operation()
def unbind(w: World) -> Act:
    bound = Queue('q', Exchange('x', 'direct'), routing_key='k')
    bound(w.far_connection.channel()).declare()

    def act() -> Any:
        with w.connection.channel() as channel:
            channel.exchange_declare('x', 'direct')
            channel.queue_unbind('q', 'x', 'k')

    return act


@operation(again=[0], steps='a purge goes on in steps')
def purge(w: World) -> Act:
    send(w, 1, 2, 3)

    def act() -> Any:
        with w.connection.channel() as channel:
            return channel.queue_purge('q')

    return act


@operation(late=['queues', 'b:'])
def delete_a_queue(w: World) -> Act:
    send(w, 1, 2)
    Queue('q', Exchange('x', 'direct'), routing_key='k')(w.far_connection.channel()).declare()

    def act() -> Any:
        with w.connection.channel() as channel:
            Queue('q', Exchange('x', 'direct'), routing_key='k')(channel).declare()
            channel.queue_delete('q')

    return act


@operation(steps='one binding after the other')
def delete_an_exchange(w: World) -> Act:
    for name in ('q', 'r'):
        Queue(name, Exchange('x', 'direct'), routing_key='k')(w.far_connection.channel()).declare()

    def act() -> Any:
        with w.connection.channel() as channel:
            channel.exchange_declare('x', 'direct')
            channel.exchange_delete('x')

    return act


# -- publishing ----------------------------------------------------------------------


@operation(cold=True)
def publish_one(w: World) -> Act:
    return lambda: publish(w, 'a')


@operation(again=[None])
def publish_without_a_policy(w: World) -> Act:
    """Without kombu's retry the caller repeats it, with the same properties as kombu would."""

    def act() -> Any:
        with w.connection.channel() as channel:
            message = channel.prepare_message(
                '"a"', content_type='application/json', content_encoding='utf-8',
                properties=properties,
            )  # fmt: skip
            channel.basic_publish(message, '', 'q')

    properties: dict[str, Any] = {'delivery_info': {}}
    return act


@operation()
def publish_several(w: World) -> Act:
    return lambda: publish(w, 1, 2, 3, headers={'x-delay': 60_000}, priority=3)


@operation()
def publish_to_an_exchange(w: World) -> Act:
    """One message, two queues."""
    for name in ('q', 'r'):
        bound = Queue(name, Exchange('x', 'topic'), routing_key='a.#')
        bound(w.far_connection.channel()).declare()
    exchange = Exchange('x', 'topic')
    return lambda: publish(w, 'a', exchange=exchange, routing_key='a.b')


@operation()
def publish_with_features(w: World) -> Act:
    send(w, 'first', correlation_id='first', headers={'id': 'first'})
    headers = {
        'id': 'second', 'x-depends-on': ['first'], 'x-tags': ['t'], 'x-track': True,
        'x-throttles': [{'name': 'limit', 'concurrency': 1}], 'x-unique-key': 'k',
    }  # fmt: skip
    return lambda: publish(w, 'a', correlation_id='second', headers=headers)


@operation(loose=['exp'])
def publish_with_many_dependencies(w: World) -> Act:
    """It goes out in parts."""
    names = [f'n{number}' for number in range(350)]
    send(w, *names[:2], headers={'id': 'n0'})
    headers = {'id': 'last', 'x-depends-on': names}
    return lambda: publish(w, 'a', headers=headers)


@operation()
def publish_a_batch(w: World) -> Act:
    def act() -> Any:
        with w.connection.Producer() as producer, producer.batch() as batch:
            for number in range(5):
                producer.publish(number, routing_key='q')
        return batch is not None

    return act


@operation()
def publish_to_nobody(w: World) -> Act:
    """A fanout exchange to which nobody listens."""
    exchange = Exchange('f', 'fanout')
    return lambda: publish(w, 'a', exchange=exchange, routing_key='', declare=[exchange])


@operation(safe=True)
def publish_confirmed(w: World) -> Act:
    w.options |= {'confirm_fsync': True, 'confirm_timeout': 0.4}
    return lambda: publish(w, 'a')


# -- consuming -----------------------------------------------------------------------


@operation(**CONSUMES, cold=True)
def consume_and_ack(w: World) -> Act:
    send(w, 1, 2, 3)
    return Consuming(w, 3)


@operation(**CONSUMES)
def consume_without_acks(w: World) -> Act:
    send(w, 1, 2)
    return Consuming(w, 2, no_ack=True)


@operation(**CONSUMES)
def consume_and_reject(w: World) -> Act:
    send(w, 1, 2)
    return Consuming(w, 2, lambda message: message.reject())


@operation(**CONSUMES)
def consume_and_requeue(w: World) -> Act:
    send(w, 1)
    times: list[Any] = []

    def settle(message: Any) -> None:
        times.append(message.payload)
        if len(times) == 1:
            message.requeue()
        else:
            message.ack()

    return Consuming(w, 2, settle)


@operation(**CONSUMES)
def consume_and_recover(w: World) -> Act:
    send(w, 1, 2)
    first: list[Any] = []

    def settle(message: Any) -> None:
        if len(first) == 2:
            message.ack()
            return
        first.append(message)
        if len(first) == 2:
            message.channel.basic_recover(requeue=True)

    return Consuming(w, 4, settle)


@operation(**CONSUMES)
def consume_and_ack_several_at_once(w: World) -> Act:
    send(w, 1, 2)
    held: list[Any] = []

    def settle(message: Any) -> None:
        held.append(message)
        if len(held) == 2:
            message.ack(multiple=True)

    return Consuming(w, 2, settle)


@operation(**CONSUMES)
def consume_and_settle_as_failed(w: World) -> Act:
    """And wait until the server knows."""
    send(w, 1)

    def settle(message: Any) -> None:
        message.begin()
        message.settle(Verdict.FAIL, {'reason': 'error', 'group': 'g'}, wait=5.0)

    return Consuming(w, 1, settle)


@operation(**CONSUMES)
def consume_once(w: World) -> Act:
    """What is not to be delivered again is settled later."""
    send(w, 1)
    held: list[Any] = []

    def settle(message: Any) -> None:
        held.append(message)
        message.once()

    return Consuming(w, 1, settle, at_last=lambda: held[0].settle(Verdict.ACK))


@operation(**CONSUMES)
def consume_and_unlock(w: World) -> Act:
    """The unique key is free from the start of the work on."""
    send(w, 1, headers={'x-unique-key': 'k'})
    held: list[Any] = []
    gone: list[Any] = []

    def settle(message: Any) -> None:
        held.append(message)
        while not gone:
            try:
                message.unlock()
            except redis.exceptions.RedisError:
                continue
            gone.append(w.client.exists(w.keys.unique('k')) == 0)
        message.ack()

    consuming = Consuming(w, 1, settle)
    return lambda: (consuming(), gone)


@operation(**CONSUMES)
def finish(w: World) -> Act:
    """As a process does at its end, with what it has settled last."""
    send(w, 1)
    channel = w.connection.channel()
    message = channel.basic_get('q')
    assert message is not None

    def act() -> Any:
        message.ack()
        channel.keeper.finish()
        return channel.keeper.unsettled

    return act


@operation(**CONSUMES)
def consume_what_comes_later(w: World) -> Act:
    """Whoever sleeps is woken, also if his bell was lost."""
    send(w, 1)
    return Consuming(w, 2, meanwhile=lambda: send(w, 2))


@operation(**CONSUMES)
def consume_what_falls_due(w: World) -> Act:
    send(w, 1, headers={'x-delay': 300})
    return Consuming(w, 1)


@operation(**CONSUMES | {'loose': ['x:', 'qc:', 'q:']})
def consume_from_a_queue_that_expires(w: World) -> Act:
    queue = Queue('q', Exchange('x', 'direct'), routing_key='k', expires=60)
    queue(w.far_connection.channel()).declare()
    send(w, 1, 2)
    return Consuming(w, 2, queue=queue)


@operation(**CONSUMES | {'patience': 3 * AFTER_A_CLAIM})
def hold_for_longer_than_a_lease(w: World) -> Act:
    """Nobody else gets it, although calls and connections are lost."""
    lease = 3 * LEASE  # a lost renewal costs most of a lease, and a busy machine adds to it
    w.options['lease'] = lease
    send(w, 1)
    call = w.far.operations.claim('thief', 'thief', 1, ['q'])
    stolen: list[Any] = []
    held: list[Any] = []

    def settle(message: Any) -> None:
        held.append(message)

    def act() -> Any:
        channel = w.connection.channel()
        consumer = Consumer(channel, [Queue('q')], on_message=settle, accept=['json'])
        consumer.consume()
        try:
            while not held:
                try:
                    w.connection.drain_events(timeout=0.1)
                except TimeoutError:
                    continue
            end = time.monotonic() + 1.5 * lease
            while time.monotonic() < end:
                stolen.extend(w.far.run(call).deliveries)
                try:
                    w.connection.drain_events(timeout=0.2)
                except TimeoutError:
                    continue
            held[0].ack()
        finally:
            channel.close()
        return len(held), stolen

    return act


@operation(
    patience=AFTER_A_CLAIM, loose=['x:'], steps='what was claimed in vain comes back with its lease'
)
def get_one(w: World) -> Act:
    send(w, 1, 2)
    got: list[Any] = []

    def act() -> Any:
        with w.connection.channel() as channel:
            keeper = channel.keeper
            deadline = time.monotonic() + 20
            while len(got) < 2 and time.monotonic() < deadline:
                message = channel.basic_get('q')
                if message is None:
                    # A claim whose reply was lost has leased it to nobody.
                    time.sleep(0.05)
                    continue
                got.append(message.body)
                message.ack()
                wait_for(lambda: not keeper.unsettled, 5, 'confirmation')
        return sorted(got)

    return act


# -- fanout --------------------------------------------------------------------------


@operation(patience=35.0, slow=True, loose=['sub:'], late=['queues', 'q:'])
def fanout(w: World) -> Act:
    """A message to all reaches a listener once; a silent line is found after half a minute, and a
    listener who could not say that he goes is forgotten by himself."""
    queue = Queue('mine', Exchange('f', 'fanout'), auto_delete=True)
    exchange = Exchange('f', 'fanout')

    def tell() -> None:
        for number in range(2):
            publish(w, number, exchange=exchange, routing_key='')

    return Consuming(w, 2, queue=queue, meanwhile=tell)
