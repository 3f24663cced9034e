"""The way in: one Application gets our handlers and templates before it serves anything."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery_ext.broker import is_ours
from celery_ext.flower.overlay import Overlay

__all__ = ('connect', 'extend')

logger = logging.getLogger('celery_ext')


def connect() -> None:
    """Has every Flower of this process get the pages when it starts.  Idempotent."""
    from flower.app import Flower

    if not hasattr(Flower.start, 'celery_ext'):
        Flower.start = _extending(Flower.start)


def _extending(start: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(start)
    def start_extended(application: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            extend(application)
        except Exception:
            # Another Flower than those that we know: it is worth more than our pages.
            logger.exception('Flower goes on without the pages of celery_ext')
        return start(application, *args, **kwargs)

    start_extended.celery_ext = True  # type: ignore[attr-defined]
    return start_extended


def extend(application: Any) -> bool:
    """Gives a Flower application the pages, once, if its broker is kombu_reliable.

    Args:
        application: a :class:`flower.app.Flower` that does not serve yet.

    Returns:
        Whether it has them.
    """
    if not is_ours(application.capp):
        return False
    if hasattr(application, 'celery_ext'):
        return True
    from celery_ext.flower.routes import routes
    from celery_ext.flower.watch import Watch

    settings = application.settings
    overlay = Overlay(settings['template_path'])
    # Tornado keeps one loader per path for all applications of a process: with a path of its
    # own, another Flower never gets ours.
    settings['template_path'] = overlay.root
    settings['template_loader'] = overlay
    application.celery_ext = Watch(application.capp)
    application.add_handlers('.*', routes(application.options.url_prefix))
    return True
