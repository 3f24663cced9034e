"""The faults that befall each call, and how each is set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.calls import Call, same_kind
from tests.support.proxy import Fault, Kind, Proxy

__all__ = ('AT_A_CALL', 'BEFORE', 'LATE', 'SLOW', 'TIMEOUT', 'Idle', 'Kindred', 'strike')

#: The socket timeout of the clients under test, in seconds: silence is found after it.
TIMEOUT = 0.5

#: ... what is slow arrives within it, what is late does not.
SLOW = 0.1
LATE = 1.2


@dataclass(frozen=True)
class Kindred:
    """A fault at a call.

    Args:
        name: for people.
        kind: what the proxy does.
        seconds: for what comes late.
    """

    name: str
    kind: Kind
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Idle:
    """A fault between the calls: of all connections there are before the operation begins."""

    name: str
    befall: Callable[[Proxy], None]

    def __str__(self) -> str:
        return self.name


AT_A_CALL = (
    Kindred('closed before the request', Kind.CUT_REQUEST),
    Kindred('reset before the request', Kind.RESET_REQUEST),
    Kindred('closed in the request', Kind.TORN_REQUEST),
    Kindred('silent before the request', Kind.SILENT_REQUESTS),
    Kindred('request later than the timeout', Kind.LATE_REQUEST, LATE),
    Kindred('half-closed towards the server', Kind.CLOSED_TO_SERVER),
    Kindred('half-closed towards the client', Kind.CLOSED_TO_CLIENT),
    Kindred('closed before the reply', Kind.CUT_REPLY),
    Kindred('reset before the reply', Kind.RESET_REPLY),
    Kindred('closed in the reply', Kind.TORN_REPLY),
    Kindred('silent before the reply', Kind.SILENT_REPLIES),
    Kindred('reply later than the timeout', Kind.LATE_REPLY, LATE),
    Kindred('slow reply', Kind.LATE_REPLY, SLOW),
)

BEFORE = (
    Idle('all connections reset before', Proxy.cut),
    Idle('all connections silent before', Proxy.strand),
)


def strike(proxy: Proxy, fault: Kindred, call: Call) -> Fault:
    """Has a fault befall a call that is still to come."""
    return proxy.fault(fault.kind, call.n, same_kind(call.kind), fault.seconds)
