"""The store behind a connection, as programs use it: kombu publishes, the store looks and acts."""

from __future__ import annotations

import pytest
from kombu import Connection, Queue

from kombu_reliable import InvalidURL, open_job, open_store
from kombu_reliable.envelope import CorruptEnvelope
from tests.support.plain import Connect, Receiver, drain, keys_of, raw, send, settled
from tests.support.wait import wait_for

TASK = {'task': 'add', 'id': '3f2b8c1e-5a4d-4e6f-9b7a-0c1d2e3f4a5b'}


def test_the_store_of_a_connection_outlives_it(connection: Connection, connect: Connect) -> None:
    other = connect()
    store = open_store(other)
    other.release()
    send(connection, 1, 2)
    assert store.jobs.counts('q').ready == 2


def test_other_brokers_have_no_store() -> None:
    with Connection('memory://') as other, pytest.raises(InvalidURL, match='memory'):
        open_store(other)


def test_the_message_of_a_job(connection: Connection) -> None:
    send(connection, {'x': 1}, headers=TASK, priority=3)
    job = open_store(connection).jobs.get(TASK['id'])
    assert job is not None
    message = open_job(job)
    assert message['headers']['task'] == 'add'
    assert (message['content-type'], message['body']) == ('application/json', b'{"x": 1}')
    assert message['properties']['priority'] == job.priority == 3


def test_a_message_that_is_none_of_ours(connection: Connection) -> None:
    store = open_store(connection)
    send(connection, 1, headers=TASK)
    (job,) = store.jobs.in_state('q', 'ready')
    key = keys_of(connection).job(job.key)
    raw(connection).setrange(key, 22, 'nothing of ours')
    (job,) = store.jobs.in_state('q', 'ready')
    with pytest.raises(CorruptEnvelope):
        open_job(job)


def test_a_queue_that_nobody_declared_is_listed(connection: Connection, connect: Connect) -> None:
    jobs = open_store(connection).jobs
    send(connection, 1, queue='bare')
    with connection.Producer() as producer, producer.batch():
        producer.publish(1, routing_key='batched')
    assert jobs.queues() == ['bare', 'batched']
    other = connect()
    receiver = Receiver(other, 'bare')  # which declares it
    drain(other)
    receiver.messages.pop().ack()
    settled(other)
    assert jobs.queues() == ['bare', 'batched']
    jobs.purge('batched')
    assert jobs.queues() == ['bare']


def test_only_queues_that_nobody_declared_cost_a_notice(connection: Connection) -> None:
    with connection.Producer() as producer:
        producer.publish(1, routing_key='declared', declare=[Queue('declared')])
        producer.publish(1, routing_key='brief', declare=[Queue('brief', expires=60)])
    assert not raw(connection).exists(keys_of(connection).noticed)
    assert open_store(connection).jobs.queues() == ['brief', 'declared']


def test_a_pause_holds_for_every_consumer(connection: Connection, connect: Connect) -> None:
    jobs = open_store(connection).jobs
    others = [connect(), connect()]
    receivers = [Receiver(other) for other in others]
    for other in others:
        drain(other)
    jobs.pause('q')
    send(connection, 'now')
    send(connection, 'later', headers={'x-delay': 30})
    for other in others:
        drain(other, 0.3)
    assert connection.default_channel.basic_get('q') is None
    assert not any(receiver.messages for receiver in receivers)
    jobs.resume('q')

    def arrived() -> bool:
        drain(others[0], 0.02)
        drain(others[1], 0.02)
        return sum(len(receiver.messages) for receiver in receivers) == 2

    wait_for(arrived, 10, 'messages of the resumed queue')


def test_who_holds_a_canceled_job_is_told(connection: Connection) -> None:
    store = open_store(connection)
    receiver = Receiver(connection)
    send(connection, 1, headers=TASK)
    drain(connection)
    (message,) = receiver.messages
    assert store.jobs.cancel(TASK['id']) == 'requested'
    wait_for(lambda: message.lost, 5, 'word that the message was taken')
    message.ack()
    assert settled(connection).leased == 0
    assert store.jobs.get(TASK['id']) is None
    assert raw(connection).hget(keys_of(connection).meta, 'fenced') == b'1'
