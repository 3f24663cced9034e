"""What the benchmarks share: a server, workers and publishers in processes, and their clocks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import redis

from benchmarks.contenders import Contender
from tests.support.servers import Server

__all__ = (
    'QUIET',
    'Bench',
    'Inbox',
    'PublisherInTurns',
    'RunningWorker',
    'Wire',
    'percentile',
    'progress',
)

ROOT = Path(__file__).parents[1]
QUEUE = 'celery'
QUIET = ('--without-heartbeat', '--without-gossip', '--without-mingle')
START_TIMEOUT = 60.0


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def percentile(values: list[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Inbox:
    """Where workers and tasks report, one datagram each."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = str(directory / name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)

    def receive(self, timeout: float) -> dict[str, Any]:
        """The next report.

        Raises:
            TimeoutError: none came.
        """
        self._socket.settimeout(timeout)
        report: dict[str, Any] = json.loads(self._socket.recv(65536))
        return report

    def close(self) -> None:
        self._socket.close()
        os.unlink(self.path)


class RunningWorker:
    """A ``celery worker`` (prefork, two processes) that is ready when the block begins."""

    def __init__(
        self, bench: Bench, contender: Contender, *flags: str, profile: Path | None = None
    ) -> None:
        self.log = bench.unique('worker.log')
        self.inbox = Inbox(bench.directory, bench.unique('inbox').name)
        runner = ('benchmarks.profiled', str(profile)) if profile else ('celery',)
        command = [sys.executable, '-m', *runner, '-A', 'benchmarks.app', 'worker', '-c', '2']
        with self.log.open('wb') as log:
            self.process = subprocess.Popen(
                [*command, '--loglevel', 'WARNING', '-n', f'{self.log.stem}@bench', *flags],
                cwd=ROOT, env=bench.environment(contender, self.inbox),
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def __enter__(self) -> Self:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            try:
                if self.inbox.receive(0.5)['event'] == 'ready':
                    return self
            except TimeoutError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self._end()
                    sys.exit(f'the worker did not start:\n{self.log.read_text()[-3000:]}')

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.inbox.close()

    def cpu(self) -> float:
        """CPU seconds of the main process, without those of the pool."""
        return _cpu(psutil.Process(self.process.pid))

    def pool_cpu(self) -> float:
        """CPU seconds of the processes of its pool."""
        return sum(map(_cpu, psutil.Process(self.process.pid).children()))


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class PublisherInTurns:
    """A :mod:`benchmarks.publisher` that publishes a block whenever it is asked to."""

    def __init__(self, bench: Bench, contender: Contender, block: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarks.publisher', 'turns', str(block)],
            cwd=ROOT, env=bench.environment(contender), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Self:
        self._report()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def publish(self) -> dict[str, Any]:
        """What the next block has cost."""
        assert self._process.stdin
        self._process.stdin.write('go\n')
        self._process.stdin.flush()
        return self._report()

    def _report(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit('the publisher failed')
        report: dict[str, Any] = json.loads(line)
        return report


class Wire:
    """Counts the commands that others send to a server, while the block runs.

    ``INFO`` would count the commands inside scripts as well.  MONITOR tells them apart, and it
    tells clients apart: those that were connected before this object was made do not count,
    unless ``everybody`` does.  It slows the server down, so nothing else is measured meanwhile.
    """

    def __init__(self, server: Server, everybody: bool = False) -> None:
        self.count = 0
        with server.client() as client:
            self._known = {entry['addr'] for entry in client.client_list()}
        if everybody:
            self._known.clear()
        self._socket = socket.create_connection(('127.0.0.1', server.port))
        self._lines = self._socket.makefile('rb')
        self._reader = threading.Thread(target=self._read, daemon=True)

    def _read(self) -> None:
        for line in self._lines:
            if not line.endswith(b'\n'):
                break  # cut off by the end of the block
            source = line.split(b'[', 1)[1].split(b']', 1)[0].split(b' ', 1)[1].decode()
            self.count += source != 'lua' and source not in self._known

    def __enter__(self) -> Self:
        self._socket.sendall(b'MONITOR\r\n')
        self._lines.readline()  # OK: from here on it sees everything
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._lines.close()
        self._socket.close()


@dataclass
class Bench:
    """A server of its own and a directory."""

    server: Server
    directory: Path
    _made: int = 0

    @classmethod
    @contextmanager
    def start(cls, kind: Any) -> Iterator[Bench]:
        with (
            tempfile.TemporaryDirectory(prefix='bench-', dir='/tmp') as directory,
            Server(kind) as server,
        ):
            yield cls(server, Path(directory))

    def unique(self, name: str) -> Path:
        self._made += 1
        return self.directory / f'{self._made}-{name}'

    def client(self) -> redis.Redis:
        return self.server.client()

    def server_cpu(self, client: redis.Redis) -> float:
        """CPU seconds of the server so far."""
        info: Any = client.info('cpu')
        return float(info['used_cpu_user'] + info['used_cpu_sys'])

    def environment(self, contender: Contender, inbox: Inbox | None = None) -> dict[str, str]:
        return {
            **os.environ,
            'BENCH_BROKER': contender.url,
            'BENCH_OPTIONS': json.dumps(contender.options),
            'BENCH_MODULE': contender.module or '',
            'BENCH_EXTENSION': _extension(contender),
            'BENCH_MARKED': '1' if contender.marked else '',
            'BENCH_INBOX': inbox.path if inbox else '',
        }

    def empty(self, contender: Contender) -> None:
        """Nothing of an earlier measurement is left."""
        if contender.on_redis:
            with self.client() as client:
                client.flushall()
            return
        with contender.connection() as connection:
            channel = connection.default_channel
            channel.queue_declare(QUEUE, durable=True, auto_delete=False)
            channel.queue_purge(QUEUE)

    def publish(
        self, contender: Contender, how: str, count: int, profile: Path | None = None
    ) -> dict[str, Any]:
        """Runs :mod:`benchmarks.publisher`."""
        command = [sys.executable, '-m', 'benchmarks.publisher', how, str(count)]
        if profile:
            command += ['--profile', str(profile)]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment(contender), capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f'the publisher failed:\n{done.stderr[-3000:]}')
        report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return report

    @contextmanager
    def size(self, contender: Contender) -> Iterator[Any]:
        """A function that tells how many messages wait; those that a worker holds do not."""
        with contender.connection() as connection:
            channel = connection.default_channel

            def size() -> int:
                try:
                    return int(channel.queue_declare(QUEUE, passive=True).message_count)
                except connection.channel_errors:
                    return 0  # kombu's redis: an empty list is no list

            yield size


def _extension(contender: Contender) -> str:
    if not contender.extension:
        return ''
    return 'with statistics' if contender.stats else 'without statistics'
