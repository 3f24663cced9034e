"""``metrics``: figures for Prometheus."""

from __future__ import annotations

import threading
from typing import Any

import click

from celery_ext.cli.common import Cli, command

__all__ = ('metrics',)


@command(
    'metrics',
    examples=[
        'celery -A proj reliable metrics --port 9808',
        'celery -A proj reliable metrics --once',
    ],
)
@click.option('--port', type=click.IntRange(0, 65_535), default=9808, show_default=True)
@click.option('--address', default='127.0.0.1', show_default=True, help='Where to listen.')
@click.option('--once', is_flag=True, help='Print the figures and end.')
def metrics(cli: Cli, port: int, address: str, once: bool) -> None:
    """Serves figures for Prometheus at /metrics until it is ended.

    Jobs by queue and state, how long they wait and run, dead letters, lost leases, workers.  One
    process is enough for all workers; Flower serves the same at its /metrics.
    """
    try:
        import prometheus_client

        from celery_ext.metrics import register
    except ImportError:
        cli.fail("this needs prometheus_client: pip install 'kombu-reliable[metrics]'")
    registry = prometheus_client.CollectorRegistry()
    register(cli.ext, registry)
    if once:
        text = prometheus_client.generate_latest(registry).decode()
        cli.show({'metrics': _samples(registry)}, text.rstrip())
        return
    server, thread = prometheus_client.start_http_server(port, address, registry)
    port = server.server_port
    cli.show({'address': address, 'port': port}, f'serving http://{address}:{port}/metrics')
    _until_the_end(thread)
    server.shutdown()


def _samples(registry: Any) -> list[dict[str, Any]]:
    return [
        {'name': sample.name, 'labels': sample.labels, 'value': sample.value}
        for metric in registry.collect()
        for sample in metric.samples
    ]


def _until_the_end(thread: threading.Thread) -> None:
    try:
        thread.join()
    except KeyboardInterrupt:
        return
