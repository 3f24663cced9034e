"""Where our pages live: below ``/reliable/``, but for those of Flower's that we stand in for."""

from __future__ import annotations

from typing import Any

from tornado.web import RedirectHandler, StaticFileHandler, url

from celery_ext.flower.acting import ActionHandler
from celery_ext.flower.broker import BrokerPage, QueueLengths
from celery_ext.flower.failed import FailedPage
from celery_ext.flower.jobs import JobsPage, SingleJobPage
from celery_ext.flower.queues import QueuesPage, SingleQueuePage
from celery_ext.flower.schedules import SchedulesPage, SingleSchedulePage
from celery_ext.flower.throttles import SingleThrottlePage, ThrottlesPage
from celery_ext.flower.ui import STATIC

__all__ = ('routes',)

PAGES = {
    'queues': QueuesPage,
    'queue': SingleQueuePage,
    'jobs': JobsPage,
    'job': SingleJobPage,
    'throttles': ThrottlesPage,
    'throttle': SingleThrottlePage,
    'failed': FailedPage,
    'schedules': SchedulesPage,
    'schedule': SingleSchedulePage,
}


def routes(url_prefix: str | None) -> list[Any]:
    """All of them.

    Args:
        url_prefix: Flower's option; it stands in front of all.
    """
    prefix = f'/{url_prefix.strip("/")}' if url_prefix else ''
    pages = [
        url(f'{prefix}/reliable/{name}', handler, name=f'reliable-{name}')
        for name, handler in PAGES.items()
    ]
    return [
        url(f'{prefix}/broker', BrokerPage),
        url(f'{prefix}/api/queues/length', QueueLengths),
        *pages,
        url(f'{prefix}/reliable/act/([a-z-]+)', ActionHandler, name='reliable-act'),
        url(
            f'{prefix}/reliable/static/(.+)', StaticFileHandler, {'path': str(STATIC)},
            name='reliable-static',
        ),
        url(f'{prefix}/reliable/?', RedirectHandler, {'url': f'{prefix}/reliable/queues'}),
    ]  # fmt: skip
