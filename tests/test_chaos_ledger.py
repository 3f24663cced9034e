"""The ledger of the chaos is read as it was written, also where a kill has cut it short."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.chaos.kinds import Kind
from benchmarks.chaos.ledger import Ledger, Pen, Submission, Tail, runs_from
from tests.test_chaos_verdict import bad, job, judged, ran, trouble


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    who = {'attempt': 0, 'delivery': 1, 'worker': 'w1.1', 'pid': 7}
    submitted, tasks, troubles = (
        Pen(path) for path in (ledger.submitted, ledger.ran, ledger.troubles)
    )
    submitted.write('asked', id='a', kind='short', at=1.0, needs=['x'], limit='', key='', due=0.0)
    submitted.write('asked', id='b', kind='short', at=2.0)
    submitted.write('stored', id='a', at=1.5)
    submitted.write('asked', id='c', kind='short', at=3.0)
    submitted.write('refused', id='c', error='ServerFull')
    tasks.write('ready', worker='w1.1')
    tasks.write('start', id='a', kind='short', at=2.0, **who)
    tasks.write('end', id='a', kind='short', at=3.0, how='done', **who)
    tasks.write('start', id='p', kind='poison', at=4.0, **who)
    tasks.write('dies', id='p', kind='poison', at=4.1, **who)
    troubles.write('trouble', kind=Kind.FROZEN, begin=2.0, end=3.0, workers=['w1.1'], pid=0)
    with ledger.ran.open('a') as file:
        file.write('{"event": "sta')  # cut short by a kill
    jobs, runs, found = ledger.read()
    assert jobs['a'] == Submission('a', 'short', 1.0, stored=1.5, needs=('x',))
    assert (jobs['b'].stored, jobs['b'].error) == (None, '')
    assert (jobs['c'].stored, jobs['c'].error) == (None, 'ServerFull')
    assert runs == [ran('a', 2.0, 3.0), ran('p', 4.0, kind='poison')]
    assert found == [
        trouble(Kind.FROZEN, 2.0, 3.0), trouble(Kind.SUICIDE, 4.1, pid=7)
    ]  # fmt: skip


def test_a_process_that_runs_the_same_delivery_twice_is_two_runs() -> None:
    who = {'id': 'a', 'kind': 'short', 'attempt': 0, 'delivery': 1, 'worker': 'w1.1', 'pid': 7}
    lines = [
        {'event': 'start', 'at': 1.0, **who}, {'event': 'end', 'at': 2.0, 'how': 'done', **who},
        {'event': 'start', 'at': 3.0, **who}, {'event': 'end', 'at': 4.0, 'how': 'done', **who},
    ]  # fmt: skip
    runs = runs_from(lines)
    assert [(run.start, run.end) for run in runs] == [(1.0, 2.0), (3.0, 4.0)]
    assert bad(judged([job('a')], runs)) == {'doubled without a reason': 1}


def test_a_tail_sees_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    tail = Tail(path)
    assert tail.new() == b''
    path.write_bytes(json.dumps({'n': 1}).encode() + b'\n{"n"')
    assert tail.new() == b'{"n": 1}\n'
    assert tail.new() == b''
    with path.open('ab') as file:
        file.write(b': 2}\n')
    assert tail.new() == b'{"n": 2}\n'
