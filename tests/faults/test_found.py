"""What the faults have found, each at the very call: the rest of the table is sampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery._state import task_join_will_block
from celery.signals import before_task_publish
from kombu import Queue

from kombu_reliable.transport.notices import Notices
from tests.faults.calls import same_kind
from tests.faults.of_ext import Hearing
from tests.faults.of_schedules import with_one
from tests.faults.of_transport import send
from tests.faults.plan import know_scripts
from tests.faults.world import QUEUE, TASK, World, open_world
from tests.support.proxy import Kind
from tests.support.servers import Server
from tests.support.wait import wait_for


@pytest.fixture
def world(server: Server, database: int) -> Iterator[World]:
    know_scripts(server)
    with open_world(server, database, timeout=10.0) as world:
        yield world


def test_workers_hear_of_a_cancel_whose_answer_was_lost(world: World) -> None:
    heard = Hearing(world)
    world.have('a')
    world.lease()
    assert world.ext
    fault = world.proxy.fault(Kind.CUT_REPLY, 1, same_kind('cancel'))
    assert world.ext.jobs.cancel('a', terminate=True) == 'requested'
    assert fault.fired is not None
    assert heard.methods()


def test_workers_hear_of_a_cancel_by_tag_whose_answer_was_lost(world: World) -> None:
    heard = Hearing(world)
    world.have('a', tags=['x'])
    world.lease()
    assert world.ext
    fault = world.proxy.fault(Kind.CUT_REPLY, 1, same_kind('cancel'))
    assert world.ext.tags['x'].cancel(terminate=True).done == 1
    assert fault.fired is not None
    assert heard.methods()


def test_workers_hear_of_a_cancel_although_the_word_was_lost(world: World) -> None:
    heard = Hearing(world)
    world.have('a')
    world.lease()
    assert world.ext
    fault = world.proxy.fault(Kind.CUT_REQUEST, 1, same_kind('fanout'))
    assert world.ext.jobs.cancel('a', terminate=True) == 'requested'
    assert fault.fired is not None
    assert heard.methods()


@pytest.mark.parametrize('kind', [Kind.CUT_REPLY, Kind.CUT_REQUEST])
def test_a_run_that_was_asked_for_is_one_although_the_answer_was_lost(
    world: World, kind: Kind
) -> None:
    schedule = with_one(world)
    fault = world.proxy.fault(kind, 1, same_kind('schedule_fire'))
    result = schedule.run_now()
    assert fault.fired is not None
    assert [job.id for job in world.far.jobs.in_state(QUEUE, 'ready')] == [result.id]
    assert [run.id for run in schedule.history() if run.event == 'asked'] == [result.id]


def test_a_run_that_was_asked_for_is_no_error_because_of_what_follows(world: World) -> None:
    """Or its caller would ask once more."""
    schedule = with_one(world)
    # The first reads the schedule as it is, the second what has become of it.
    fault = world.proxy.fault(Kind.CUT_REPLY, 2, same_kind('HGETALL'))
    result = schedule.run_now()
    assert fault.fired is not None
    assert [job.id for job in world.far.jobs.in_state(QUEUE, 'ready')] == [result.id]


def test_a_queue_is_told_again_if_it_could_not_be_told(world: World) -> None:
    """Or nobody would list it for ten minutes."""
    notices = Notices(lambda: world.store, patience=0.0)
    faults = [world.proxy.fault(Kind.CUT_REQUEST, n, same_kind('notice')) for n in (1, 2)]
    notices.add('q')
    assert all(fault.fired for fault in faults), 'it was tried twice'
    assert world.client.zscore(world.keys.noticed, 'q') is None
    notices.add('q')
    assert world.client.zscore(world.keys.noticed, 'q') is not None


def test_a_declaration_that_fails_is_repeated_with_the_publish(world: World) -> None:
    """kombu asks the old channel whether it still lives; it has to say no."""
    world.connection.connect()
    faults = [world.proxy.fault(Kind.CUT_REQUEST, n, same_kind('declare')) for n in (1, 2)]
    with world.connection.Producer() as producer:
        producer.publish(
            1, routing_key='q', declare=[Queue('q')], retry=True,
            retry_policy={'max_retries': 3, 'interval_start': 0.0},
        )  # fmt: skip
    assert all(fault.fired for fault in faults), 'the transport repeats it once, then kombu'
    assert world.far.counts('q').ready == 1


def test_nobody_is_told_of_a_lost_lease_because_an_answer_was_lost(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """What was given back, and somebody else has by then, is given back once more."""
    world.options['lease'] = 30
    send(world, 1)
    channel = world.connection.channel()
    message = channel.basic_get('q')
    heard = world.proxy.fault(Kind.CUT_REPLY, 1, same_kind('settle'))
    again = world.proxy.fault(Kind.LATE_REQUEST, 2, same_kind('settle'), seconds=8)
    message.requeue()
    claim = world.far.operations.claim('other', 'other', 1, ['q'])
    wait_for(lambda: world.far.run(claim).deliveries, 5, 'what was given back')
    assert heard.fired is not None and not again.over.is_set()
    wait_for(lambda: not channel.keeper.unsettled, 30, 'the second answer')
    assert again.fired is not None
    assert 'its lease was lost' not in caplog.text
    assert world.far.counts('q').leased == 1


def test_a_run_that_was_asked_for_leaves_other_threads_alone(world: World) -> None:
    """Whether results may be waited for is one switch for the whole process."""
    schedule = with_one(world)
    switch: list[bool] = []

    def note(**_: Any) -> None:
        switch.append(task_join_will_block())

    before_task_publish.connect(note)
    try:
        result = schedule.run_now()
    finally:
        before_task_publish.disconnect(note)
    assert switch == [False]
    headers = world.far_ext.jobs[result.id].headers
    assert headers['ignore_result'] == world.ext.app.tasks[TASK].ignore_result
    assert not world.client.pubsub_channels('*'), 'nobody here waits for the result'
