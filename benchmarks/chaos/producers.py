"""A process that publishes tasks of all kinds until it is told to stop, or killed.

    python -m benchmarks.chaos.producers --seed 1 --rate 100

It writes what it is about to publish, and what was stored.  What raised is written and not tried
again: kombu has done that by then.  Two files in the ledger's directory tell it what to do: while
there is a ``brake`` it waits, and it ends when there is a ``stop``.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from celery import chain
from celery.utils import uuid

from benchmarks.chaos import app
from benchmarks.chaos.ledger import Pen
from benchmarks.chaos.limits import LIMITS, PACED
from benchmarks.chaos.settings import QUEUES

__all__ = ('KINDS', 'Producer')

#: Unique keys that calls fight for.
KEYS = 5

#: How long a producer looks away between two looks at the files that it obeys, in seconds.
LOOK = 0.2

#: Leases that a long task takes.
LONG = (1.2, 2.5)


class Refused(Exception):
    """A publish has failed; those that were to depend on it are not published."""


class Producer:
    """Publishes, and writes it down.

    Args:
        directory: of the ledger.
        rng: chooses.
        lease: in seconds.
        kinds: what it publishes.
    """

    def __init__(
        self, directory: Path, rng: random.Random, lease: float, kinds: Iterable[str]
    ) -> None:
        self._directory = directory
        self._pen = Pen(directory / 'submitted')
        self._rng = rng
        self._lease = lease
        self._kinds = list(kinds)

    def run(self, rate: float) -> None:
        """Publishes until there is a ``stop``, at most ``rate`` a second; 0: no limit."""
        weights = [KINDS[kind][0] for kind in self._kinds]
        first = self._first()
        due = time.monotonic()
        looked = 0.0
        while True:
            now = time.monotonic()
            if now - looked > LOOK:
                looked = now
                if self._told('stop'):
                    return
                if self._told('brake'):
                    time.sleep(0.05)
                    looked, due = 0.0, time.monotonic()
                    continue
            if rate:
                due = max(due + 1 / rate, now - 1.0)
                if due > now:
                    time.sleep(due - now)
            kind = first.pop() if first else self._rng.choices(self._kinds, weights)[0]
            try:
                KINDS[kind][1](self)
            except Refused:
                time.sleep(0.05)

    def _first(self) -> list[str]:
        """A few of each, so that none is missing in a short run; but a poisonous one costs many
        processes, and a paced one takes its time."""
        first = [kind for kind in self._kinds if kind not in ('poison', 'paced')]
        first += [kind for kind in self._kinds if kind == 'paced' and self._rng.random() < 0.4]
        first += ['long', 'long'] if 'long' in first else []
        self._rng.shuffle(first)
        return first

    def _told(self, what: str) -> bool:
        return (self._directory / what).exists()

    # -- one publish -------------------------------------------------------------

    def send(
        self, kind: str, *args: Any, needs: tuple[str, ...] = (), limit: str = '', key: str = '',
        countdown: float = 0.0, **options: Any,
    ) -> str:  # fmt: skip
        """Publishes one task and returns its id.

        Raises:
            Refused: it was not stored, or nobody knows.
        """
        name = uuid()
        begun = time.monotonic()
        self._pen.write(
            'asked', id=name, kind=kind, at=begun, needs=needs, limit=limit, key=key,
            due=begun + countdown if countdown else 0.0,
        )  # fmt: skip
        if countdown:
            options['countdown'] = countdown
        if needs:
            options['depends_on'] = list(needs)
        options.setdefault('queue', self._rng.choice(QUEUES))
        task = app.app.tasks[f'chaos.{kind}']
        self._publish([name], lambda: task.apply_async(args, task_id=name, **options))
        return name

    def _publish(self, names: list[str], publish: Callable[[], Any]) -> None:
        try:
            result = publish()
        except Exception as error:
            for name in names:
                self._pen.write('refused', id=name, error=type(error).__name__)
            raise Refused from error
        now = time.monotonic()
        for name in names:
            instead = {} if result.id in names else {'instead': result.id}
            self._pen.write('stored', id=name, at=now, **instead)

    # -- kinds -------------------------------------------------------------------

    def short(self) -> None:
        self.send('short', self._rng.choice((0, 0, 0, 0, 0.01)))

    def long(self) -> None:
        self.send('long', self._lease * self._rng.uniform(*LONG))

    def retrying(self) -> None:
        self.send('retrying', self._rng.randint(1, 3), self._rng.choice((0, 0.2, 1.5)))

    def delayed(self) -> None:
        self.send('delayed', countdown=self._rng.uniform(0.1, 8.0))

    def diamond(self) -> None:
        """Four: one, two that need it, and one that needs both."""
        top = self.send('short', self._rng.choice((0, 0.1)))
        delay = self._rng.choice((0.0, 0.0, 1.0))
        sides = [
            self.send('dependent', self._rng.choice((0, 0.05)), needs=(top,), countdown=wait)
            for wait in (0.0, delay)
        ]
        self.send('dependent', needs=(sides[0], sides[1]))

    def line(self) -> None:
        """Three, one behind the other."""
        last = self.send('short')
        for _ in range(2):
            last = self.send('dependent', needs=(last,))

    def canvas(self) -> None:
        """One of Celery's own chains."""
        names = [uuid() for _ in range(3)]
        for at, name in enumerate(names):
            self._pen.write(
                'asked', id=name, kind='link', at=time.monotonic(), needs=tuple(names[:at][-1:])
            )
        links = [app.link.si().set(task_id=name, queue=self._rng.choice(QUEUES)) for name in names]
        self._publish(names, lambda: chain(*links).apply_async())

    def limited(self) -> None:
        """A dozen at once, so that they meet their limit."""
        from celery_ext import Throttle

        name = self._rng.choice(list(LIMITS))
        throttle = Throttle(name, concurrency=LIMITS[name])
        for _ in range(12):
            self.send('limited', self._rng.uniform(0.01, 0.08), limit=name, throttles=[throttle])

    def paced(self) -> None:
        from celery_ext import Throttle

        throttle = Throttle(PACED.name, rate=PACED.text, burst=PACED.burst)
        for _ in range(60):
            self.send('limited', 0.0, limit=PACED.name, throttles=[throttle])

    def single(self) -> None:
        key = f'key {self._rng.randrange(KEYS)}'
        self.send('single', self._rng.uniform(0, 0.1), key=key, unique={'key': key})

    def failing(self) -> None:
        """One that fails, and one that is not to run for it."""
        failed = self.send('failing')
        self.send('blocked', needs=(failed,), dependency_policy='fail')

    def poison(self) -> None:
        # The other queue is also consumed by workers that would die of it as a whole.
        self.send('poison', queue=QUEUES[1])


#: How often each kind is chosen, and who publishes it.
KINDS: dict[str, tuple[float, Callable[[Producer], None]]] = {
    'short': (900, Producer.short),
    'delayed': (60, Producer.delayed),
    'retrying': (20, Producer.retrying),
    'diamond': (8, Producer.diamond),
    'line': (5, Producer.line),
    'canvas': (5, Producer.canvas),
    'limited': (2, Producer.limited),
    'paced': (0.3, Producer.paced),
    'single': (10, Producer.single),
    'failing': (1, Producer.failing),
    'long': (1.5, Producer.long),
    'poison': (0.08, Producer.poison),
}

#: What kombu's own transport can express too, and does not repeat for ever.
PLAIN = ('short', 'delayed', 'retrying', 'canvas', 'long')

#: What leaves dead letters, or holds up whoever waits for everything to end.
WILD = ('failing', 'poison', 'long', 'paced')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seed', required=True)
    parser.add_argument(
        '--rate', type=float, default=0.0, help='tasks a second (default: no limit)'
    )
    parser.add_argument('--lease', type=float, default=4.0, help='in seconds (default: 4)')
    parser.add_argument('--calm', action='store_true', help='nothing that fails or takes long')
    options = parser.parse_args()
    kinds: Iterable[str] = KINDS if os.environ.get('CHAOS_EXTENSION') else PLAIN
    if options.calm:
        kinds = [kind for kind in kinds if kind not in WILD]
    directory = Path(os.environ['CHAOS_LEDGER'])
    rng = random.Random(options.seed)
    Producer(directory, rng, options.lease, kinds).run(options.rate)


if __name__ == '__main__':
    main()
