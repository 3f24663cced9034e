"""The Celery app that the benchmarks' workers and publishers run.

Its surroundings come from the environment, see :mod:`benchmarks.harness`.  Nothing here knows
which transport it runs on; a module that registers one is imported if it is named.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from celery import Celery
from celery.signals import worker_ready

if os.environ.get('BENCH_MODULE'):
    importlib.import_module(os.environ['BENCH_MODULE'])

app = Celery('shop', broker=os.environ.get('BENCH_BROKER', 'memory://'))
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=2,
    broker_connection_retry_on_startup=True,
    broker_transport_options=json.loads(os.environ.get('BENCH_OPTIONS', '{}')),
)

if os.environ.get('BENCH_EXTENSION'):
    counting = os.environ['BENCH_EXTENSION'] != 'without statistics'
    importlib.import_module('celery_ext').install(app, stats=counting)


def marked(fun: Callable[..., None]) -> Callable[..., None]:
    """Two tags and tracking, if that is what is measured."""
    if not os.environ.get('BENCH_MARKED'):
        return fun
    extension = importlib.import_module('celery_ext')
    tagged: Callable[..., None] = extension.tagged('orders', 'customer:{customer}')(fun)
    tracked: Callable[..., None] = extension.tracked(tagged)
    return tracked


@cache
def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def tell(**fields: Any) -> None:
    """One datagram to whoever measures: no file, no lock, nobody polls."""
    _socket().sendto(json.dumps(fields).encode(), os.environ['BENCH_INBOX'])


@worker_ready.connect
def _ready(**kwargs: Any) -> None:
    tell(event='ready')


# An ordinary task with ordinary arguments, so that messages have the size that messages have.
@app.task(name='shop.orders.confirm')
@marked
def confirm(order: int, customer: str, notify: bool = False) -> None:
    """Does nothing: what is measured is the way to it."""


@app.task(name='shop.orders.remind')
def remind(expected: float) -> None:
    """Tells how much later than ``expected`` it began."""
    tell(event='began', late=time.time() - expected)


def confirm_one(number: int) -> None:
    confirm.delay(480_000 + number, 'jane.doe@example.com', notify=True)
