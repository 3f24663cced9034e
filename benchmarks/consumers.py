"""Many idle consumers of one queue: how late delayed messages arrive, and what each costs.

    python -m benchmarks.consumers [--consumers 30] [--messages 200] [--url ...] [--check]

The consumers are plain kombu, each with a connection of its own, in a few processes, on an
embedded server unless told otherwise.  ``--check`` ends with an error if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kombu import Connection, Queue

import kombu_reliable  # noqa: F401 - registers the URLs
from kombu_reliable.scripts import script

__all__ = ('Figures', 'consume', 'measure')

QUEUE = 'lateness'

#: The promises: lateness in milliseconds at the 99th percentile, and claims for each message.
LATENESS_BAR = 10.0
CLAIMS_BAR = 3.0

#: Consumers in one process: each is a thread, and threads of Python wait for each other.
PER_PROCESS = 10

#: The consumers have gone to sleep after this, in seconds.
SETTLING = 2.0


@dataclass(frozen=True)
class Figures:
    """What was measured; lateness in milliseconds, sorted."""

    late: list[float]
    claims: int

    @property
    def p99(self) -> float:
        return statistics.quantiles(self.late, n=100)[98]

    @property
    def claims_per_message(self) -> float:
        return self.claims / len(self.late)


def consume(url: str, stop: threading.Event, note: Any, ready: Any) -> None:
    """Consumes until ``stop`` is set; calls ``note`` with the lateness of each message."""

    def receive(message: Any) -> None:
        note(1000 * (time.time() - message.payload['due']))
        message.ack()

    with Connection(url) as connection, connection.Consumer([Queue(QUEUE)], on_message=receive):
        ready()
        while not stop.is_set():
            try:
                connection.drain_events(timeout=1)
            except TimeoutError:
                continue


def _process(url: str, count: int) -> None:
    """The consumers of one process; ends with its standard input."""
    stop = threading.Event()

    def say(word: object) -> None:
        sys.stdout.write(f'{word}\n')
        sys.stdout.flush()

    threads = [
        threading.Thread(target=consume, args=(url, stop, say, lambda: say('ready')))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()


@contextmanager
def _consumers(url: str, count: int, late: list[float]) -> Iterator[None]:
    """Runs ``count`` consumers; what they note is added to ``late``."""
    ready = threading.Semaphore(0)

    def read(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line == 'ready\n':
                ready.release()
            else:
                late.append(float(line))

    sizes = [min(PER_PROCESS, count - first) for first in range(0, count, PER_PROCESS)]
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.consumers', '--url', url, '--process', str(size)],
            cwd=Path(__file__).parents[1], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for size in sizes
    ]  # fmt: skip
    readers = [threading.Thread(target=read, args=(process,)) for process in processes]
    try:
        for reader in readers:
            reader.start()
        for _ in range(count):
            if not ready.acquire(timeout=60):
                sys.exit('the consumers did not start')
        yield
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process, reader in zip(processes, readers, strict=True):
            process.wait(30)
            reader.join()


class _ClaimCounter:
    """Counts claims as the server sees them."""

    def __init__(self, client: Any) -> None:
        self._digest = script('claim').sha
        self._monitor = client.monitor()
        self._stopped = threading.Event()
        self.count = 0

    def __enter__(self) -> _ClaimCounter:
        self._monitor.__enter__()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._monitor.__exit__(None, None, None)

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._monitor.connection.can_read(timeout=0.2):
                command = self._monitor.next_command()['command']
                self.count += command.upper().startswith('EVALSHA') and self._digest in command


def measure(url: str, consumers: int, messages: int) -> Figures:
    """Publishes delayed messages to idle consumers."""
    late: list[float] = []
    with ExitStack() as stack:
        connection = stack.enter_context(Connection(url))
        connection.connect()
        producer = stack.enter_context(connection.Producer())
        stack.enter_context(_consumers(url, consumers, late))
        time.sleep(SETTLING)
        counter = _ClaimCounter(connection.transport.endpoint.store.client)
        stack.enter_context(counter)
        rng, start = random.Random(1), time.time() + 2
        moments = [start + number * 0.02 + rng.random() * 0.01 for number in range(messages)]
        # In any order: one that is due sooner than all others must be noticed at once.
        for due in rng.sample(moments, messages):
            delay = max(0.0, 1000 * (due - time.time()))
            producer.publish({'due': due}, routing_key=QUEUE, headers={'x-delay': delay})
        deadline = time.monotonic() + 60 + messages * 0.02
        while len(late) < messages:
            if time.monotonic() > deadline:
                sys.exit(f'only {len(late)} of {messages} messages arrived')
            time.sleep(0.1)
        time.sleep(0.5)
    return Figures(sorted(late), counter.count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--consumers', type=int, default=30, help='default: 30')
    parser.add_argument('--messages', type=int, default=200, help='default: 200')
    parser.add_argument('--url', help='broker URL (default: an embedded server of its own)')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument(
        '--check', action='store_true',
        help=f'fail if p99 > {LATENESS_BAR:g} ms or above {CLAIMS_BAR:g} claims for a message',
    )  # fmt: skip
    parser.add_argument('--process', type=int, metavar='N', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process:
        _process(options.url, options.process)
        return
    with tempfile.TemporaryDirectory(prefix='consumers-', ignore_cleanup_errors=True) as directory:
        url = options.url or f'reliable+embedded://{directory}/data'
        measured = measure(url, options.consumers, options.messages)
    figures = {
        'consumers': options.consumers, 'messages': options.messages,
        'p50_ms': statistics.median(measured.late), 'p99_ms': measured.p99,
        'max_ms': measured.late[-1], 'claims_per_message': measured.claims_per_message,
    }  # fmt: skip
    if options.json:
        print(json.dumps(figures))
    else:
        print(', '.join(f'{name} {value:.4g}' for name, value in figures.items()))
    if options.check and (measured.p99 > LATENESS_BAR or measured.claims_per_message > CLAIMS_BAR):
        sys.exit(f'beyond {LATENESS_BAR:g} ms, or beyond {CLAIMS_BAR:g} claims for each message')


if __name__ == '__main__':
    main()
