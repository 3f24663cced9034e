"""How a kombu consumer may end a message beyond ack and reject."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from kombu import Connection

from kombu_reliable import Verdict
from kombu_reliable.types import Delivery, QueueCounts
from tests.support.plain import LEASE, Connect, Receiver, drain, keys_of, raw, send, settled
from tests.support.wait import wait_for

NOTHING = QueueCounts(0, 0, 0, 0)


def receive(connection: Connection, body: Any = 1) -> tuple[Receiver, Any]:
    send(connection, body)
    receiver = Receiver(connection)
    drain(connection)
    return receiver, receiver.messages.pop()


def extra(connection: Connection) -> list[dict[bytes, bytes]]:
    client: Any = raw(connection)
    return [client.hgetall(key) for key in client.keys(keys_of(connection).extra('*'))]


def test_a_failure_says_why(connection: Connection) -> None:
    _, message = receive(connection)
    message.settle(Verdict.FAIL, {'reason': 'failed', 'type': 'ValueError', 'group': 'pay'})
    assert message.acknowledged
    assert settled(connection) == QueueCounts(0, 0, 0, 1)
    (found,) = extra(connection)
    assert (found[b'reason'], found[b'group']) == (b'failed', b'pay')
    assert json.loads(found[b'failure'])['type'] == 'ValueError'


@pytest.mark.parametrize('word', ['ack', 'reject'])
def test_the_first_verdict_counts_and_the_second_is_no_error(
    connection: Connection, word: str
) -> None:
    _, message = receive(connection)
    message.settle(Verdict.CANCEL)
    getattr(message, word)()
    message.settle(Verdict.REQUEUE)
    assert settled(connection) == NOTHING


def test_a_verdict_may_be_waited_for(connect: Connect) -> None:
    # Its line to the server gives up after a third of a lease.
    connection = connect(lease=30)
    _, message = receive(connection)
    message.settle(Verdict.CANCEL, wait=10)
    keys = keys_of(connection)
    assert not raw(connection).exists(keys.owners, keys.leased('q'))


def test_a_signal_handler_may_claim_while_its_thread_does(connection: Connection) -> None:
    """As in a cold shutdown, which Celery carries out in the handler."""
    receive(connection)
    keeper = connection.transport.endpoint.keeper
    first, second = (
        Delivery(queue='q', id=token, token=token, deliveries=1, envelope=b'')
        for token in ('first', 'second')
    )

    class Interrupted:
        def is_alive(self) -> bool:
            keeper._thread = real
            keeper.hold([second])
            return True

    real, keeper._thread = keeper._thread, Interrupted()
    thread = threading.Thread(target=keeper.hold, args=([first],), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    for token in ('first', 'second'):
        assert keeper.holds(token)
        keeper.settle(token, Verdict.ACK)


def test_nobody_waits_for_a_server_that_is_away(connect: Connect) -> None:
    connection = connect()
    _, message = receive(connection)
    keeper = message.channel.keeper
    before = time.monotonic()
    keeper._open_store = lambda: 1 / 0
    message.settle(Verdict.CANCEL, wait=60)
    assert time.monotonic() - before < 30


def test_once_frees_the_place_and_keeps_the_lease(connection: Connection) -> None:
    send(connection, 'a', 'b')
    receiver = Receiver(connection, prefetch=1)
    drain(connection)
    (first,) = receiver.messages
    first.once()
    drain(connection)
    assert receiver.bodies == ['a', 'b']
    keys = keys_of(connection)

    def marked() -> list[Any]:
        return [found for found in extra(connection) if b'once' in found]

    wait_for(lambda: len(marked()) == 1, 10, 'the mark')
    # It is renewed for as long as somebody holds it, and settled as any.
    began = time.monotonic()
    wait_for(lambda: time.monotonic() - began > 1.5 * LEASE, 20, 'a lease has passed')
    assert raw(connection).hlen(keys.owners) == 2
    assert not first.lost
    for message in receiver.messages:
        message.ack()
    assert settled(connection) == NOTHING


def test_once_and_the_end_at_once_cost_one_settlement(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, message = receive(connection)
    # Its thread takes what has waited for some milliseconds.
    monkeypatch.setattr(message.channel.keeper, 'flush', lambda waited=0.0: None)
    message.once()
    message.ack()
    sent = [posted.settlement.verdict for posted in message.channel.keeper.collect()]
    assert sent == [Verdict.ACK]


def test_a_message_that_another_has_knows_it(connect: Connect) -> None:
    connection = connect()
    _, message = receive(connection)
    assert not message.lost
    client: Any = raw(connection)
    owners = keys_of(connection).owners
    (job,) = client.hkeys(owners)
    client.hset(owners, job, 'other;0;somebody')
    message.channel.keeper.renew()
    assert message.lost
