"""Celery over leased delivery, on a server that this script brings along.

    python examples/quickstart.py

It starts an embedded Valkey server and a Celery worker in a process of its own, runs tasks,
kills the worker in the middle of one, and shows that another worker finishes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from celery import Celery, chord

HERE = Path(__file__).parent
DATA = os.environ.get('QUICKSTART_DATA') or tempfile.mkdtemp(prefix='quickstart-')
URL = f'reliable+embedded://{DATA}'

# This is all that an app needs: the broker URL, and late acknowledgement, because only a task
# that is acknowledged at its end is protected once it has started.
app = Celery('quickstart', broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    broker_transport_options={'lease': 2},  # seconds; the default of 30 would make us wait
    broker_connection_retry_on_startup=True,
)


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def work(seconds: float) -> str:
    time.sleep(seconds)
    return f'worked {seconds:g} s in process {os.getpid()}'


def start_worker(name: str) -> subprocess.Popen[bytes]:
    """Starts ``celery worker`` and waits until it answers."""
    log = Path(DATA) / f'{name}.log'
    worker = subprocess.Popen(
        [
            sys.executable, '-m', 'celery', '-A', 'quickstart', 'worker',
            '--concurrency', '2', '--hostname', f'{name}@quickstart', '--loglevel', 'INFO',
            '--without-mingle',
        ],
        cwd=HERE, env={**os.environ, 'QUICKSTART_DATA': DATA}, start_new_session=True,
        stdout=log.open('wb'), stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while b' ready.' not in log.read_bytes():
        if worker.poll() is not None or time.monotonic() > deadline:
            sys.exit(f'the worker did not start, see {log}:\n{log.read_text()}')
        time.sleep(0.05)
    print(f'   worker {name!r} is process {worker.pid}, its log is {log}')
    return worker


def main() -> None:
    print(f'1. An embedded server keeps its data in {DATA}')
    first = start_worker('first')
    workers = [first]
    try:
        print('2. Tasks run there and answer here')
        print('   add(2, 3) =', add.delay(2, 3).get(timeout=20))
        print(
            '   chord: sum of i + i for i < 10 =',
            chord([add.s(i, i) for i in range(10)])(total.s()).get(timeout=20),
        )

        print('3. A delay lives in the server and ends on time')
        asked = time.time()
        add.apply_async((1, 1), countdown=1).get(timeout=20)
        print(f'   countdown=1 answered after {time.time() - asked:.3f} s')

        print('4. A worker is killed in the middle of a task')
        result = work.delay(3)
        time.sleep(1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        print('   kill -9 of the first worker; a second one starts')
        workers.append(start_worker('second'))
        print('  ', result.get(timeout=30))
        print('   Its lease had ended, so the task started again. Nothing was lost.')
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.terminate()
                worker.wait(20)
    print('Done. The server shuts down when the last of us has left.')


if __name__ == '__main__':
    main()
