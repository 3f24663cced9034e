"""Celery workers in processes of their own, and the ledger in which their tasks write."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from celery import Celery

from tests.support.wait import wait_for

ROOT = Path(__file__).parents[2]


class Ledger:
    """What ran, written by the tasks themselves, independent of any broker."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self, event: str | None = None, **wanted: Any) -> list[dict[str, Any]]:
        """The entries in order, those of one event and with the given fields."""
        if not self.path.exists():
            return []
        # Somebody may be writing the last line.
        lines = self.path.read_text().splitlines(keepends=True)
        entries = [json.loads(line) for line in lines if line.endswith('\n')]
        return [
            entry
            for entry in entries
            if event in (None, entry['event'])
            and all(entry.get(name) == value for name, value in wanted.items())
        ]

    def values(self, event: str) -> list[Any]:
        return [entry['value'] for entry in self.lines(event)]

    def deliveries(self, **wanted: Any) -> list[int]:
        """Which deliveries have started, in order, each once.

        For tasks that end their process: prefork itself starts a task again, as the same
        delivery, when its process has died before the worker has read that it began.
        """
        runs = {(entry['id'], entry['deliveries']): None for entry in self.lines('ran', **wanted)}
        return [number for _, number in runs]

    def wait(self, count: int, event: str, timeout: float = 15.0, **wanted: Any) -> list[Any]:
        """Waits for at least ``count`` such entries."""

        def enough() -> list[dict[str, Any]]:
            found = self.lines(event, **wanted)
            return found if len(found) >= count else []

        return wait_for(enough, timeout, f'{count} entries {event!r} {wanted}')


@dataclass
class Worker:
    """A running ``celery worker``."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ended: bool = field(default=False)

    def text(self) -> str:
        return self.log.read_text(errors='replace')

    def wait_for_log(self, text: str, timeout: float = 20.0) -> None:
        def there() -> bool:
            assert self.process.poll() is None or text in self.text(), self.text()
            return text in self.text()

        try:
            wait_for(there, timeout, f'{text!r} in the log of {self.name}')
        except AssertionError as error:
            raise AssertionError(f'{error}\n{self.text()[-3000:]}') from None

    @property
    def pid(self) -> int:
        return self.process.pid

    def pool_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.pid).children()]

    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def kill(self) -> None:
        """SIGKILL to the main process and its pool at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)

    def terminate(self) -> None:
        """Warm shutdown."""
        self.process.send_signal(signal.SIGTERM)

    def quit(self) -> None:
        """Cold shutdown."""
        self.process.send_signal(signal.SIGQUIT)

    def pause(self) -> None:
        os.killpg(self.pid, signal.SIGSTOP)
        # A process that waits for a processor stops when it gets one.
        main = psutil.Process(self.pid)
        wait_for(lambda: main.status() == psutil.STATUS_STOPPED, 10, 'a stopped process')

    def resume(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def wait(self, timeout: float = 20.0) -> int:
        return self.process.wait(timeout)


class Fleet:
    """Starts workers of :mod:`tests.support.app` and ends them with the test.

    Args:
        directory: for logs and the ledger.
        broker: broker URL; results go there as well unless ``backend`` says otherwise.
        options: transport options.
        config: further Celery settings.
        module: the app that workers run; :mod:`tests.support.installed` has the extension.
    """

    def __init__(
        self,
        directory: Path,
        broker: str,
        options: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
        backend: str | None = None,
        module: str = 'tests.support.app',
    ) -> None:
        self.directory = directory
        self.broker = broker
        self.options = {'lease': 2, **(options or {})}
        self.config = config or {}
        self.backend = backend or broker
        self.module = module
        self.ledger = Ledger(directory / 'ledger')
        self.workers: list[Worker] = []
        self.apps: list[Celery] = []

    def environment(self, broker: str | None = None) -> dict[str, str]:
        return {
            **os.environ,
            'KR_BROKER': broker or self.broker,
            'KR_BACKEND': self.backend,
            'KR_LEDGER': str(self.ledger.path),
            'KR_OPTIONS': json.dumps(self.options),
            'KR_CONFIG': json.dumps(self.config),
            'PYTHONPATH': str(ROOT),
            'PYTHONUNBUFFERED': '1',
        }

    def start(
        self,
        *arguments: str,
        concurrency: int = 2,
        pool: str = 'prefork',
        broker: str | None = None,
        ready: bool = True,
        program: Sequence[str] = (sys.executable, '-m', 'celery'),
        **environment: str,
    ) -> Worker:
        """Starts a worker with further command line arguments and waits until it is ready."""
        name = f'w{len(self.workers) + 1}'
        log = self.directory / f'{name}.log'
        with log.open('wb') as output:
            process = subprocess.Popen(
                [
                    *program, '-A', self.module, 'worker',
                    '-l', 'INFO', '-n', f'{name}@test', '-c', str(concurrency), '-P', pool,
                    *arguments,
                ],
                cwd=ROOT, env={**self.environment(broker), **environment},
                stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        worker = Worker(name, process, log)
        self.workers.append(worker)
        if ready:
            worker.wait_for_log(' ready.')
        return worker

    def kill_next_worker(self, moment: str) -> None:
        """The next worker that comes to ``'after-next-run'`` or ``'after-<task>'`` kills itself."""
        Path(f'{self.ledger.path}.die-{moment}').touch()

    def run(self, *command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
        """Runs ``python -m celery ...`` with the same surroundings."""
        return subprocess.run(
            [sys.executable, '-m', *command],
            cwd=ROOT, env=self.environment(), capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip

    def app(self, broker: str | None = None) -> Celery:
        """A producer in this process, with the tasks' names but not their code."""
        app = Celery('testapp', broker=broker or self.broker, backend=self.backend)
        app.conf.update(broker_transport_options=self.options, **self.config)
        self.apps.append(app)
        return app

    def runs(self, count: int) -> bool:
        """Whether the workers say that they run so many tasks.

        A task begins before its worker hears of it, and until then Celery neither ends it nor
        misses it.
        """
        alive = sum(worker.process.poll() is None for worker in self.workers)
        inspect = self.apps[0].control.inspect(timeout=15, limit=alive)
        return sum(map(len, (inspect.active() or {}).values())) == count

    def close(self) -> None:
        """Ends the workers and the producers; to be called while the server still runs.

        Results that are collected later would unsubscribe from a server that is gone, in the
        middle of whatever the interpreter does then.
        """
        for worker in self.workers:
            worker.kill()
        for app in self.apps:
            consumer = getattr(app.backend, 'result_consumer', None)
            if consumer is not None:
                consumer.stop()
                consumer._pubsub = None
            app.close()
        self.apps.clear()


@contextlib.contextmanager
def fleet(directory: Path, broker: str, **settings: Any) -> Iterator[Fleet]:
    """A fleet that is ended whatever happens."""
    made = Fleet(directory, broker, **settings)
    try:
        yield made
    finally:
        made.close()


def task(app: Celery, name: str, *args: Any, **kwargs: Any) -> Any:
    """A signature of one of the app's tasks, by its short name."""
    return app.signature(f'tests.support.app.{name}', args=args, kwargs=kwargs)
