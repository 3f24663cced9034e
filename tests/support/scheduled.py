"""The app of :mod:`tests.support.app` with the extension, and schedules that its code declares.

What it declares comes from the environment, so that a test can run several versions of one app;
and by how many seconds the clock of its machine is ahead.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

from celery import Task

import celery_ext
from tests.support.app import app, note

AHEAD = float(os.environ.get('KR_AHEAD', '0'))
if AHEAD:
    _real = time.time
    time.time = lambda: _real() + AHEAD

ext = celery_ext.install(app)


@app.task(bind=True)
def tick(self: Task, value: Any = None) -> Any:
    """Notes its run, and for which schedule."""
    note(self, 'tick', value=value)
    return value


@app.task(bind=True)
def dawdle(self: Task, least: float, most: float, value: Any = None) -> None:
    """A run of random length."""
    note(self, 'began', value=value)
    end = time.monotonic() + random.uniform(least, most)
    while time.monotonic() < end:
        time.sleep(0.01)
    note(self, 'done', value=value)


#: ``{"name": {"task": ..., "every": ..., ...}}``
DECLARED: dict[str, dict[str, Any]] = json.loads(os.environ.get('KR_SCHEDULES', '{}'))

for name, settings in DECLARED.items():

    def function(self: Task, value: Any = None) -> None:
        note(self, 'tick', value=value)

    function.__name__ = f'recurring_{name}'
    app.task(bind=True, name=f'tests.support.scheduled.{name}')(
        celery_ext.recurring(name=name, **settings)(function)
    )
