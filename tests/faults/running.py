"""Runs operations without faults to see their calls, and then with a fault at one of them."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

import redis.exceptions
from kombu.exceptions import OperationalError

from kombu_reliable import ConnectionLost
from tests.faults.calls import Call, calls_of
from tests.faults.kinds import TIMEOUT, Idle, Kindred, strike
from tests.faults.picture import Picture, differences, picture, scrub, without
from tests.faults.table import Operation
from tests.faults.world import World, open_world
from tests.support.proxy import Kind
from tests.support.servers import Server
from tests.support.wait import wait_for

__all__ = ('DATABASES', 'Clean', 'Outcome', 'Point', 'run_clean', 'run_point')

#: Databases of the server.  Each run takes the next one: what an earlier run has left on its way
#: must not arrive in a later one's.
DATABASES = 2_000

#: What tells of a lost connection.
LOST = (
    redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, ConnectionLost,
    OperationalError, OSError,
)  # fmt: skip

#: How often an operation is repeated: the one fault can cost one attempt, a busy machine others.
ATTEMPTS = 5

#: How much longer than without a fault an attempt may take, in seconds: some timeouts, and what
#: a busy machine adds.
ALLOWANCE = 4 * TIMEOUT + 5.0

_databases = itertools.cycle(range(1, DATABASES))
_lock = threading.Lock()


def next_database() -> int:
    with _lock:
        return next(_databases)


@dataclass
class Clean:
    """A run without a fault.

    Args:
        calls: the commands that it sent.
        before, after: the database.
        result: what came of it.
        seconds: how long it took.
        ran: the functions that were called.
    """

    calls: list[Call]
    before: Picture
    after: Picture
    result: str
    seconds: float
    ran: set[CodeType] = field(repr=False)


@dataclass(frozen=True)
class Point:
    """A fault at a call of an operation; at none, if it befalls the idle connections."""

    operation: Operation
    fault: Kindred | Idle
    call: Call | None = None

    def __str__(self) -> str:
        where = f' at {self.call}' if self.call else ''
        return f'{self.operation}{where}: {self.fault}'


@dataclass
class Outcome:
    """What came of a point.

    Args:
        point: the point.
        fired: whether the call was made at all, and the fault befell it.
        attempts: how often the operation was begun.
        seconds: how long it took.
        problem: what is wrong; ``''`` if nothing is.
    """

    point: Point
    fired: bool = False
    attempts: int = 0
    seconds: float = 0.0
    problem: str = ''


class Wrong(AssertionError):
    """A promise was broken."""


def run_clean(server: Server, operation: Operation) -> Clean:
    """Runs an operation without a fault; once more if a busy machine was too slow for it."""
    for _ in range(ATTEMPTS - 1):
        with contextlib.suppress(*LOST):
            return _run_clean(server, operation)
    return _run_clean(server, operation)


def _run_clean(server: Server, operation: Operation) -> Clean:
    with open_world(server, next_database()) as world:
        act = _prepared(world, operation)
        before = picture(world, operation.loose)
        world.proxy.clear()
        ran: set[CodeType] = set()
        start = time.monotonic()
        result = _profiled(act, ran)
        seconds = time.monotonic() - start
        commands = world.proxy.seen()
        _rest(world)
        after = picture(world, operation.loose)
    return Clean(list(calls_of(commands)), before, after, _told(result), seconds, ran)


def _prepared(world: World, operation: Operation) -> Callable[[], Any]:
    act = operation.prepare(world)
    if not operation.cold and 'ext' not in world.__dict__:
        world.connection.connect()
    return act


def _profiled(act: Callable[[], Any], ran: set[CodeType]) -> Any:
    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == 'call':
            ran.add(frame.f_code)

    sys.setprofile(note)
    try:
        return act()
    finally:
        sys.setprofile(None)


def _told(result: Any) -> str:
    return scrub(repr(result))


def _rest(world: World) -> None:
    """Waits until this process has nothing more to say to the server."""
    if 'connection' in world.__dict__ and world.connection._transport is not None:
        keeper = world.connection.transport.endpoint.keeper
        wait_for(lambda: not keeper.unsettled, 10, 'confirmed settlements')


def run_point(server: Server, point: Point, clean: Clean) -> Outcome:
    """Runs an operation with a fault, as often as it takes, and looks at what came of it."""
    outcome = Outcome(point)
    start = time.monotonic()
    try:
        for attempt in range(1, ATTEMPTS + 1):
            with open_world(server, next_database()) as world:
                try:
                    act = _prepared(world, point.operation)
                except LOST:
                    # A busy machine, on which half a second is short.
                    if attempt < ATTEMPTS:
                        continue
                    raise
                _run(world, act, point, clean, outcome)
                break
    except Wrong as wrong:
        outcome.problem = str(wrong)
    except BaseException as error:
        outcome.problem = f'{error!r}\n{"".join(traceback.format_exception(error))}'
    outcome.seconds = time.monotonic() - start
    return outcome


def _run(
    world: World, act: Callable[[], Any], point: Point, clean: Clean, outcome: Outcome
) -> None:
    operation = point.operation
    fault = None
    if isinstance(point.fault, Idle):
        point.fault.befall(world.proxy)
        outcome.fired = True
    else:
        assert point.call is not None
        fault = strike(world.proxy, point.fault, point.call)
    result = None
    for attempt in range(1, ATTEMPTS + 1):
        outcome.attempts = attempt
        result = _attempt(act, operation, clean, attempt)
        if not isinstance(result, Failed):
            break
        if fault is not None and fault.fired is not None:
            # What is late may still arrive: an effect that is not there yet is no half effect.
            fault.over.wait(10)
        if not operation.steps:
            _check_whole(world, operation, clean, result)
    if isinstance(result, Failed):
        raise Wrong(f'still fails after {ATTEMPTS} attempts: {result.error!r}')
    if fault is not None and fault.fired is not None:
        outcome.fired = True
        fault.over.wait(10)
    allowed = (clean.result, *map(_told, operation.again))
    if not isinstance(result, Refused) and _told(result) not in allowed:
        raise Wrong(
            f'gives {_told(result)} after {outcome.attempts} attempts, not {allowed}'[:3000]
        )
    _rest(world)
    late = fault is not None and fault.kind is Kind.LATE_REQUEST
    _check_after(world, operation, clean, operation.late if late else ())
    _check_recovered(world)


@dataclass
class Failed:
    """It has raised an error that tells of a lost connection."""

    error: BaseException


@dataclass
class Refused:
    """It has said that it was done before."""

    error: BaseException


def _attempt(act: Callable[[], Any], operation: Operation, clean: Clean, attempt: int) -> Any:
    start = time.monotonic()
    refusals = tuple(one for one in operation.again if isinstance(one, type))
    try:
        result = act()
    except (*LOST, *operation.errors) as error:
        result = Failed(error)
    except Exception as error:
        if attempt == 1 or not isinstance(error, refusals):
            raise Wrong(
                f'attempt {attempt} raises {error!r}\n' + ''.join(traceback.format_exception(error))
            ) from error
        result = Refused(error)
    took = time.monotonic() - start
    if took > clean.seconds + ALLOWANCE + operation.patience:
        raise Wrong(f'attempt {attempt} took {took:.1f} s, and {result!r:.200} came of it')
    return result


def _check_whole(world: World, operation: Operation, clean: Clean, failed: Failed) -> None:
    """What has failed has changed nothing, or all."""
    now: Picture = {}

    def whole() -> bool:
        nonlocal now
        now = picture(world, operation.loose)
        return now in (clean.before, clean.after)

    try:
        wait_for(whole, 2.0)
    except AssertionError:
        raise Wrong(
            f'after {failed.error!r} a part was done; from before it differs in\n'
            f'{differences(clean.before, now)}\nand from after it in\n'
            f'{differences(clean.after, now)}'
        ) from None


def _check_after(world: World, operation: Operation, clean: Clean, late: tuple[str, ...]) -> None:
    now: Picture = {}

    def same() -> bool:
        nonlocal now
        now = picture(world, operation.loose)
        return without(now, late) == without(clean.after, late)

    try:
        wait_for(same, 3.0)
    except AssertionError:
        raise Wrong(f'leaves something else behind:\n{differences(clean.after, now)}') from None


def _check_recovered(world: World) -> None:
    """The same objects work on; each connection that is dead and idle may cost an error."""
    for name in ('connection', 'ext'):
        if name not in world.__dict__:
            continue
        for attempt in range(1, ATTEMPTS + 1):
            store = world.store if name == 'connection' else world.ext.store
            try:
                store.now()
                break
            except LOST as error:
                if attempt == ATTEMPTS:
                    raise Wrong(f'does not recover: {error!r}') from error
