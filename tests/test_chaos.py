"""Short runs of the chaos and of the long haul; the long ones are commands of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.long_haul import Sample, rows, spark

ROOT = Path(__file__).parents[1]

#: Its first sixteen troubles are of twelve kinds, and nobody is left out.
SEED = '18903'


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=170
    )


@pytest.mark.slow
def test_nothing_is_lost_in_a_short_chaos() -> None:
    done = run(
        'benchmarks.chaos', '--seed', SEED, '--seconds', '16', '--kills', '1', '--pace', '0.9',
        '--workers', '3', '--producers', '2', '--lease', '3', '--json', '--check',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    [report] = json.loads(done.stdout)
    assert not any(report['faults'].values())
    figures = report['figures']
    assert figures['kills of workers'] >= 1
    assert sum(report['troubles'].values()) >= 4
    assert figures['tasks that ran'] > 200
    assert 'kills of workers and' in done.stderr, 'progress'


@pytest.mark.matrix
@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('appendfsync', ['always', 'everysec'])
def test_nothing_is_lost_in_other_chaos(seed: int, appendfsync: str) -> None:
    done = run(
        'benchmarks.chaos', '--seed', str(seed), '--seconds', '60', '--workers', '3',
        '--appendfsync', appendfsync, '--check',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]


@pytest.mark.matrix
def test_kombus_transport_in_the_same_chaos() -> None:
    done = run('benchmarks.chaos', '--seconds', '20', '--workers', '3', '--peer', 'kombu', '--json')
    assert done.returncode == 0, done.stderr[-3000:]
    ours, theirs = json.loads(done.stdout)
    assert theirs['settings']['transport'] == 'kombu'
    assert theirs['figures']['tasks that ran'] > 100
    assert ours['good']


@pytest.mark.matrix
def test_the_long_haul_measures() -> None:
    done = run('benchmarks.long_haul', '--tasks', '200', '--samples', '2', '--json')
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    assert len(report['samples']) == 2
    assert all(row['late'] > 0 for row in report['rows'])
    assert 'tasks: main' in done.stderr, 'progress'


FLAT = Sample(
    tasks=0, main_rss=70.0, pool_rss=60.0, server_rss=12.0, server_used=3.0, main_files=30,
    pool_files=17, server_files=25, main_threads=3, pool_threads=1, server_threads=6,
)  # fmt: skip


def grown(**per_step: float) -> list[str]:
    """What is found to grow if something grows by so much with each of twenty samples."""
    samples = [
        replace(
            FLAT, tasks=n, **{name: asdict(FLAT)[name] + n * by for name, by in per_step.items()}
        )
        for n in range(20)
    ]
    return [row.name for row in rows(samples) if not row.flat]


@pytest.mark.parametrize(
    ('growth', 'found'),
    [
        ({}, []),
        ({'main_rss': 0.1}, []),
        ({'main_rss': 0.4}, ['main_rss']),
        ({'pool_rss': 1.0, 'main_files': 1}, ['pool_rss', 'main_files']),
        ({'server_rss': 0.1}, ['server_rss']),
        ({'pool_threads': 1}, ['pool_threads']),
    ],
)
def test_what_grows_is_found(growth: dict[str, Any], found: list[str]) -> None:
    assert grown(**growth) == found


def test_warm_up_and_ups_and_downs_are_no_growth() -> None:
    values = [30, 60, 90, 110, 120, *([118, 120, 121] * 5)]
    samples = [replace(FLAT, tasks=n, pool_rss=value) for n, value in enumerate(values)]
    assert all(row.flat for row in rows(samples))
    assert spark([1, 2, 3]) == '▁▄█'
    assert spark([2, 2]) == '▁▁'


@pytest.mark.parametrize('name', ['chaos', 'long_haul'])
def test_help_teaches(name: str) -> None:
    done = run(f'benchmarks.{name}', '--help')
    assert done.returncode == 0
    assert f'python -m benchmarks.{name}' in done.stdout
