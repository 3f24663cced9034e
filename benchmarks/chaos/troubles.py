"""What goes wrong.  Each is a function of the world, and ends by itself if it takes time."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from benchmarks.chaos.crew import Member
from benchmarks.chaos.kinds import Kind
from benchmarks.chaos.world import World

__all__ = ('Deck',)

Action = Callable[[World], None]

#: In leases: a pause that must cost nothing, and one that costs what the worker holds.
SHORT, LONG = (0.1, 0.4), (1.3, 2.0)


def _one(world: World, members: list[Member]) -> Member | None:
    return world.rng.choice(members) if members else None


# -- workers -------------------------------------------------------------------------


def kill_worker(world: World) -> None:
    """With its pool, as containers and service managers do."""
    member = _one(world, world.victims())
    if member:
        _kill(world, member, Kind.WORKER_KILLED, group=True)


def kill_main(world: World) -> None:
    """And the processes of its pool go on without it, as after the kernel ran out of memory."""
    member = _one(world, [one for one in world.victims() if one.place.processes])
    if member:
        _kill(world, member, Kind.MAIN_KILLED, group=False)


def _kill(world: World, member: Member, kind: Kind, *, group: bool) -> None:
    begin = time.monotonic()
    member.signal(signal.SIGKILL, group=group)
    world.note(kind, begin, (member.name,))
    world.ended(member)


def kill_child(world: World) -> None:
    """Not while its worker starts: Celery gives up then."""
    member = _one(world, [one for one in world.ready_workers() if one.place.processes])
    children = member.children() if member else []
    if member and children:
        pid = world.rng.choice(children)
        begin = time.monotonic()
        _signal(pid, signal.SIGKILL)
        world.note(Kind.CHILD_KILLED, begin, (member.name,), pid)


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _freeze(world: World, kind: Kind, seconds: float, *, group: bool) -> None:
    member = _one(world, world.victims())
    if not member:
        return
    begin = time.monotonic()
    member.signal(signal.SIGSTOP, group=group)
    member.state = 'frozen'

    def thaw() -> None:
        if member.state == 'frozen':
            member.signal(signal.SIGCONT, group=group)
            member.state = 'up'
        world.note(kind, begin, (member.name,))

    world.later(seconds, thaw)


def _leases(world: World, span: tuple[float, float]) -> float:
    return world.settings.lease * world.rng.uniform(*span)


def freeze_worker(world: World) -> None:
    _freeze(world, Kind.FROZEN, _leases(world, LONG), group=True)


def freeze_main(world: World) -> None:
    _freeze(world, Kind.MAIN_FROZEN, _leases(world, LONG), group=False)


def pause_worker(world: World) -> None:
    _freeze(world, Kind.PAUSED, _leases(world, SHORT), group=True)


def freeze_child(world: World) -> None:
    """Its worker renews, so however long it lasts it costs nothing."""
    member = _one(world, [one for one in world.ready_workers() if one.place.processes])
    children = member.children() if member else []
    if not (member and children):
        return
    pid, begin = world.rng.choice(children), time.monotonic()
    _signal(pid, signal.SIGSTOP)

    def thaw() -> None:
        if pid in member.children():
            _signal(pid, signal.SIGCONT)
        world.note(Kind.CHILD_FROZEN, begin, (member.name,), pid)

    world.later(_leases(world, LONG), thaw)


def stop_worker(world: World) -> None:
    """A shutdown in order, as with each deployment."""
    member = _one(world, world.victims())
    if member:
        member.since = time.monotonic()
        member.state = 'stopping'
        member.signal(signal.SIGTERM, group=False)


def quit_worker(world: World) -> None:
    """A cold shutdown: what runs is cancelled, and runs again."""
    member = _one(world, [one for one in world.victims() if one.place.processes])
    if not member:
        return
    begin = time.monotonic()
    member.state = 'stopping'
    member.since = begin
    member.signal(signal.SIGQUIT, group=False)
    world.note(Kind.COLD, begin, (member.name,))


# -- producers -----------------------------------------------------------------------


def kill_producer(world: World) -> None:
    member = _one(world, world.living_producers())
    if member:
        _kill(world, member, Kind.PRODUCER_KILLED, group=True)


# -- the server ----------------------------------------------------------------------


def kill_server(world: World) -> None:
    if world.server_down:
        return
    begin = time.monotonic()
    world.server.kill()
    world.server_down = True
    kind = Kind.SERVER_KILLED
    if world.settings.appendfsync == 'everysec' and world.rng.random() < 0.5:
        kind = Kind.POWER_LOST
        world.meter.fail()

    def start() -> None:
        world.start_server()
        world.note(kind, begin)

    world.later(world.rng.uniform(0.1, 3.0), start)


def freeze_server(world: World) -> None:
    if world.server_down:
        return
    begin = time.monotonic()
    world.server.pause()
    world.server_down = True

    def thaw() -> None:
        world.server.resume()
        world.server_down = False
        world.note(Kind.SERVER_FROZEN, begin)

    world.later(_leases(world, world.rng.choice((SHORT, LONG))), thaw)


def set_clock(world: World) -> None:
    """Of the server, to and fro: by less than it needs to look like an outage, and by more."""
    if not world.clock.available or world.clock_is_wrong:
        return
    begin = time.monotonic()
    world.clock.set(world.rng.choice((-1, 1)) * _leases(world, (0.1, 3.0)))
    world.clock_is_wrong = True

    def set_right() -> None:
        world.clock.set(0.0)
        world.clock_is_wrong = False
        world.note(Kind.CLOCK, begin)

    world.later(_leases(world, (0.5, 2.0)), set_right)


def fill_server(world: World) -> None:
    """It has no memory left: it refuses what is published, and lets workers go on."""
    if world.server_down:
        return
    begin = time.monotonic()
    _limit_memory(world, 1)

    def empty() -> None:
        if not world.server_down:
            _limit_memory(world, 0)
        world.note(Kind.FULL, begin)

    world.later(world.rng.uniform(0.5, 3.0), empty)


def _limit_memory(world: World, limit: int) -> None:
    with world.client() as client:
        client.config_set('maxmemory', limit)


# -- the network ---------------------------------------------------------------------


def cut_connections(world: World) -> None:
    if world.server_down:
        return
    begin = time.monotonic()
    with world.client() as client:
        client.execute_command('CLIENT', 'KILL', 'TYPE', 'normal', 'SKIPME', 'yes')
    world.note(Kind.CUT, begin)


def reset_connections(world: World) -> None:
    begin = time.monotonic()
    world.proxy.cut()
    world.note(Kind.CUT, begin)


def lose_messages(world: World) -> None:
    """Single replies, or requests."""
    begin = time.monotonic()
    for _ in range(3):
        world.rng.choice((world.proxy.drop_reply, world.proxy.drop_request))(
            world.rng.randint(1, 40)
        )
    world.note(Kind.REPLY_LOST, begin)


def slow_down(world: World) -> None:
    begin = time.monotonic()
    world.proxy.delay(world.rng.uniform(0.02, 0.3))

    def end() -> None:
        world.proxy.delay(0)
        world.note(Kind.SLOW, begin)

    world.later(world.rng.uniform(1, 3), end)


def cut_off(world: World) -> None:
    """Nothing passes, and no connection is closed."""
    begin = time.monotonic()
    before = _behind(world)
    world.proxy.stop_forwarding()

    def heal() -> None:
        world.proxy.resume_forwarding()
        world.note(Kind.CUT_OFF, begin, tuple(sorted(before | _behind(world))))

    world.later(_leases(world, LONG), heal)


def _behind(world: World) -> set[str]:
    return {one.name for one in world.crew.members if one.lives and one.place.behind}


# -- chance --------------------------------------------------------------------------

#: How often each happens, among this many.
CARDS: dict[Action, int] = {
    kill_worker: 8,
    kill_main: 5,
    kill_child: 6,
    freeze_worker: 2,
    freeze_main: 1,
    pause_worker: 2,
    freeze_child: 1,
    stop_worker: 3,
    quit_worker: 1,
    kill_producer: 3,
    kill_server: 1,
    freeze_server: 1,
    fill_server: 2,
    set_clock: 2,
    cut_connections: 3,
    reset_connections: 1,
    lose_messages: 3,
    slow_down: 1,
    cut_off: 1,
}


class Deck:
    """All troubles in turn, in an order that the seed chooses: none is left out for long.

    Args:
        rng: chooses.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._cards: Iterator[Action] = iter(())

    def draw(self) -> Action:
        for card in self._cards:
            return card
        cards = [card for card, count in CARDS.items() for _ in range(count)]
        self._rng.shuffle(cards)
        self._cards = iter(cards)
        return self.draw()
