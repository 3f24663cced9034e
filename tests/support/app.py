"""The Celery app that test workers run.

Its surroundings come from the environment, see :mod:`tests.support.workers`.  It imports
nothing of this package: that a broker URL is enough is part of what is tested.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery, Task, chain, group
from celery.exceptions import Reject

app = Celery('testapp', broker=os.environ['KR_BROKER'], backend=os.environ['KR_BACKEND'])
app.conf.update(
    {
        'task_acks_late': True,
        'task_reject_on_worker_lost': True,
        'broker_connection_retry_on_startup': True,
        'broker_transport_options': json.loads(os.environ.get('KR_OPTIONS', '{}')),
        **json.loads(os.environ.get('KR_CONFIG', '{}')),
    }
)


def note(task: Task, event: str, **fields: Any) -> None:
    """One line in the ledger, written in one piece whoever else writes."""
    request = task.request
    line = json.dumps(
        {
            'event': event,
            'id': request.id,
            'task': task.name.rpartition('.')[2],
            'pid': os.getpid(),
            'at': time.time(),
            'retries': request.retries,
            'redelivered': (request.delivery_info or {}).get('redelivered'),
            'deliveries': request.get('x-delivery-count'),
            **fields,
        }
    )
    fd = os.open(os.environ['KR_LEDGER'], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, line.encode() + b'\n')
    finally:
        os.close(fd)


@app.task(bind=True)
def add(self: Task, x: Any, y: Any) -> Any:
    note(self, 'ran', value=[x, y])
    return x + y


@app.task
def total(numbers: list[Any]) -> Any:
    return sum(numbers)


@app.task(bind=True)
def run(self: Task, value: Any = None) -> Any:
    note(self, 'ran', value=value)
    return value


@app.task
def measure(text: str) -> int:
    return len(text)


@app.task(bind=True)
def sleep(self: Task, seconds: float, value: Any = None) -> Any:
    note(self, 'started', value=value)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.05))
    note(self, 'ended', value=value)
    return value


@app.task(bind=True)
def wait_for_file(self: Task, path: str, value: Any = None) -> Any:
    """Runs until the test makes the file."""
    note(self, 'started', value=value)
    while not os.path.exists(path):
        time.sleep(0.01)
    note(self, 'ended', value=value)
    return value


@app.task(bind=True, max_retries=3)
def flaky(self: Task, failures: int, countdown: float = 0.1) -> int:
    note(self, 'ran')
    if self.request.retries < failures:
        raise self.retry(countdown=countdown)
    return self.request.retries


@app.task
def fail(message: str) -> None:
    raise ValueError(message)


@app.task
def on_error(request: Any, exc: Any, traceback: Any) -> None:
    note(on_error, 'ran', value=str(exc))


@app.task(bind=True)
def replaced(self: Task, x: int) -> Any:
    return self.replace(chain(add.s(x, 1), add.s(10)))


@app.task(bind=True)
def replaced_by_group(self: Task, n: int) -> Any:
    return self.replace(group(add.s(i, i) for i in range(n)))


@app.task(bind=True)
def reject(self: Task, requeue: bool) -> None:
    note(self, 'ran')
    raise Reject('on purpose', requeue=requeue)


@app.task(bind=True)
def die(self: Task) -> None:
    """Takes its pool process down."""
    note(self, 'ran')
    os._exit(7)


@app.task(bind=True, rate_limit='10/s')
def limited(self: Task, value: Any) -> Any:
    note(self, 'ran', value=value)
    return value
