"""The app of :mod:`tests.support.app` with the extension."""

from __future__ import annotations

import os

import celery_ext
from tests.support.app import app

ext = celery_ext.install(app, stats=os.environ.get('KR_STATS') != 'off')
