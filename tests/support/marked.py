"""The app of :mod:`tests.support.installed` with tasks that are tagged and tracked."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Task

from celery_ext import tagged, tracked
from tests.support.app import note
from tests.support.installed import app, ext


@app.task(bind=True, name='tests.support.app.charge')
@tagged('billing', 'customer:{customer}')
@tracked
def charge(self: Task, customer: int, failures: int = 0) -> int:
    note(self, 'ran', value=customer)
    if self.request.retries < failures:
        raise self.retry(countdown=0.05, max_retries=failures)
    return customer


@app.task(bind=True, name='tests.support.app.tell')
def tell(self: Task, path: str) -> Any:
    """Tells of itself, and goes on when the test makes the file."""
    job = ext.current_job()
    assert job is not None and job.id == self.request.id
    job.log('begun', {'pid': os.getpid()})
    job.tag('at-run')
    job.progress(0.5)
    note(self, 'told')
    while not os.path.exists(path):
        time.sleep(0.01)
    job.progress(1)
    return job.look().state
