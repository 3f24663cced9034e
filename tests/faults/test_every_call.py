"""The table knows every public operation, and each of these every fault at every call."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.conftest import FIGURES
from tests.faults.plan import every_point, run_all, run_cleanly, sample
from tests.faults.public import EXCEPTIONS, operations
from tests.faults.running import DATABASES, Clean, Outcome, Point
from tests.faults.table import TABLE, Operation
from tests.support.servers import Server

Servers = Callable[[Operation], Server]

#: Points at least, so that the proof cannot shrink unnoticed.
FLOOR = 700
FLOOR_OF_ALL = 8_000

#: How many of the calls may not be made again in a run with a fault: which calls a consumer makes
#: depends on the moment.
MISSED = 0.1

SHOWN = 5

#: Operations that are tried on a server that has forgotten its scripts: each way of calling them.
FORGETTABLE = (
    'store: pause', 'store: cancel', 'store: hand over counts', 'ext: job move',
    'ext: apply async with depends on', 'transport: publish one', 'transport: publish a batch',
    'transport: publish with many dependencies', 'transport: consume and ack',
    'transport: consume and requeue', 'transport: get one', 'schedules: run now',
)  # fmt: skip


def judge(outcomes: list[Outcome], missed: float) -> str:
    """All is well; says how much that was."""
    wrong = [outcome for outcome in outcomes if outcome.problem]
    counts = Counter(outcome.point.operation.name for outcome in wrong)
    shown = '\n\n'.join(f'{one.point}\n{one.problem}' for one in wrong[:SHOWN])
    assert not wrong, f'{len(wrong)} of {len(outcomes)} points are wrong: {counts}\n{shown}'
    fired = sum(outcome.fired for outcome in outcomes)
    assert fired >= (1 - missed) * len(outcomes), f'only {fired} of {len(outcomes)} faults befell'
    operations = {outcome.point.operation.name for outcome in outcomes}
    calls = {(outcome.point.operation.name, outcome.point.call) for outcome in outcomes}
    again = sum(outcome.attempts > 1 for outcome in outcomes)
    return (
        f'{len(operations)} operations, {len(calls)} calls, {len(outcomes)} fault points, '
        f'{fired} faults befell, {again} times the caller had to repeat'
    )


def run(
    servers: Servers,
    points: list[Point],
    clean: dict[str, Clean],
    record: Callable[[str, object], None],
    progress: Callable[[list[Outcome], int], None] = lambda outcomes, total: None,
    missed: float = MISSED,
) -> None:
    start = time.monotonic()
    figures = judge(run_all(servers, points, clean, progress), missed)
    record(FIGURES, f'{figures}, {time.monotonic() - start:.0f} s')


def test_every_public_operation_is_in_the_table(clean: dict[str, Clean]) -> None:
    """It was called by an operation of the table, so each of its calls meets each fault."""
    ran = set().union(*(one.ran for one in clean.values()))
    missing = sorted(
        name for name, code in operations().items() if code not in ran and name not in EXCEPTIONS
    )
    assert not missing, f'no operation in the table calls {", ".join(missing)}'


def test_the_exceptions_are_exceptions(clean: dict[str, Clean]) -> None:
    known = operations()
    assert not sorted(EXCEPTIONS.keys() - known.keys()), 'there are no such operations any more'
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())


def test_every_operation_talks_to_the_server(clean: dict[str, Clean]) -> None:
    """An entry that makes no call proves nothing."""
    assert clean.keys() == TABLE.keys()
    assert not [name for name, one in clean.items() if not one.calls]


def test_each_operation_with_a_third_of_the_faults_at_one_call(
    fault_servers: Servers, clean: dict[str, Clean], record_property: Callable[[str, object], None]
) -> None:
    points = [point for one in TABLE.values() for point in sample(one, clean[one.name])]
    assert len(points) >= FLOOR
    run(fault_servers, points, clean, record_property)


@pytest.mark.matrix
@pytest.mark.timeout(7200)
def test_each_operation_with_each_fault_at_each_call(
    fault_servers: Servers,
    clean: dict[str, Clean],
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def progress(outcomes: list[Outcome], total: int) -> None:
        if len(outcomes) % 500 == 0:
            wrong = sum(bool(outcome.problem) for outcome in outcomes)
            with capsys.disabled():
                print(f'\n{len(outcomes)} of {total} fault points, {wrong} wrong', flush=True)

    points = [point for one in TABLE.values() for point in every_point(one, clean[one.name])]
    assert len(points) >= FLOOR_OF_ALL
    run(fault_servers, points, clean, record_property, progress)


@pytest.mark.matrix
@pytest.mark.timeout(1800)
def test_when_the_server_has_forgotten_all_scripts(
    record_property: Callable[[str, object], None],
) -> None:
    """Whoever meets that loads them, over and over: all runs share the server, and each makes it
    forget."""
    operations = [TABLE[name].forgetting() for name in FORGETTABLE]
    with Server('valkey', databases=DATABASES) as server:
        clean: dict[str, Clean] = {}
        for one in operations:  # side by side one would forget what another has just loaded
            clean |= run_cleanly(lambda _: server, [one])
        points = [point for one in operations for point in every_point(one, clean[one.name])]
        run(lambda _: server, points, clean, record_property, missed=0.5)
