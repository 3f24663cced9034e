"""Figures for Prometheus, in Flower and alone; traces of OpenTelemetry."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from celery import Celery
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

import celery_ext
from celery_ext import Extension
from celery_ext.metrics import Collector, register
from kombu_reliable import Counting
from tests.support.proxy import Proxy
from tests.support.servers import Server, free_port
from tests.support.wait import wait_for
from tests.support.workers import ROOT, Fleet, task

Samples = dict[tuple[str, ...], float]


def read(text: str) -> Samples:
    """By name and values of labels."""
    return {
        (
            sample.name.removeprefix('celery_reliable_'),
            *(sample.labels[name] for name in sorted(sample.labels)),
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith('celery_reliable')
    }


def scrape(collector: Collector) -> Samples:
    registry = prometheus_client.CollectorRegistry()
    registry.register(collector)
    return read(prometheus_client.generate_latest(registry).decode())


def fetch(port: int) -> Samples:
    # Nothing of this machine's proxies.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f'http://127.0.0.1:{port}/metrics', timeout=10) as answer:
        return read(answer.read().decode())


@contextlib.contextmanager
def app_of(url: str, **options: Any) -> Iterator[Extension]:
    app = Celery('shop', broker=url)
    app.conf.broker_transport_options = options
    yield celery_ext.install(app)
    app.close()


def fill(ext: Extension) -> None:
    """Three that are ready, one delayed, one with a worker; two runs and a failure."""
    for number in range(4):
        ext.app.send_task('shop.pay', queue='mail', priority=number)
    ext.app.send_task('shop.pay', queue='mail', countdown=60)
    with ext.app.connection_for_write() as connection:
        # Nobody acknowledges it, and it is held until the connection is gone.
        assert connection.default_channel.basic_get('mail')
        counting = Counting()
        for seconds in (0.02, 3.0):
            counting.ran('mail', 'shop.pay', seconds)
        counting.happened('mail', 'shop.pay', 'failed')
        counting.waited('mail', 'shop.pay', 0.7)
        counting.hand_over(ext.store)
        ext.store.presence.beat('web:1:x', 30, 0, {})


def test_figures(url: str) -> None:
    with app_of(url) as ext:
        fill(ext)
        found = scrape(Collector(ext))
        assert found['up',] == 1
        jobs = {state: found['jobs', 'mail', state] for state in ('ready', 'delayed', 'failed')}
        assert jobs == {'ready': 3, 'delayed': 1, 'failed': 0}
        assert found['jobs', 'mail', 'leased'] == 1
        assert 0 <= found['oldest_waiting_seconds', 'mail'] < 30
        assert found['queue_paused', 'mail'] == 0
        assert found['leases_lost_total',] == 0
        assert found['workers', 'alive'] == 1
        assert found['run_seconds_count', 'mail', 'shop.pay'] == 2
        assert found['run_seconds_sum', 'mail', 'shop.pay'] == pytest.approx(3.02)
        buckets = [
            found['run_seconds_bucket', bound, 'mail', 'shop.pay']
            for bound in ('0.01', '0.025', '2.5', '5.0', '+Inf')
        ]
        assert buckets == [0, 1, 1, 2, 2]
        assert found['wait_seconds_bucket', '0.5', 'mail', 'shop.pay'] == 0
        assert found['wait_seconds_bucket', '1.0', 'mail', 'shop.pay'] == 1
        assert found['failed_total', 'mail', 'shop.pay'] == 1


def test_many_scrapes_cost_the_server_what_one_does(server: Server, database: int) -> None:
    with (
        Proxy(('127.0.0.1', server.port)) as proxy,
        app_of(f'reliable+{proxy.url(database)}') as ext,
    ):
        fill(ext)
        collector = Collector(ext)
        scrape(collector)
        collector._good_until = -math.inf  # what was read is old
        proxy.clear()
        scrape(collector)
        once = len(proxy.seen())
        assert 0 < once < 10
        proxy.clear()
        begun = time.monotonic()
        for _ in range(50):
            scrape(collector)
        seconds = time.monotonic() - begun
        assert len(proxy.seen()) <= once * (seconds + 2)
        # And one that does not answer is not asked by every scrape.
        proxy.refuse()
        proxy.cut()
        collector._good_until = -math.inf
        wait_for(lambda: scrape(collector) == {('up',): 0}, 10, 'a server that is away')
        refused = proxy.counts()['refuse']
        begun = time.monotonic()
        for _ in range(20):
            assert scrape(collector) == {('up',): 0}
        seconds = time.monotonic() - begun
        assert proxy.counts()['refuse'] - refused <= 3 * (seconds + 2)


def test_a_registry_has_it_once(url: str) -> None:
    registry = prometheus_client.CollectorRegistry()
    with app_of(url) as ext:
        assert register(ext, registry) is register(ext, registry)
        names = [family.name for family in registry.collect()]
        assert len(names) == len(set(names))


@contextlib.contextmanager
def running(fleet: Fleet, *arguments: str) -> Iterator[int]:
    """A command that serves a port."""
    port = free_port()
    log = fleet.directory / 'served.log'
    with log.open('wb') as output:
        process = subprocess.Popen(
            [sys.executable, '-m', 'celery', '-A', fleet.module, *arguments, f'--port={port}'],
            cwd=ROOT, env=fleet.environment(), stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        wait_for(lambda: _answers(process, port), 30, 'an answer')
        yield port
    except AssertionError as error:
        raise AssertionError(f'{error}\n{log.read_text()[-3000:]}') from None
    finally:
        process.terminate()
        process.wait(10)


def _answers(process: Any, port: int) -> bool:
    assert process.poll() is None
    with contextlib.suppress(OSError):
        return bool(fetch(port)) or True
    return False


@pytest.mark.parametrize('command', [('reliable', 'metrics'), ('flower', '--address=127.0.0.1')])
def test_served_by_a_command(installed: Fleet, ext: Extension, command: tuple[str, ...]) -> None:
    fill(ext)
    with running(installed, *command) as port:
        found = fetch(port)
        assert found['up',] == 1
        assert found['jobs', 'mail', 'ready'] == 3
        assert found['run_seconds_count', 'mail', 'shop.pay'] == 2


# -- traces ----------------------------------------------------------------------


@pytest.fixture
def published() -> Iterator[InMemorySpanExporter]:
    """The spans of what this process publishes."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    CeleryInstrumentor().instrument(tracer_provider=provider)
    yield exporter
    CeleryInstrumentor().uninstrument()


def test_traces_go_from_the_publish_to_the_run(
    make_fleet: Callable[..., Fleet], published: InMemorySpanExporter
) -> None:
    """Also of a delayed one and of its retries, which the transport stores anew."""
    fleet = make_fleet(module='tests.support.traced')
    ext = celery_ext.install(fleet.app())
    fleet.start('--without-mingle', '--without-gossip')
    plain = task(ext.app, 'run', 1).apply_async(countdown=0.5)
    retried = task(ext.app, 'retry_once', 0.2).apply_async()
    fleet.ledger.wait(3, 'ran')

    def runs() -> list[dict[str, Any]]:
        path = Path(f'{fleet.ledger.path}.spans')
        lines = path.read_text().splitlines() if path.exists() else []
        spans = [json.loads(line) for line in lines if line.endswith('}')]
        found = [span for span in spans if span['name'].startswith('run/')]
        return sorted(found, key=lambda span: str(span['start_time']))

    wait_for(lambda: len(runs()) == 3, 10, 'three runs')
    spans = {
        span.attributes['messaging.message.id']: span for span in published.get_finished_spans()
    }
    for result, count in ((plain, 1), (retried, 2)):
        of_it = [one for one in runs() if one['attributes']['messaging.message.id'] == result.id]
        assert len(of_it) == count
        context = spans[result.id].context
        assert {one['context']['trace_id'] for one in of_it} == {f'0x{context.trace_id:032x}'}
        assert of_it[0]['parent_id'] == f'0x{context.span_id:016x}'
