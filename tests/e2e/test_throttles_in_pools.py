"""Throttles on the pools that run tasks inside the worker's process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import celery_ext
from celery_ext import Throttle
from tests.support.runs import most_at_once, runs_of
from tests.support.wait import wait_for
from tests.support.workers import Fleet, task


@pytest.mark.parametrize(
    'pool',
    [pytest.param('threads')]
    + [pytest.param(pool, marks=pytest.mark.matrix) for pool in ('gevent', 'eventlet', 'solo')],
)
def test_a_limit_holds_and_others_pass(
    make_fleet: Callable[..., Fleet], tmp_path: Path, pool: str
) -> None:
    fleet = make_fleet(module='tests.support.installed', options={'lease': 10})
    ext = celery_ext.install(fleet.app())
    limit = Throttle('narrow', concurrency=1 if pool == 'solo' else 3)
    assert limit.concurrency
    for _ in range(2):
        fleet.start(pool=pool, concurrency=4)
    door = tmp_path / 'door'
    narrow = [
        task(ext.app, 'wait_for_file', str(door), n).apply_async(throttles=limit) for n in range(30)
    ]
    fleet.ledger.wait(limit.concurrency, 'started')
    free = [task(ext.app, 'run', n).apply_async() for n in range(20)]
    for result in free:
        result.get(timeout=20)
    assert len(fleet.ledger.lines('started')) == limit.concurrency, 'others have passed the rest'
    door.touch()
    for result in narrow:
        result.get(timeout=30)
    runs = runs_of(fleet.ledger)
    assert len(runs) == 30
    assert most_at_once(runs) == limit.concurrency
    wait_for(lambda: not list(ext.throttles), 10, 'end of the throttle')
