"""The Celery app of the chaos: tasks that write down when they run.

Its surroundings come from the environment, see :mod:`.crew`.  With kombu's own redis transport
the extension is left out, and with it the kinds of tasks that only it can express.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.chaos import clock

clock.unsettle(os.environ.get('CHAOS_CLOCK', ''))

from celery import Celery, Task, signals  # noqa: E402
from celery.exceptions import Reject, Retry  # noqa: E402

from benchmarks.chaos.ledger import Pen  # noqa: E402

#: Failures on purpose.
PURPOSE = 'on purpose'

app = Celery('chaos', broker=os.environ['CHAOS_BROKER'])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get('CHAOS_OPTIONS', '{}')),
    control_queue_expires=10.0,
    event_queue_expires=10.0,
)

if os.environ.get('CHAOS_EXTENSION'):
    import celery_ext

    celery_ext.install(app)

WORKER = os.environ.get('CHAOS_WORKER', '')
pen = Pen(Path(os.environ['CHAOS_LEDGER']) / 'ran')


@signals.after_setup_logger.connect
def _say_less(**_: Any) -> None:
    """Everything but what befalls single tasks."""
    for name in ('celery.worker.strategy', 'celery.app.trace'):
        logging.getLogger(name).setLevel(logging.WARNING)


@signals.worker_ready.connect
def _ready(**_: Any) -> None:
    pen.write('ready', worker=WORKER)


def note(task: Task, event: str, **fields: Any) -> None:
    request = task.request
    pen.write(
        event, id=request.id, kind=task.name.rpartition('.')[2], attempt=request.retries,
        delivery=request.get('x-delivery-count') or 0, worker=WORKER, pid=os.getpid(),
        at=time.monotonic(), **fields,
    )  # fmt: skip


@contextmanager
def noting(task: Task) -> Iterator[None]:
    note(task, 'start')
    how = 'failed'
    try:
        yield
        how = 'done'
    except Retry:
        how = 'retry'
        raise
    except Reject:  # the retry could not be published
        how = 'rejected'
        raise
    finally:
        note(task, 'end', how=how)


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


@app.task(name='chaos.short', bind=True)
def short(self: Task, seconds: float = 0.0) -> None:
    with noting(self):
        work(seconds)


@app.task(name='chaos.long', bind=True)
def long(self: Task, seconds: float) -> None:
    """Longer than a lease."""
    with noting(self):
        work(seconds)


@app.task(name='chaos.retrying', bind=True, max_retries=None)
def retrying(self: Task, times: int, countdown: float) -> None:
    with noting(self):
        if self.request.retries < times:
            raise self.retry(countdown=countdown)


@app.task(name='chaos.delayed', bind=True)
def delayed(self: Task) -> None:
    with noting(self):
        pass


@app.task(name='chaos.dependent', bind=True)
def dependent(self: Task, seconds: float = 0.0) -> None:
    """Has to wait for others."""
    with noting(self):
        work(seconds)


@app.task(name='chaos.link', bind=True)
def link(self: Task) -> None:
    """A member of one of Celery's own chains: the one before it publishes it."""
    with noting(self):
        pass


@app.task(name='chaos.limited', bind=True)
def limited(self: Task, seconds: float) -> None:
    """Under a throttle."""
    with noting(self):
        work(seconds)


@app.task(name='chaos.single', bind=True)
def single(self: Task, seconds: float) -> None:
    """Has a unique key."""
    with noting(self):
        work(seconds)


@app.task(name='chaos.failing', bind=True)
def failing(self: Task) -> None:
    with noting(self):
        raise ValueError(PURPOSE)


@app.task(name='chaos.blocked', bind=True)
def blocked(self: Task) -> None:
    """Depends on one that fails, and must never run."""
    with noting(self):
        pass


@app.task(name='chaos.poison', bind=True)
def poison(self: Task) -> None:
    """Kills its process each time."""
    note(self, 'start')
    note(self, 'dies')
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
