"""Which faults befall which calls, and all of them at once on a machine that mostly waits."""

from __future__ import annotations

import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from tests.faults import of_ext, of_schedules, of_store, of_transport
from tests.faults.kinds import AT_A_CALL, BEFORE
from tests.faults.running import Clean, Outcome, Point, run_clean, run_point
from tests.faults.table import TABLE, Operation
from tests.support.proxy import Kind
from tests.support.servers import Server

__all__ = ('every_point', 'know_scripts', 'run_all', 'run_cleanly', 'sample')

#: Modules that fill the table.
PARTS = (of_store, of_transport, of_ext, of_schedules)

#: Runs at once.  They wait for timeouts most of the time.
AT_ONCE = int(os.environ.get('KR_AT_ONCE', 24))

#: After so many seconds without an end a run counts as hanging.
STUCK = 90.0

#: Faults after which a slow operation waits.
SILENT = (Kind.SILENT_REQUESTS, Kind.SILENT_REPLIES)

Servers = Callable[[Operation], Server]


def know_scripts(server: Server) -> None:
    """Has a server know all scripts, as one does that has been used before."""
    with server.client() as client:
        Store(client, Operations(Keys(), Options())).load_scripts()


def every_point(operation: Operation, clean: Clean) -> Iterator[Point]:
    """Each fault at each call, and those that befall what is idle before."""
    for call in clean.calls:
        yield from (Point(operation, fault, call) for fault in AT_A_CALL)
    yield from (Point(operation, fault) for fault in BEFORE)


def sample(operation: Operation, clean: Clean) -> Iterator[Point]:
    """Every third fault, each at one of the calls; the same in each run.

    The next operations meet the others.
    """
    number = list(TABLE).index(operation.name)
    for fault in AT_A_CALL[number % 3 :: 3]:
        if not (operation.slow and fault.kind in SILENT):
            at = zlib.crc32(f'{operation.name} {fault.name}'.encode()) % len(clean.calls)
            yield Point(operation, fault, clean.calls[at])
    if number % 3 and not operation.slow:
        yield Point(operation, BEFORE[number % 3 - 1])


def run_cleanly(servers: Servers, operations: Iterable[Operation]) -> dict[str, Clean]:
    """All of them without a fault."""
    chosen = list(operations)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = {
            one.name: pool.submit(run_clean, servers(one), one) for one in chosen
        }  # fmt: skip
        wait(futures.values(), STUCK)
        broken = [
            f'{name}: {future.exception() if future.done() else "hangs"!r}'
            for name, future in futures.items()
            if not future.done() or future.exception()
        ]
        assert not broken, 'without a fault fail\n' + '\n'.join(broken)
        return {name: future.result() for name, future in futures.items()}


def run_all(
    servers: Servers,
    points: Iterable[Point],
    clean: dict[str, Clean],
    progress: Callable[[list[Outcome], int], None] = lambda outcomes, total: None,
) -> list[Outcome]:
    """Runs points, many at once.

    Raises:
        AssertionError: some hang; it shows where.
    """
    chosen = list(points)
    pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix='fault')
    try:
        waiting = {
            pool.submit(run_point, servers(one.operation), one, clean[one.operation.name])
            for one in chosen
        }
        outcomes: list[Outcome] = []
        while waiting:
            done, waiting = wait(waiting, STUCK, 'FIRST_COMPLETED')
            if not done:
                raise AssertionError(f'nothing ends any more:\n{_stacks()}')
            for future in done:
                outcomes.append(future.result())
                progress(outcomes, len(chosen))
        return outcomes
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _stacks() -> str:
    frames: dict[int, Any] = sys._current_frames()
    return '\n'.join(''.join(traceback.format_stack(frame)) for frame in frames.values())


def main(wanted: list[str]) -> None:
    """``python -m tests.faults.plan [part of a name] ...``: every fault at every call."""
    usual, safe = (Server('valkey', appendfsync=how, databases=2_000) for how in ('no', 'always'))
    with usual, safe:
        for server in (usual, safe):
            know_scripts(server)

        def servers(operation: Operation) -> Server:
            return safe if operation.safe else usual

        chosen = [
            one for name, one in TABLE.items()
            if not wanted or any(part in name for part in wanted)
        ]  # fmt: skip
        clean = run_cleanly(servers, chosen)
        for name, one in clean.items():
            print(f'{name}: {one.seconds:.2f} s, {len(one.calls)} calls:', *one.calls)
        if os.environ.get('KR_FAULTS') == 'none':
            return
        choose = sample if os.environ.get('KR_FAULTS') == 'sample' else every_point
        points = [point for one in chosen for point in choose(one, clean[one.name])]
        start = time.monotonic()
        outcomes = run_all(servers, points, clean, _show)
        _tell_times(outcomes)
        fired = sum(outcome.fired for outcome in outcomes)
        wrong = sum(bool(outcome.problem) for outcome in outcomes)
        print(
            f'{len(points)} points, {fired} faults befell, {wrong} wrong,'
            f' {time.monotonic() - start:.0f} s'
        )


def _tell_times(outcomes: list[Outcome]) -> None:
    by_fault: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_fault.setdefault(str(outcome.point.fault), []).append(outcome)
    for name, found in by_fault.items():
        mean = sum(one.seconds for one in found) / len(found)
        again = sum(one.attempts > 1 for one in found)
        print(f'{name}: {len(found)}, {mean:.2f} s each, {again} repeated')


def _show(outcomes: list[Outcome], total: int) -> None:
    done, last = len(outcomes), outcomes[-1]
    if last.problem:
        print(f'\n*** {last.point}\n{last.problem}', flush=True)
    if done % 100 == 0 or done == total:
        print(f'{done} of {total}', flush=True)


if __name__ == '__main__':
    main(sys.argv[1:])
