"""What can go wrong, by name, and what each means for who holds a task."""

from __future__ import annotations

from enum import StrEnum

__all__ = ('ALONE', 'FATAL', 'OUTAGES', 'WORKER_KILLS', 'Kind')


class Kind(StrEnum):
    WORKER_KILLED = 'worker killed'
    MAIN_KILLED = 'main process killed'
    CHILD_KILLED = 'pool process killed'
    SUICIDE = 'killed itself'
    COLD = 'cold shutdown'
    WARM = 'warm shutdown'
    PRODUCER_KILLED = 'producer killed'
    FROZEN = 'worker frozen'
    PAUSED = 'worker paused'
    MAIN_FROZEN = 'main process frozen'
    CHILD_FROZEN = 'pool process frozen'
    CUT_OFF = 'worker cut off'
    CUT = 'connections cut'
    REPLY_LOST = 'reply lost'
    SLOW = 'slow network'
    SERVER_KILLED = 'server killed'
    POWER_LOST = 'power lost'
    SERVER_FROZEN = 'server frozen'
    STALLED = 'server stalled by itself'
    FULL = 'memory full'
    CLOCK = "server's clock stepped"


#: Kills of a worker as a whole, or of the process that holds its leases.
WORKER_KILLS = frozenset({Kind.WORKER_KILLED, Kind.MAIN_KILLED})

#: Whoever held a task there does not any more.
FATAL = WORKER_KILLS | {Kind.CHILD_KILLED, Kind.SUICIDE, Kind.COLD}

#: A worker can neither renew nor settle meanwhile, and the others can.
ALONE = frozenset({Kind.FROZEN, Kind.PAUSED, Kind.MAIN_FROZEN, Kind.CUT_OFF})

#: Nobody can.
OUTAGES = frozenset({Kind.SERVER_KILLED, Kind.POWER_LOST, Kind.SERVER_FROZEN, Kind.STALLED})
