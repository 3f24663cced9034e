"""A server at its maxmemory refuses what is published and goes on with all that empties it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kombu_reliable import ServerFull
from tests.support.faults import assert_each_ran_once, counts, wait_for_counts
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task

LEASE = 5
TASKS = 500


@pytest.fixture
def own_server(server: Server) -> Iterator[Server]:
    with Server(server.binary, maxmemory_policy='noeviction') as own:
        yield own


def limit_memory(server: Server, limit: int) -> None:
    with server.client() as client:
        client.config_set('maxmemory', limit)


def test_a_full_server_is_emptied_by_its_workers(
    make_fleet: Callable[..., Fleet], own_server: Server, tmp_path: Path
) -> None:
    fleet = make_fleet(
        broker=f'reliable+{own_server.url()}',
        options={'lease': LEASE},
        config={'task_ignore_result': True},
    )
    app = fleet.app()
    door = tmp_path / 'door'
    before = fleet.start(concurrency=1)
    task(app, 'wait_for_file', str(door), value='long').apply_async()
    fleet.ledger.wait(1, 'started')
    for number in range(TASKS):
        task(app, 'run', value=number).apply_async()
    limit_memory(own_server, 1)
    refused_at = time.monotonic()
    with pytest.raises(ServerFull, match='maxmemory'):
        task(app, 'run', value='refused').delay()
    assert time.monotonic() - refused_at < 10, 'nothing is tried again that cannot succeed'
    # A worker that lives goes on, and one can be started, or nobody would ever empty it.
    after = fleet.start('--without-mingle', concurrency=1)
    fleet.ledger.wait(TASKS - 3, 'ran', timeout=60)
    until = time.monotonic() + 2 * LEASE
    wait_for(lambda: time.monotonic() > until, 30)
    assert counts(fleet, own_server).leased >= 1, 'the long one was renewed'
    door.touch()
    wait_for_counts(fleet, own_server)
    assert_each_ran_once(fleet, list(range(TASKS)), 'ran')
    assert_each_ran_once(fleet, ['long'])
    limit_memory(own_server, 0)
    task(app, 'run', value='welcome').delay()
    fleet.ledger.wait(1, 'ran', value='welcome')
    for worker in (before, after):
        assert 'Traceback' not in worker.text(), worker.text()[-3000:]
        assert worker.text().count(' ready.') == 1
    fleet.close()
