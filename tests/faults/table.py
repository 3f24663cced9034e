"""The table of operations: what was before, the operation, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.faults.world import World

__all__ = ('TABLE', 'Operation', 'operation')

Act = Callable[[], Any]


@dataclass(frozen=True)
class Operation:
    """An operation, with all that must be true of it.

    Unless something else is said: it succeeds, and gives and leaves behind what it does without
    a fault; or it raises an error that tells of a lost connection, has changed nothing or all, and
    succeeds when it is repeated.

    Args:
        name: of the operation.
        prepare: makes what there is before, past the proxy; returns the operation.
        again: what else may come of a repetition, the operation's own or the caller's, because it
            was done the first time: values; and of the caller's, classes of errors.
        steps: why an error may leave a part of it done; the repetition does the rest.
        loose: families of keys in which a fault may leave a trace.
        patience: how many seconds longer than usual it may take.
        late: families in which a request may leave a trace that arrives when all is over: it was
            given up, repeated, and followed by its opposite.
        cold: nothing is connected before.
        safe: it needs a server with a log.
        slow: with faults it takes so long that it is left to the long run.
        errors: classes of errors that tell it as well.
    """

    name: str
    prepare: Callable[[World], Act]
    again: tuple[Any, ...] = ()
    steps: str = ''
    loose: tuple[str, ...] = ()
    patience: float = 0.0
    late: tuple[str, ...] = ()
    cold: bool = False
    safe: bool = False
    slow: bool = False
    errors: tuple[type[Exception], ...] = ()

    def __str__(self) -> str:
        return self.name

    def forgetting(self) -> Operation:
        """The same on a server that has just forgotten all scripts, as after a restart."""

        def prepare(world: World) -> Act:
            act = self.prepare(world)
            world.client.script_flush()
            return act

        return replace(self, name=f'{self.name}, scripts forgotten', prepare=prepare)


TABLE: dict[str, Operation] = {}


def operation(**about: Any) -> Callable[[Callable[[World], Act]], Callable[[World], Act]]:
    """Enters a function that prepares an operation; see :class:`Operation`."""

    def enter(prepare: Callable[[World], Act]) -> Callable[[World], Act]:
        part = prepare.__module__.rpartition('.')[2].removeprefix('of_')
        name = f'{part}: {prepare.__name__.strip("_").replace("_", " ")}'
        assert name not in TABLE, name
        TABLE[name] = Operation(name, prepare, **about)
        return prepare

    return enter
