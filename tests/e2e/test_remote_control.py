"""Remote control: what a worker obeys after it was away, and what control leaves behind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
import redis

from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet, task

REPLAY = 2.0


@pytest.fixture
def fleet(make_fleet: Callable[..., Fleet]) -> Fleet:
    return make_fleet(options={'fanout_replay': REPLAY})


def ping(fleet: Fleet, timeout: float = 2.0) -> bool:
    return bool(fleet.app().control.inspect(timeout=timeout).ping())


def test_an_old_shutdown_is_not_obeyed_and_a_fresh_one_is(fleet: Fleet) -> None:
    worker = fleet.start()
    app = fleet.app()
    worker.pause()
    app.control.broadcast('shutdown')
    time.sleep(REPLAY + 0.5)
    worker.resume()
    worker.wait_for_log('(fanout_replay): 1')
    task(app, 'run', 'after').delay()
    fleet.ledger.wait(1, 'ran', value='after')
    assert worker.process.poll() is None

    def obeyed() -> bool:
        app.control.broadcast('shutdown')
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1)
        return worker.process.poll() == 0

    wait_for(obeyed, 20, 'its end')


def test_a_worker_that_was_frozen_for_a_moment_obeys(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet()
    worker = fleet.start()
    worker.pause()
    fleet.app().control.broadcast('shutdown')
    worker.resume()
    assert worker.wait() == 0


#: A client that is killed while it waits for an answer.
KILLED = """
import os, signal
from tests.support.app import app
mailbox = app.control.mailbox(app.connection())
mailbox.reply_queue_expires = 5.0
mailbox._publish('ping', {}, reply_ticket='t', timeout=1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_control_clients_leave_no_bindings_and_no_replies(fleet: Fleet, url: str) -> None:
    """Whether they end in good order or are killed in the middle."""
    fleet.start('--without-gossip', '--without-mingle')
    wait_for(lambda: ping(fleet), 20, 'an answer')
    client = redis.Redis.from_url(url.removeprefix('reliable+'))
    killed = subprocess.run(
        [sys.executable, '-c', KILLED], cwd=ROOT, env=fleet.environment(), timeout=60
    )
    assert killed.returncode == -signal.SIGKILL
    wait_for(lambda: client.keys('*:r:*reply*'), 10, 'the reply that nobody reads')

    def left() -> list[bytes]:
        families = ('b:reply*', 'r:*reply*', 'd:*reply*', 'q:*', 'qb:*', 'qc:*', 'w:*reply*')
        return [key for family in families for key in client.keys(f'*:{family}')]

    wait_for(lambda: not left(), 60, 'end of the reply queues')
