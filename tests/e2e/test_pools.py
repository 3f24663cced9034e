"""Leases, settlements and shutdown in every pool that Celery has."""

from __future__ import annotations

import pytest

from tests.support.workers import Fleet, task

LEASE = 2.0

#: Pools in which a computing task stops everything else of its process, but for real threads.
STANDING_STILL = ('gevent', 'eventlet', 'solo')


@pytest.mark.parametrize('pool', STANDING_STILL)
def test_a_task_that_computes_for_three_leases_runs_once(workers: Fleet, pool: str) -> None:
    app = workers.app()
    workers.start(pool=pool, concurrency=2)
    result = task(app, 'burn', 3 * LEASE, value='x').apply_async()
    workers.ledger.wait(1, 'started')
    workers.start(pool=pool, concurrency=2)
    assert result.get(30) == 'x'
    assert len(workers.ledger.lines('started')) == len(workers.ledger.lines('ended')) == 1
