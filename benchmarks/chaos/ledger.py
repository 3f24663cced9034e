"""What was submitted, what ran, and what went wrong: plain files that only grow.

Each line is one JSON object, written in one piece whoever else writes.  Times are those of
``time.monotonic``, which all processes of a machine share, and no step of the clock moves.
Nothing here is ever read from the broker.

=============  =============================================================================
``submitted``  ``asked`` before a publish; ``stored`` when it has returned, ``refused`` if it
               raised.  A producer that dies in between writes neither.
``ran``        ``start`` and ``end`` of each run of a task; ``dies`` before it kills itself;
               ``ready`` of a worker.
``troubles``   each when it is over, with its beginning.
=============  =============================================================================
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = (
    'Ledger',
    'Pen',
    'Run',
    'Submission',
    'Tail',
    'Trouble',
    'runs_from',
    'submissions_from',
    'troubles_from',
)

#: A trouble that befalls all workers alike.
EVERYBODY = '*'

Line = dict[str, Any]


class Pen:
    """Appends lines to a file; a process that is killed leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: str, **fields: Any) -> None:
        os.write(self._file, json.dumps({'event': event, **fields}).encode() + b'\n')

    def close(self) -> None:
        os.close(self._file)


class Tail:
    """What is added to a file, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def new(self) -> bytes:
        if not self._path.exists():
            return b''
        with self._path.open('rb') as file:
            file.seek(self._at)
            data = file.read()
        end = data.rfind(b'\n') + 1  # somebody may be writing the last one
        self._at += end
        return data[:end]


@dataclass(frozen=True)
class Submission:
    """A task that somebody wanted to run.

    Args:
        id: of the task.
        kind: what it does, see :mod:`.app`.
        at: when the publish began.
        stored: when it had returned; None if that is not known, or if it failed.
        needs: ids of the tasks that have to succeed first.
        limit: the throttle it is under.
        key: its unique key.
        due: not to be started before.
        instead: the id of the task that has its unique key, if it was skipped for that.
        error: the type of what the publish raised.
    """

    id: str
    kind: str
    at: float
    stored: float | None = None
    needs: tuple[str, ...] = ()
    limit: str = ''
    key: str = ''
    due: float = 0.0
    instead: str = ''
    error: str = ''

    @property
    def wanted(self) -> bool:
        """Whether it must run."""
        return self.stored is not None and not self.instead


@dataclass
class Run:
    """One run of a task.

    Args:
        id: of the task.
        kind: what it does.
        attempt: the number of retries before it.
        delivery: how often this attempt had been delivered; 0 if the transport does not say.
        worker: the incarnation of the worker.
        pid: the process, or the worker's if its pool has threads.
        start: when it began.
        end: when it ended; None if it did not.
        how: ``done``, ``retry``, ``rejected`` (its retry could not be published), ``failed``;
            ``''`` if it did not end.
    """

    id: str
    kind: str
    attempt: int
    delivery: int
    worker: str
    pid: int
    start: float
    end: float | None = None
    how: str = ''


@dataclass(frozen=True)
class Trouble:
    """Something that went wrong.

    Args:
        kind: what, see :mod:`.troubles`.
        begin: when it began.
        end: when it was over.
        workers: whom it befell; ``('*',)``: all.
        pid: the process of a pool; 0: the whole worker.
    """

    kind: str
    begin: float
    end: float
    workers: tuple[str, ...] = ()
    pid: int = 0

    def befell(self, worker: str, pid: int = 0) -> bool:
        if EVERYBODY not in self.workers and worker not in self.workers:
            return False
        return self.pid in (0, pid)


@dataclass
class Ledger:
    """The three files of a run, below one directory."""

    directory: Path
    submitted: Path = field(init=False)
    ran: Path = field(init=False)
    troubles: Path = field(init=False)

    def __post_init__(self) -> None:
        for name in ('submitted', 'ran', 'troubles'):
            setattr(self, name, self.directory / name)

    def read(self) -> tuple[dict[str, Submission], list[Run], list[Trouble]]:
        ran = list(_lines(self.ran))
        return (
            submissions_from(_lines(self.submitted)),
            runs_from(ran),
            sorted([*troubles_from(_lines(self.troubles)), *_deaths(ran)], key=lambda t: t.begin),
        )


def _lines(path: Path) -> Iterator[Line]:
    if path.exists():
        with path.open() as file:
            for line in file:
                if line.endswith('\n'):
                    yield json.loads(line)


def submissions_from(lines: Iterator[Line]) -> dict[str, Submission]:
    """Submissions by id, in the order in which they were asked for."""
    asked: dict[str, Line] = {}
    for line in lines:
        event = line.pop('event')
        if event == 'asked':
            asked[line['id']] = line
        elif event == 'stored':
            asked[line['id']] |= {'stored': line['at'], 'instead': line.get('instead', '')}
        elif event == 'refused':
            asked[line['id']]['error'] = line['error']
    return {
        name: Submission(**{**line, 'needs': tuple(line.get('needs', ()))})
        for name, line in asked.items()
    }


def runs_from(lines: list[Line]) -> list[Run]:
    """All runs in the order in which they began."""
    # The same delivery may run twice at once, in threads, if the broker is a bad one.
    unfinished: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    runs: list[Run] = []
    for line in lines:
        if line['event'] not in ('start', 'end'):
            continue
        who = (line['id'], line['attempt'], line['delivery'], line['worker'], line['pid'])
        if line['event'] == 'start':
            run = Run(line['id'], line['kind'], *who[1:], start=line['at'])
            unfinished[who].append(run)
            runs.append(run)
        else:
            run = unfinished[who].pop(0)
            run.end, run.how = line['at'], line['how']
    return sorted(runs, key=lambda run: run.start)


def troubles_from(lines: Iterator[Line]) -> list[Trouble]:
    return [
        Trouble(
            line['kind'], line['begin'], line['end'], tuple(line['workers']), line.get('pid', 0)
        )
        for line in lines
    ]


def _deaths(ran: list[Line]) -> Iterator[Trouble]:
    """Tasks that killed their own process."""
    for line in ran:
        if line['event'] == 'dies':
            yield Trouble('killed itself', line['at'], line['at'], (line['worker'],), line['pid'])
