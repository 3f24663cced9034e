"""What becomes of an every-second schedule while its processes are killed, and what many cost.

    python -m benchmarks.schedules [--seconds 60] [--many 10000] [--json] [--check]

``workers``: three workers fire it; every 2 s the oldest is killed (-9) and another one started.
``beat``: one worker that stays, and Celery's own beat, which is killed and started again likewise.
``two beats``: the same with two of Celery's own, one of which is killed in turn, as somebody might
run them who cannot afford one that is down.

``--check`` ends with an error if our workers left an occurrence out, or fired one twice.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import celery_ext
from celery_ext.definition import define
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet, fleet

TASK = 'tests.support.scheduled.tick'
ENTRY = {'task': TASK, 'schedule': 1.0, 'backlog': 60}
STOCK = 'celery.beat:PersistentScheduler'
PAUSE = 2.0
GAPS = 'occurrences left out or doubled'


@contextmanager
def world(**settings: Any) -> Iterator[tuple[Fleet, str]]:
    with ExitStack() as stack:
        server = stack.enter_context(Server('valkey'))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f'reliable+redis://127.0.0.1:{server.port}/0'
        yield stack.enter_context(fleet(directory, url, **settings)), url


def figures(fleet: Fleet, begin: float, end: float) -> dict[str, Any]:
    """What was sent in a time, against one task a second."""
    first: dict[str, float] = {}
    for line in fleet.ledger.lines('tick'):
        first.setdefault(line['id'], line['at'])
    sent = sum(begin <= at < end for at in first.values())
    return {
        'seconds': int(end - begin),
        'sent': sent,
        'left out, at least': max(0, int(end - begin) - sent),
        'run again': len(fleet.ledger.lines('tick')) - len(first),
    }


def by_workers(seconds: float) -> dict[str, Any]:
    config = {'beat_schedule': {'second': ENTRY}}
    with world(module='tests.support.scheduled', config=config) as (crew, _):
        for _ in range(3):
            crew.start(concurrency=1)
        crew.ledger.wait(2, 'tick')
        begin = time.time()
        while time.time() < begin + seconds:
            time.sleep(PAUSE)
            [victim, *_] = [one for one in crew.workers if one.process.poll() is None]
            victim.kill()
            crew.start(concurrency=1, ready=False)
        # Those that were started last make up what is missing.
        crew.ledger.wait(len(crew.ledger.lines('tick')) + 3, 'tick', timeout=60)
        schedule = celery_ext.install(crew.app()).schedules['second']
        schedule.pause()
        end, runs = time.time(), schedule.refresh().runs
        wait_for(lambda: len({one['id'] for one in crew.ledger.lines('tick')}) >= runs, 20)
        return {
            **figures(crew, begin, end + 1),
            GAPS: _gaps(schedule),
        }


def _gaps(schedule: Any) -> int:
    times = [one.scheduled_for for one in schedule.history(50) if one.event == 'fired']
    times = sorted(one.timestamp() for one in times)
    return sum(round(later - earlier) != 1 for earlier, later in itertools.pairwise(times))


def by_beat(seconds: float, count: int) -> dict[str, Any]:
    entry = {name: value for name, value in ENTRY.items() if name != 'backlog'}
    config = {'beat_schedule': {'second': entry}, 'beat_scheduler': STOCK}
    with world(module='tests.support.scheduled', config=config) as (crew, _), ExitStack() as stack:
        crew.start('--without-schedules', concurrency=1)
        places = range(count)
        running = {place: _beat(crew, place) for place in places}
        stack.callback(lambda: [_kill(one) for one in running.values()])
        crew.ledger.wait(2, 'tick', timeout=40)
        begin, turn = time.time(), 0
        while time.time() < begin + seconds:
            time.sleep(PAUSE)
            place = turn % count
            turn += 1
            _kill(running[place])
            running[place] = _beat(crew, place)
        # Those that were started last make up what they can.
        crew.ledger.wait(len(crew.ledger.lines('tick')) + 3, 'tick', timeout=60)
        return figures(crew, begin, time.time())


def _beat(crew: Fleet, place: int) -> subprocess.Popen[bytes]:
    with (crew.directory / f'beat{place}.log').open('ab') as log:
        return subprocess.Popen(
            [sys.executable, '-m', 'celery', '-A', crew.module, 'beat', '--pidfile=',
             '-s', str(crew.directory / f'beat{place}.db'), '-S', STOCK],
            cwd=ROOT, env=crew.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def _kill(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def many(count: int) -> dict[str, Any]:
    """Schedules that are all due at once, fired by one worker with one process."""
    with world(module='tests.support.scheduled') as (crew, _):
        ext = celery_ext.install(crew.app())
        client: Any = ext.store.client
        store, before = ext.schedules.store, client.info('memory')['used_memory']
        begin, now = time.monotonic(), store.now()
        due = now + max(10_000, count * 2)
        for number in range(count):
            made = define(ext.app, f's{number}', TASK, 3600, args=[number])
            fields = {'when': made.when, 'spec': made.spec, 'rules': made.rules}
            assert store.put(made.name, fields, made.timing(due), '')
        created = time.monotonic() - begin
        size = (client.info('memory')['used_memory'] - before) / count
        begin = time.monotonic()
        assert len([one.name for one in ext.schedules]) == count
        listed = time.monotonic() - begin
        crew.start('-Q', 'elsewhere', concurrency=1)
        wait_for(lambda: ext.queues['celery'].counts().ready >= count, 300, 'all have fired')
        times = [ext.schedules[f's{n}'].last_run for n in (*range(0, count, 97), count - 1)]
        last = max(one.timestamp() for one in times if one is not None)
        return {
            'schedules': count,
            'bytes each': round(size),
            'created per second': round(count / created),
            'all listed in, s': round(listed, 2),
            'fired per second': round(count / (last - due / 1000)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seconds', type=float, default=60, help='of kills (default: 60)')
    parser.add_argument('--many', type=int, default=10_000, help='schedules (default: 10,000)')
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument(
        '--check', action='store_true', help='fail if an occurrence was left out or fired twice'
    )
    options = parser.parse_args()
    report: dict[str, dict[str, Any]] = {}
    if options.many:
        report['many'] = many(options.many)
    if options.seconds:
        report['workers'] = by_workers(options.seconds)
        report['beat'] = by_beat(options.seconds, 1)
        report['two beats'] = by_beat(options.seconds, 2)
    if options.json:
        print(json.dumps(report))
    else:
        for name, found in report.items():
            print(f'{name}: ' + ', '.join(f'{key} {value}' for key, value in found.items()))
    if options.check and report.get('workers', {}).get(GAPS):
        sys.exit('our workers left an occurrence out, or fired one twice')


if __name__ == '__main__':
    main()
