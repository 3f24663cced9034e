"""The app of :mod:`tests.support.installed`, whose pool processes write OpenTelemetry's spans."""

from __future__ import annotations

import os
from typing import Any

from celery import signals
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from tests.support.installed import app, ext

__all__ = ('app', 'ext')


@signals.worker_process_init.connect
def _trace(**_: Any) -> None:
    provider = TracerProvider()
    spans = open(f'{os.environ["KR_LEDGER"]}.spans', 'a', buffering=1)  # noqa: SIM115
    exporter = ConsoleSpanExporter(
        out=spans, formatter=lambda span: span.to_json(indent=None) + '\n'
    )
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    CeleryInstrumentor().instrument(tracer_provider=provider)
