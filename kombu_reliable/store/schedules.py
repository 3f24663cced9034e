"""Schedules as data: what fires when, decided by the server.

The times of a schedule are computed by those who know its calendar; the scripts only compare
them.  Times are milliseconds since the epoch, of the server's clock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu_reliable.errors import InvalidArgument
from kombu_reliable.scripts import Call, translating
from kombu_reliable.store.operations import Operations, featured_fields
from kombu_reliable.types import Outgoing

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('AFTER_RUN', 'Declaration', 'Fired', 'Firing', 'ScheduleInfo', 'ScheduleStore',
           'Timing')  # fmt: skip

#: In place of the time of an occurrence: it is planned when the last run has ended.
AFTER_RUN = 'end'

#: Schedules that one call declares, or one round trip reads.
DECLARE_LIMIT = 50
READ_STEP = 200

#: How long, in milliseconds, a set of declarations counts as living after its last sign of life.
LIFE = 300_000

LONGEST_NAME = 1_000


class Timing(NamedTuple):
    """The next occurrence.

    Args:
        at: its time; None if there is none, :data:`AFTER_RUN` if that is not known yet.
        due: when it fires, which may be a little later.
    """

    at: int | str | None
    due: int | None = None

    @property
    def fields(self) -> tuple[str, str]:
        return ('' if self.at is None else str(self.at), '' if self.due is None else str(self.due))


#: No further occurrence.
NEVER = Timing(None)


@dataclass(frozen=True, slots=True)
class Declaration:
    """A schedule as code declares it.

    Args:
        name: of the schedule.
        digest: of all that follows but the timing.
        when: its calendar, as text that only the declarer reads.
        spec: what it publishes, likewise.
        rules: what the scripts read: ``overlap`` (0 or 1), ``after`` (0 or 1).
        timing: the first occurrence.
    """

    name: str
    digest: str
    when: str
    spec: str
    rules: str
    timing: Timing


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A schedule as it is kept.

    Args:
        name: of the schedule.
        revision: counts changes of what it is, not its runs.
        when: its calendar, as it was declared.
        spec: what it publishes.
        rules: what the scripts read.
        at: the next occurrence, see :class:`Timing`.
        due: when that fires.
        count: runs so far.
        last: the last occurrence that was published.
        fired: when something was published last.
        paused: it was stopped.
        orphaned: it does not fire, because no living program declares it any more.
        declared: code declares it.
        read_at: when this was read.
    """

    name: str
    revision: str
    when: str
    spec: str
    rules: dict[str, Any]
    at: int | str | None
    due: int | None
    count: int
    last: int | None
    fired: int | None
    paused: bool
    orphaned: bool
    declared: bool
    read_at: int


@dataclass(frozen=True, slots=True)
class Fired:
    """What came of an attempt to fire.

    Args:
        outcome: ``fired``, ``late`` (somebody else did, or it was changed), ``early``, ``overlap``,
            ``paused``, ``refused``, ``orphaned``, ``idle``.
        keys: of the jobs that were stored.
    """

    outcome: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Firing:
    """One attempt to fire.

    Args:
        name: of the schedule.
        revision: as it was read.
        at: the occurrence, as it was read; None for a run that somebody asked for.
        following: the occurrence after those that are published.
        declarer: the set of declarations of who fires.
        runs: how many occurrences are published.
        lines: for the history, JSON objects.
    """

    name: str
    revision: str
    at: int | str | None
    following: Timing = NEVER
    declarer: str = ''
    runs: int = 0
    lines: Sequence[Mapping[str, Any]] = field(default=())


class ScheduleStore:
    """Keeps schedules.

    Args:
        store: where they live.
        ticks: the queue in which those who fire are woken, with a message that is the name of a
            schedule.
    """

    def __init__(self, store: Store, ticks: str) -> None:
        self._store = store
        self._client: Any = store.client
        self._keys = store.keys
        self._ticks = ticks

    @property
    def _operations(self) -> Operations:
        return self._store.operations

    def now(self) -> int:
        """The server's time."""
        return self._store.now()

    # -- looking -----------------------------------------------------------------

    def get(self, name: str) -> ScheduleInfo | None:
        """A schedule by its name."""
        return self.read([name])[0]

    def read(self, names: Sequence[str]) -> list[ScheduleInfo | None]:
        """Schedules by their names, in that order."""
        found: list[ScheduleInfo | None] = []
        for at in range(0, len(names), READ_STEP):
            step = names[at : at + READ_STEP]
            with translating(), self._client.pipeline(transaction=False) as pipe:
                pipe.time()
                for name in step:
                    pipe.hgetall(self._keys.schedule(name))
                (seconds, micros), *replies = pipe.execute()
            now = self._operations.now
            if now is None:
                now = seconds * 1000 + micros // 1000
            found += [_info(*pair, now) for pair in zip(step, replies, strict=True)]
        return found

    def names(self, offset: int = 0, limit: int | None = None) -> list[str]:
        """The names of all schedules, by when they fire next; those that do not stand last."""
        last = -1 if limit is None else offset + limit - 1
        if limit is not None and limit <= 0:
            return []
        with translating():
            members = self._client.zrange(self._keys.schedules, offset, last)
        return [member.decode(errors='replace') for member in members]

    def __len__(self) -> int:
        with translating():
            return int(self._client.zcard(self._keys.schedules))

    def history(self, name: str, limit: int = 50) -> list[tuple[int, dict[str, Any]]]:
        """What a schedule did, the newest first: when, and a JSON object."""
        with translating():
            lines = self._client.lrange(self._keys.scheduled(name), 0, max(0, limit) - 1)
        found = []
        for line in lines if limit > 0 else ():
            at, _, rest = line.decode(errors='replace').partition(' ')
            try:
                found.append((int(at), dict(json.loads(rest))))
            except ValueError:
                continue  # foreign data
        return found

    # -- changing ----------------------------------------------------------------

    def put(
        self,
        name: str,
        fields: Mapping[str, str],
        timing: Timing | None = None,
        revision: str = '*',
        line: Mapping[str, Any] | None = None,
    ) -> bool:
        """Makes or changes a schedule.

        Args:
            name: of the schedule.
            fields: ``when``, ``spec``, ``rules``, ``paused``; ``''`` removes one.
            timing: the next occurrence; None leaves it as it is.
            revision: as it was read, ``''`` for a new one, ``'*'`` for any.
            line: for its history.

        Returns:
            False if there is none, it exists already, or it was changed since it was read.
        """
        check_name(name)
        at, due = ('=', '=') if timing is None else timing.fields
        flat = [text for pair in fields.items() for text in pair]
        noted = '' if line is None else json.dumps(line)
        call = self._call('schedule_put', bool, name, revision, at, due, noted, *flat)
        return bool(self._store.run(call))

    def delete(self, name: str) -> bool:
        """Removes a schedule; False if there is none."""
        return self._store.run(self._operations.call('schedule_delete', bool, name))

    def declare(
        self, declarer: str, declarations: Iterable[Declaration] = ()
    ) -> tuple[str, list[str]]:
        """Says what the code of a program declares, and that it is there; see
        ``lua/ops/schedule_declare.lua``.

        Args:
            declarer: stands for all declarations of that code; ``''`` if nobody will say again
                that they are still wanted.
            declarations: some or all of them.

        Returns:
            The declarers that live, as a text, behind a ``!`` if this one was not among them; and
            a word for each declaration.
        """
        flat = [_flat(one) for one in declarations]
        living, words = '', []
        for at in range(0, len(flat) or 1, DECLARE_LIMIT):
            step = [text for one in flat[at : at + DECLARE_LIMIT] for text in one]
            reply = self._store.repeat(self._call('schedule_declare', list, declarer, LIFE, *step))
            living, *rest = (text.decode() for text in reply)
            words += rest
        return living, words

    def fire(
        self, firing: Firing, lane: str, number: int, messages: Sequence[Outgoing] = ()
    ) -> Fired:
        """Publishes what is due, once however many try, and plans the next occurrence."""
        at, _ = Timing(firing.at).fields
        lines = [json.dumps(line) for line in firing.lines]
        call: Call[Fired] = self._call(
            'schedule_fire', _fired, firing.name, firing.revision, at, firing.declarer, LIFE,
            *firing.following.fields, firing.runs, len(lines), *lines, lane, number,
            *(part for one in messages for part in featured_fields(one)),
        )  # fmt: skip
        return self._store.repeat(call)

    def _call(self, operation: str, decode: Any, *args: Any) -> Call[Any]:
        return self._operations.call(operation, decode, self._ticks, *args)


def check_name(name: Any) -> str:
    """A name that a schedule can have.

    Raises:
        InvalidArgument: it cannot.
    """
    try:
        length = len(name.encode()) if isinstance(name, str) else 0
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= LONGEST_NAME:
        raise InvalidArgument(
            f'a schedule has a name of 1 to {LONGEST_NAME} bytes, not {name!r:.100}'
        )
    return str(name)


def _flat(one: Declaration) -> tuple[str, ...]:
    check_name(one.name)
    return (one.name, one.digest, one.when, one.spec, one.rules, *one.timing.fields)


def _fired(reply: Sequence[bytes]) -> Fired:
    outcome, *keys = (text.decode() for text in reply)
    return Fired(outcome, tuple(keys))


def _number(text: bytes | None) -> int | None:
    try:
        return int(float(text or b''))
    except ValueError:
        return None


def _info(name: str, raw: Mapping[bytes, bytes], now: int) -> ScheduleInfo | None:
    if b'when' not in raw or b'deleted' in raw:
        return None
    at = raw.get(b'at', b'')
    try:
        rules = json.loads(raw.get(b'rules', b'{}'))
    except ValueError:
        rules = {}  # damaged
    return ScheduleInfo(
        name=name,
        revision=raw.get(b'rev', b'').decode(),
        when=raw[b'when'].decode(errors='replace'),
        spec=raw.get(b'spec', b'{}').decode(errors='replace'),
        rules=rules if isinstance(rules, dict) else {},
        at=AFTER_RUN if at == AFTER_RUN.encode() else _number(at),
        due=_number(raw.get(b'due')),
        count=_number(raw.get(b'count')) or 0,
        last=_number(raw.get(b'last')),
        fired=_number(raw.get(b'fired')),
        paused=b'paused' in raw,
        orphaned=b'orphaned' in raw,
        declared=b'digest' in raw,
        read_at=now,
    )
