"""The values that cross the boundary between the store and its users."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

__all__ = (
    'Broadcast',
    'Claimed',
    'Delivery',
    'Dependencies',
    'Marks',
    'Origin',
    'Outgoing',
    'Policy',
    'QueueCounts',
    'Settlement',
    'Status',
    'Unique',
    'Verdict',
)


class Verdict(StrEnum):
    """What becomes of a delivery."""

    #: Done.
    ACK = 'ack'
    #: Will never succeed: a dead letter.
    FAIL = 'fail'
    #: Back to its place; counts as a delivery.
    REQUEUE = 'requeue'
    #: Back to its place, nobody has begun it.
    RELEASE = 'release'
    #: Done, but the work goes on: others will publish its id again.
    REPLACE = 'replace'
    #: Ended, because nobody wants it any more.
    CANCEL = 'cancel'
    #: No end: from now on it is not delivered again.  If its lease is lost, it has failed.
    ONCE = 'once'


class Status(IntEnum):
    """What the store answers to a renewal or a settlement."""

    #: Done, or not needed any more: its owner has published the next run.
    DONE = 1
    #: Nobody holds the message: it was settled before, or purged.
    UNHELD = 0
    #: It was taken from this delivery, which is fenced.
    FENCED = -1


class Policy(IntEnum):
    """What becomes of a job when something fails that it depends on."""

    #: It waits: what failed may be replayed.
    WAIT = 0
    #: It fails as well.
    FAIL = 1
    #: It runs all the same.
    IGNORE = 2


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What a job waits for.

    Args:
        on: keys of jobs, each once.
        policy: what to do when one of them fails.
        within: for each of ``on``, the milliseconds within which it is sure to be published; 0 for
            one that should be there by now, and counts as done if it is not.  Empty: all 0.
        after: for each of ``on``, keys of jobs of which one lives until it is published.  If
            none does, it has been published and has ended.  Empty: nothing is known.
    """

    on: tuple[str, ...]
    policy: Policy = Policy.WAIT
    within: tuple[int, ...] = ()
    after: tuple[tuple[str, ...], ...] = ()

    @property
    def features(self) -> dict[str, Any]:
        """As the scripts read them."""
        found: dict[str, Any] = {'on': self.on, 'policy': self.policy}
        if any(self.within):
            found['within'] = self.within
        if any(self.after):
            found['after'] = self.after
        return found


@dataclass(frozen=True, slots=True)
class Unique:
    """The key of a job that only one job may have at a time.

    Args:
        key: at most 300 bytes, see :mod:`kombu_reliable.transport.unique`.
        life: milliseconds after the publish for which the job has the key at most; 0: no limit.
        conflict: what becomes of the new job if another one has the key: ``skip``, ``raise``,
            ``replace``.
    """

    key: str
    life: int = 0
    conflict: str = 'skip'

    @property
    def features(self) -> dict[str, Any]:
        """As the scripts read it."""
        return {'key': self.key, 'life': self.life, 'conflict': self.conflict}


@dataclass(frozen=True, slots=True)
class Marks:
    """What a job is found by, and whether it is looked at after its end.

    Args:
        tags: words, each once.
        track: the name of its task, if it is to tell what befalls it; else None.
        retain: for how long it is kept once it has completed, in ms; None if nobody has said so.
        limit: how many completed jobs its queue keeps at most.
    """

    tags: tuple[str, ...] = ()
    track: str | None = None
    retain: int | None = None
    limit: int = 0

    @property
    def keep(self) -> str:
        """The retention as the scripts read it; ``''`` if nobody has said anything."""
        return '' if self.retain is None else f'{self.retain};{self.limit}'

    @property
    def features(self) -> dict[str, Any]:
        """As the scripts read them."""
        found: dict[str, Any] = {'history': True}
        if self.tags:
            found['tags'] = self.tags
        if self.track is not None:
            found['track'] = self.track
        if self.retain is not None:
            found['retain'] = self.keep
        return found


class Outgoing(NamedTuple):
    """A message on its way in.

    Args:
        id: key of the job, see :func:`kombu_reliable.envelope.pack_id`.
        queue: name of its queue.
        rank: 0-255, a higher one is claimed first.
        due: ``'0'`` at once, ``'+<ms>'`` from the server's now, ``'<ms>'`` since the epoch.
        envelope: what :func:`kombu_reliable.envelope.seal` made.
        run: token and key of the delivery whose next run this is, if it is one.
        depends: what it waits for, if it does.
        lane: by which throttles and turns it is held back, as the scripts read it: see
            :mod:`kombu_reliable.transport.throttles`.  ``''``: by none, None: nothing is said,
            so a next run keeps what the run before had.
        unique: the key that it does not share, if it has one.
        marks: tags, tracking and retention, if it has any.
    """

    id: str
    queue: str
    rank: int
    due: str
    envelope: bytes
    run: tuple[str, str] | None = None
    depends: Dependencies | None = None
    lane: str | None = None
    unique: Unique | None = None
    marks: Marks | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it has nothing that only some messages have."""
        return not (self.run or self.depends or self.lane or self.unique or self.marks)

    @property
    def features(self) -> str:
        """What only some messages have, as the JSON that the script reads; ``''`` for none."""
        if self.is_plain:
            return ''
        found: dict[str, Any] = {}
        if self.run is not None:
            found['run'] = self.run
        if self.depends is not None:
            found['depends'] = self.depends.features
        if self.lane is not None:
            found['throttles'] = self.lane
        if self.unique is not None:
            found['unique'] = self.unique.features
        if self.marks is not None:
            found.update(self.marks.features)
        return json.dumps(found)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A message on its way to everybody who listens to a fanout exchange."""

    exchange: str
    routing_key: str
    envelope: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message that was leased.

    Args:
        queue: where it lives.
        id: key of the job.
        token: proves that the delivery is ours.
        deliveries: counts this one, from 1.
        envelope: the message.
        published: when it was published, as its record says, in milliseconds.
        since: since when it waits, if that is neither its publish nor its delay; see
            ``lua/lib/since.lua``.
    """

    queue: str
    id: str
    token: str
    deliveries: int
    envelope: bytes
    published: bytes = field(default=b'', compare=False)
    since: str = field(default='', compare=False)


class Origin(NamedTuple):
    """Where a delivered message comes from."""

    queue: str
    #: Since when it waited to be claimed, in seconds by the server's clock, if that is known.
    ready_at: float | None
    #: A worker had it before, and lost it.
    lost: bool


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim.

    Args:
        deliveries: the messages leased.
        left: claimable work is left in the queues that were asked.
        wake_in: seconds until this worker must claim again; None if others watch the clock.
        statuses: what became of the settlements that came with the claim.
        problem: why a queue could not be read; the others were served all the same.
        kept: what is left is only for those who can start it at once.
        now: the server's time, in milliseconds.
    """

    deliveries: tuple[Delivery, ...]
    left: bool
    wake_in: float | None
    statuses: tuple[Status, ...] = ()
    problem: str = ''
    kept: bool = False
    now: int = 0


@dataclass(frozen=True, slots=True)
class Settlement:
    """The end of one delivery.

    Args:
        verdict: what becomes of it.
        queue: where it lives.
        id: key of the job.
        token: proves that the delivery is ours.
        detail: why, see :func:`kombu_reliable.transport.failure.detail_of`.
    """

    verdict: Verdict
    queue: str
    id: str
    token: str
    detail: str = ''


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """How many jobs a queue holds, by state."""

    ready: int
    delayed: int
    leased: int
    dead: int
    waiting: int = 0
    paused: bool = False
    throttled: int = 0
    completed: int = 0
