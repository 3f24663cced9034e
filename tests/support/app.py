"""The Celery app that test workers run.

Its surroundings come from the environment, see :mod:`tests.support.workers`.  It imports
nothing of this package: that a broker URL is enough is part of what is tested.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from typing import Any

from celery import Celery, Task, chain, current_task, group, signals
from celery.exceptions import Ignore, Reject
from celery.worker.request import Request

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
    append(
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


def append(entry: dict[str, Any]) -> None:
    line = json.dumps(entry)
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
def burn(self: Task, seconds: float, value: Any = None) -> Any:
    """Computes and lets no other greenlet run meanwhile."""
    note(self, 'started', value=value)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    note(self, 'ended', value=value)
    return value


@app.task(bind=True)
def converse(self: Task, value: Any) -> Any:
    """Waits for a message that it has sent itself, as a task of a program on kombu may."""
    note(self, 'ran', value=value)
    with app.connection_for_write() as connection:
        queue = connection.SimpleQueue(f'mail-{self.request.id}')
        queue.put(value)
        message = queue.get(timeout=10)
        message.ack()
        queue.close()
        queue.queue.delete()
        return message.payload


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


@app.task(bind=True)
def fail_unless(self: Task, path: str) -> None:
    """Fails until the test makes the file."""
    note(self, 'ran')
    if not os.path.exists(path):
        raise ValueError(f'no {path}')


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


class Noting(Request):
    """A Request class of a user's own, which notes how its tasks end."""

    def on_success(self, failed__retval__runtime: Any, **kwargs: Any) -> Any:
        append({'event': 'request', 'id': self.id, 'value': 'success'})
        return super().on_success(failed__retval__runtime, **kwargs)

    def on_failure(self, exc_info: Any, *args: Any, **kwargs: Any) -> Any:
        append({'event': 'request', 'id': self.id, 'value': 'failure'})
        return super().on_failure(exc_info, *args, **kwargs)


class Customized(Task):
    Request = Noting

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        note(self, 'called')
        return super().__call__(*args, **kwargs)

    def on_failure(self, *args: Any) -> None:
        note(self, 'failed')


@app.task(bind=True, base=Customized)
def customized(self: Task, fails: bool) -> str:
    if fails:
        raise ValueError('as told')
    return 'fine'


@app.task(bind=True)
def ignore(self: Task) -> None:
    note(self, 'ran')
    raise Ignore('on purpose')


@app.task(bind=True)
def reject_first(self: Task) -> int:
    """Asks for another delivery, once."""
    note(self, 'ran')
    deliveries = int(self.request.get('x-delivery-count'))
    if deliveries == 1:
        raise Reject('on purpose', requeue=True)
    return deliveries


@app.task(bind=True)
def die_first(self: Task) -> int:
    """Takes its pool process down, once."""
    note(self, 'ran')
    deliveries = int(self.request.get('x-delivery-count'))
    if deliveries == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return deliveries


@app.task(bind=True)
def last_words(self: Task) -> None:
    """Notes when its process is told to end."""
    try:
        note(self, 'started')
        time.sleep(60)
    finally:
        note(self, 'killed')


@app.task(bind=True)
def replaced_after(self: Task, path: str) -> Any:
    """The first delivery waits for a file and is replaced then; any other ends at once."""
    note(self, 'started')
    if self.request.get('x-delivery-count') == 1 and not self.request.retries:
        while not os.path.exists(path):
            time.sleep(0.01)
        note(self, 'replaces')
        return self.replace(run.s('replacement'))
    return 'done'


@app.task(bind=True)
def die(self: Task, how: str = 'exit at once') -> None:
    """Takes its pool process down, in one of the ways that tasks find."""
    note(self, 'ran', value=how)
    if how == 'exit at once':
        os._exit(7)
    elif how == 'SystemExit':
        raise SystemExit(3)
    elif how == 'MemoryError':
        raise MemoryError('on purpose')
    elif how == 'segfault':
        ctypes.string_at(0)
    elif how == 'killed':
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        raise ValueError(how)


@app.task(bind=True)
def perish_once(self: Task) -> int:
    """Ends as a greenlet does that somebody kills."""
    note(self, 'ran')
    if self.request.get('x-delivery-count') == 1:
        from greenlet import GreenletExit

        raise GreenletExit
    return int(self.request.get('x-delivery-count'))


@app.task(bind=True)
def leave(self: Task) -> None:
    note(self, 'ran')
    raise SystemExit(3)


@app.task(bind=True, rate_limit='10/s')
def limited(self: Task, value: Any) -> Any:
    note(self, 'ran', value=value)
    return value


@app.task(bind=True)
def retry_once(self: Task, countdown: float = 0.0) -> int:
    note(self, 'ran')
    if not self.request.retries:
        raise self.retry(countdown=countdown)
    return self.request.retries


@app.task(bind=True, autoretry_for=(ValueError,), retry_backoff=False, default_retry_delay=0)
def autoretried(self: Task) -> int:
    note(self, 'ran')
    if not self.request.retries:
        raise ValueError('once')
    return self.request.retries


@app.task(bind=True)
def replaced_by_task(self: Task, value: Any) -> Any:
    note(self, 'ran')
    return self.replace(run.s(value))


@app.task(bind=True)
def retry_after(self: Task, path: str) -> str:
    """The first delivery waits for a file and retries then; any other ends at once."""
    note(self, 'started')
    if self.request.get('x-delivery-count') == 1 and not self.request.retries:
        while not os.path.exists(path):
            time.sleep(0.01)
        note(self, 'retries')
        raise self.retry(countdown=0)
    return 'done'


def _die_if(moment: str) -> None:
    """Kills the whole worker at a moment that a test has chosen, once."""
    try:
        os.unlink(f'{os.environ["KR_LEDGER"]}.die-{moment}')
    except FileNotFoundError:
        return
    os.killpg(0, signal.SIGKILL)


def _is_next_run(headers: Any) -> bool:
    """A task publishes under its own id: a retry, a replacement."""
    return bool(headers and current_task and headers.get('id') == current_task.request.id)


@signals.before_task_publish.connect
def _before_publish(headers: Any = None, **_: Any) -> None:
    if _is_next_run(headers) and os.path.exists(f'{os.environ["KR_LEDGER"]}.die-after-next-run'):
        # Or the worker's main process might claim the next run in its last millisecond.
        os.kill(os.getppid(), signal.SIGSTOP)


@signals.after_task_publish.connect
def _after_publish(headers: Any = None, **_: Any) -> None:
    if _is_next_run(headers):
        _die_if('after-next-run')


@signals.task_postrun.connect
def _after_run(task: Any = None, **_: Any) -> None:
    """The result is stored, the worker has not heard of the end."""
    _die_if(f'after-{task.name.rpartition(".")[2]}')


@app.task(bind=True)
def reject_until(self: Task, path: str, value: Any = None) -> Any:
    """Fails for good until the test makes a file."""
    note(self, 'ran', value=value)
    if not os.path.exists(path):
        raise Reject('not yet', requeue=False)
    return value


@app.task
def fail_after(path: str) -> None:
    """Fails when the test has made a file."""
    while not os.path.exists(path):
        time.sleep(0.01)
    raise ValueError('as told')
