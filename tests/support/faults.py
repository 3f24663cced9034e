"""What tests of faults ask: the state of a queue, and whether a worker's log is quiet."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.types import QueueCounts
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, Worker

NOTHING = QueueCounts(ready=0, delayed=0, leased=0, dead=0)

#: What Celery says when its consumer starts anew, each at most once in a quiet life.
ONCE = (' ready.', 'Connected to ')
NEVER = ('Connection to broker lost', 'Connection to broker failed', 'Traceback', 'lease was lost')


def database_of(fleet: Fleet) -> int:
    return int(fleet.broker.rpartition('/')[2])


def keys_of(fleet: Fleet) -> Keys:
    return Keys(database_of(fleet))


def store_of(fleet: Fleet, server: Server) -> Store:
    """A store on the fleet's database, whatever lies between the workers and the server."""
    operations = Operations(keys_of(fleet), Options())
    return Store(server.client(db=database_of(fleet)), operations)


def counts(fleet: Fleet, server: Server, queue: str = 'celery') -> QueueCounts:
    store = store_of(fleet, server)
    try:
        return store.counts(queue)
    finally:
        store.client.close()


def wait_for_counts(
    fleet: Fleet, server: Server, wanted: QueueCounts = NOTHING, timeout: float = 15.0
) -> None:
    def reached() -> bool:
        nonlocal last
        last = counts(fleet, server)
        return last == wanted

    last = NOTHING
    try:
        wait_for(reached, timeout)
    except AssertionError:
        raise AssertionError(f'the queue holds {last}, not {wanted}') from None


def dead_reasons(fleet: Fleet, server: Server, queue: str = 'celery') -> list[str]:
    """Why each dead letter of a queue is one, the oldest first."""
    keys = keys_of(fleet)
    with server.client(db=database_of(fleet)) as client:
        jobs = [job.decode() for job in client.zrange(keys.dead(queue), 0, -1)]
        return [client.hget(keys.extra(job), 'reason').decode() for job in jobs]


def cut_all(server: Server) -> None:
    """Has the server throw out every client."""
    with server.client() as client:
        client.execute_command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')


def assert_quiet(worker: Worker, warnings: int = 10) -> None:
    """Celery's consumer never started anew, and the transport said little."""
    text = worker.text()
    for words in NEVER:
        assert words not in text, f'{words!r} in\n{text}'
    for words in ONCE:
        assert text.count(words) == 1, f'{words!r} not once in\n{text}'
    said = [line for line in text.splitlines() if re.search(r'(WARNING|ERROR|CRITICAL)/', line)]
    assert len(said) <= warnings, '\n'.join(said)


def assert_each_ran_once(fleet: Fleet, values: Sequence[object], event: str = 'started') -> None:
    assert Counter(map(str, fleet.ledger.values(event))) == Counter(map(str, values))
