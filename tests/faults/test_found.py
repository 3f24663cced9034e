"""What the faults have found, each at the very call: the rest of the table is sampled."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kombu_reliable.transport.notices import Notices
from tests.faults.calls import same_kind
from tests.faults.of_ext import Hearing
from tests.faults.of_schedules import with_one
from tests.faults.world import QUEUE, World, open_world
from tests.support.proxy import Kind
from tests.support.servers import Server


@pytest.fixture
def world(server: Server, database: int) -> Iterator[World]:
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
