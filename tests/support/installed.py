"""The app of :mod:`tests.support.app` with the extension."""

from __future__ import annotations

import os
import time

from celery import Task

import celery_ext
from celery_ext import unique
from tests.support.app import app, note

ext = celery_ext.install(app, stats=os.environ.get('KR_STATS') != 'off')


@app.task(bind=True)
@unique()
def nightly(self: Task, path: str) -> None:
    """One at a time."""
    note(self, 'started')
    while not os.path.exists(path):
        time.sleep(0.01)


@app.task
def start_nightly(path: str, times: int) -> list[str]:
    return [nightly.delay(path).id for _ in range(times)]
