"""The benchmarks run, and say what they measured; their figures are not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import Wire
from benchmarks.report import BARS, TITLES, verdicts
from kombu_reliable.keys import Keys
from kombu_reliable.options import Options
from kombu_reliable.store import Operations, Store
from kombu_reliable.types import Outgoing
from tests.support.servers import Server
from tests.support.wait import wait_for

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
def test_installed_benchmark_measures_pairs() -> None:
    done = run('benchmarks.installed', '--quick', '--json')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    [(plain, installed)] = report['pairs']
    assert report['ratio'] == installed / plain > 0


@pytest.mark.slow
def test_tracked_benchmark_measures_pairs() -> None:
    done = run('benchmarks.tracked', '--quick', '--json')
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    [(plain, tracked)] = report['pairs']
    assert report['ratio'] == tracked / plain > 0


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


def test_commands_inside_scripts_and_of_the_observer_do_not_count(
    server: Server, database: int
) -> None:
    with server.client(db=database) as observer, server.client(db=database) as client:
        observer.ping()
        wire = Wire(server)
        store = Store(client, Operations(Keys(database), Options()))
        store.load_scripts()
        with wire:
            for number in range(1, 51):
                store.run(store.operations.publish('lane', number, [_message(number)]))
                observer.ping()
            wait_for(lambda: wire.count >= 50, what='the last command')
            observer.ping()
            store.run(store.operations.publish('lane', 51, [_message(51)]))
            wait_for(lambda: wire.count >= 51, what='the end')
    assert wire.count == 51


def _message(number: int) -> Outgoing:
    return Outgoing(f'id{number}', 'celery', 0, '0', b'envelope')


def results(**ours: list[float]) -> dict[str, dict[str, list[float]]]:
    base = {figure: [1.0, 2.0, 4.0] for figure in TITLES}
    return {'kombu redis': base, 'reliable': {**base, **ours}}


def test_bars_compare_values_of_the_same_round() -> None:
    found = {
        text: (value, ok) for text, value, ok in verdicts(results(drain_rate=[3.0, 6.0, 12.0]))
    }
    drain = BARS[0].text
    assert 'drain >= 2.5' in drain
    assert found[drain] == (3.0, True)
    found = {text: (value, ok) for text, value, ok in verdicts(results(drain_rate=[3.0, 4.0, 8.0]))}
    assert found[drain] == (2.0, False)


def test_a_bar_that_was_not_measured_is_missed() -> None:
    found = verdicts(results(drain_rate=[]))
    assert found[0] == (BARS[0].text, None, False)


def test_a_missing_peer_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('BENCH_RABBITMQ', 'amqp://guest:guest@127.0.0.1:1//')
    done = run('benchmarks.worker', '--quick', '--peer', 'rabbitmq')
    assert done.returncode == 1
    assert 'no RabbitMQ answers' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'name', ['worker', 'scale', 'lateness', 'profile_worker', 'installed', 'stats', 'tracked']
)
def test_help_teaches(name: str) -> None:
    done = run(f'benchmarks.{name}', '--help')
    assert done.returncode == 0
    assert f'python -m benchmarks.{name}' in done.stdout
