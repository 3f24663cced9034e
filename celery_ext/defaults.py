"""Safe settings, where the user has said nothing.

Celery acknowledges a task before it runs, and gives up one whose process died.  With leased
delivery neither is needed, so both are turned round for apps that leave it open.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import signals
from celery.app.utils import Settings

from celery_ext.broker import is_ours, warn_inert

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('OUR_SCHEDULER', 'SAFE', 'watch')

logger = logging.getLogger('celery_ext')

#: What is set where the user set nothing.
SAFE = {'task_acks_late': True, 'task_reject_on_worker_lost': True}

#: What ``celery beat`` runs unless the user has chosen a scheduler: with Celery's own, what the
#: workers fire would be fired twice.
OUR_SCHEDULER = 'celery_ext.schedules:Scheduler'


def watch(extension: Extension) -> None:
    """Sets the defaults as soon as the app's configuration is read, whenever that is."""
    app = extension.app

    def on_after_configure(**_: Any) -> None:
        extension.defaults = _apply(app)

    app.on_after_configure.connect(on_after_configure, weak=False, dispatch_uid='celery_ext')
    signals.celeryd_after_setup.connect(_on_worker_setup, weak=False, dispatch_uid='celery_ext')
    if app.configured:
        extension.late_tasks = _bound_tasks(app)
        on_after_configure()


def _on_worker_setup(instance: Any, **_: Any) -> None:
    extension = instance.app.__dict__.get('celery_ext')
    if extension is not None:
        _announce(extension)


def _apply(app: Any) -> dict[str, Any]:
    """Puts the defaults beneath everything that the user has set, or sets later."""
    if not is_ours(app):
        return {}
    conf = app.conf
    # All but Celery's own defaults, and under all names that a setting can have.
    given = Settings({}, conf.maps[:-1], conf._keys, conf.prefix)
    chosen = {name: value for name, value in SAFE.items() if name not in given}
    conf.maps[-1].update(chosen)
    if 'beat_scheduler' not in given:
        conf.maps[-1]['beat_scheduler'] = OUR_SCHEDULER
    return chosen


def _bound_tasks(app: Any) -> list[str]:
    """Tasks that have read the configuration already: they cannot be told from those whose
    authors have said the same."""
    return sorted(
        name
        for name, task in app._tasks.items()
        if task.__bound__ and not task.acks_late and not name.startswith('celery.')
    )


def _announce(extension: Extension) -> None:
    chosen, old = extension.defaults, extension.late_tasks
    if not is_ours(extension.app):
        warn_inert(extension.app, 'on a broker that is not kombu_reliable', 'install()')
        return
    if chosen:
        text = ', '.join(f'{name} = {value}' for name, value in chosen.items())
        logger.info('celery_ext sets what the configuration leaves open: %s', text)
    if old and 'task_acks_late' in chosen:
        logger.warning(
            'celery_ext.install(app) was called after the tasks had read the configuration; '
            'acknowledged early, and not protected once they have started: %s',
            ', '.join(old),
        )
