"""A bookshop with some of everything: what the pages inside Flower look like with work in them.

``screenshots.py`` beside it fills it and takes pictures.  To look around by hand, run here:

    python screenshots.py --serve
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path

from celery import Celery, Task
from celery.schedules import crontab

import celery_ext
from celery_ext import recurring, tagged, throttled, tracked

DATA = Path(os.environ.get('TOUR_DATA') or Path(tempfile.gettempdir()) / f'tour-{os.getuid()}')
URL = f'reliable+embedded://{DATA}/server'

app = Celery('bookshop', broker=URL, backend=URL)
app.conf.update(
    task_routes={
        'bookshop.mail.*': {'queue': 'mail'},
        'bookshop.payments.*': {'queue': 'payments'},
        'bookshop.documents.*': {'queue': 'documents'},
        'bookshop.search.*': {'queue': 'search'},
        'bookshop.reports.*': {'queue': 'reports'},
    },
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
ext = celery_ext.install(app)


def work(shortest: float, longest: float) -> None:
    """Takes a time, usually a short one."""
    time.sleep(min(longest, shortest * random.lognormvariate(0.4, 0.7)))


@app.task(name='bookshop.payments.charge')
@tagged('checkout', 'customer:{customer}')
@throttled('card-network', concurrency=3, rate='600/m')
@tracked
def charge(order: int, customer: int, amount: int) -> None:
    work(0.02, 0.3)
    if amount > 900:
        raise ConnectionRefusedError(f'the bank of customer {customer} does not answer')


@app.task(name='bookshop.documents.invoice')
@tagged('checkout')
def invoice(order: int) -> None:
    work(0.01, 0.1)


@app.task(name='bookshop.documents.label')
@tagged('checkout')
def label(order: int) -> None:
    work(0.01, 0.1)


@app.task(name='bookshop.mail.send')
@tagged('mail')
def send(to: str, subject: str) -> None:
    work(0.03, 0.4)
    if to.endswith('@nowhere.example'):
        raise ValueError(f'{to!r} is no address: the domain does not exist')


@app.task(name='bookshop.search.index')
def index(book: int) -> None:
    work(0.004, 0.08)


@app.task(name='bookshop.reports.build', bind=True)
@tagged('report')
@tracked
def build(self: Task, month: str, seconds: float = 600) -> None:
    job = ext.current_job()
    for step in range(100):
        if job is not None:
            job.progress(step / 100)
            if step == 12:
                job.log('read the orders', {'rows': 48_213})
        time.sleep(seconds / 100)


@app.task(name='bookshop.stock.sync')
@recurring(every=300, name='stock', overlap=False)
def sync() -> None:
    work(0.02, 0.2)


@app.task(name='bookshop.reports.nightly')
@recurring(every=crontab(hour=3, minute=30), name='nightly report', zone='Europe/Berlin')
def nightly() -> None:
    work(0.02, 0.2)


@app.task(name='bookshop.mail.digest')
@recurring(every=crontab(hour=8, minute=0, day_of_week='mon'), name='weekly digest')
def digest() -> None:
    work(0.02, 0.2)
