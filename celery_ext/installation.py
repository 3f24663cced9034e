"""The one call that gives an app everything of this package."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from celery import current_app

import kombu_reliable
from celery_ext import bridge, control, defaults, next_run, options, request, tracking
from celery_ext.broker import require
from celery_ext.current import CurrentJob, current_job
from celery_ext.dead import DeadLetters
from celery_ext.ends import ENDS
from celery_ext.events import Events
from celery_ext.fairness import Turns
from celery_ext.jobs import Jobs
from celery_ext.queues import Queues
from celery_ext.tags import Tags
from celery_ext.throttles import Throttles

__all__ = ('Extension', 'install')


class Extension:
    """What :func:`install` returns: the jobs, queues, dead letters, throttles ... of an app.

    Example:
        >>> ext = celery_ext.install(app)
        >>> ext.jobs[result.id].state
        'ready'
        >>> ext.queues['mail'].pause()
        >>> for job in ext.dead: print(job.failure)
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        #: The settings that were set because the user had left them open.
        self.defaults: dict[str, Any] = {}
        #: Tasks that had read the configuration before that.
        self.late_tasks: list[str] = []
        self.jobs = Jobs(self)
        self.queues = Queues(self)
        self.dead = DeadLetters(self)
        self.tags = Tags(self)
        self.events = Events(self)
        self.throttles = Throttles(self)
        self.turns = Turns(app)

    @cached_property
    def store(self) -> kombu_reliable.Store:
        """The server; opened when it is first needed.

        Raises:
            ForeignBroker: the app is on another broker.
        """
        require(self.app, 'this')
        store = kombu_reliable.open_store(self.app.connection_for_write())
        # What ends by this is to be told, even if no worker has come to say so.
        store.tell_ends_to(ENDS)
        return store

    def current_job(self) -> CurrentJob | None:
        """The job of the task that runs here; None outside of tasks."""
        return current_job(self)

    def __repr__(self) -> str:
        return f'<celery_ext for {self.app.main or "app"}>'


def install(app: Any = None) -> Extension:
    """Installs the extension for an app; a second call returns what the first one made.

    Call it where the app is made, before its configuration is needed.  Nothing is read and
    nothing is connected yet: the configuration may follow, as Django apps have it, and what the
    user sets there, or later, always wins.

    On other brokers everything does nothing, with one warning.

    Args:
        app: the Celery app; the current one unless given.

    Example:
        >>> app = Celery('shop')
        >>> app.config_from_object('django.conf:settings', namespace='CELERY')
        >>> ext = celery_ext.install(app)
    """
    app = current_app if app is None else app
    # Celery's current app is a proxy.
    app = getattr(app, '_get_current_object', lambda: app)()
    known: Extension | None = app.__dict__.get('celery_ext')
    if known is not None:
        return known
    extension = app.celery_ext = Extension(app)
    kombu_reliable.register()
    bridge.connect()
    next_run.connect()
    request.connect(app)
    options.connect()
    options.watch_app(app)
    tracking.connect()
    control.connect()
    defaults.watch(extension)
    return extension
