"""The benchmarks run, and say what they measured; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, '-m', *arguments], cwd=ROOT, capture_output=True, text=True, timeout=150
    )


@pytest.mark.slow
def test_worker_benchmark_measures_both_transports() -> None:
    done = run('benchmarks.worker', '--quick', '--json', '--only', 'publish,batch,drain,latency')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    wanted = {'publish_rate', 'publish_cpu', 'single_rate', 'drain_rate', 'main_cpu',
              'server_cpu', 'latency_p50', 'latency_p99'}  # fmt: skip
    for name in ('kombu redis', 'reliable'):
        figures = report['figures'][name]
        assert wanted <= set(figures)
        assert all(value > 0 for values in figures.values() for value in values), figures
    assert 'round 1/1 drain' in done.stderr, 'progress'


@pytest.mark.slow
def test_scale_benchmark_measures_each_script() -> None:
    done = run('benchmarks.scale', '--size', '5000', '--repeat', '2', '--json')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {(row['kind'], row['script']) for row in report} == {
        (kind, script)
        for kind in ('queued', 'delayed')
        for script in ('publish', 'claim', 'settle')
    }
    assert all(row['large'] > 0 and row['small'] > 0 and row['control'] > 0 for row in report)


def test_a_missing_peer_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('BENCH_RABBITMQ', 'amqp://guest:guest@127.0.0.1:1//')
    done = run('benchmarks.worker', '--quick', '--peer', 'rabbitmq')
    assert done.returncode == 1
    assert 'no RabbitMQ answers' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('name', ['worker', 'scale', 'lateness', 'profile_worker'])
def test_help_teaches(name: str) -> None:
    done = run(f'benchmarks.{name}', '--help')
    assert done.returncode == 0
    assert f'python -m benchmarks.{name}' in done.stdout
