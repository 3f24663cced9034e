"""What a broker alone cannot express, for Celery apps on kombu_reliable.

    import celery_ext

    app = Celery('shop', broker='reliable+redis://localhost')
    ext = celery_ext.install(app)

Names are loaded when they are used: every ``celery`` command imports this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from celery_ext.dead import DeadLetters, Group
    from celery_ext.declaring import recurring
    from celery_ext.dependencies import expected
    from celery_ext.ends import DependencyFailed
    from celery_ext.errors import (
        ForeignBroker,
        InertWarning,
        InvalidDependency,
        InvalidSchedule,
        InvalidTemplate,
        UnknownSchedule,
    )
    from celery_ext.fairness import fair_by
    from celery_ext.installation import Extension, install
    from celery_ext.job import Dependencies, Event, Failure, Job
    from celery_ext.jobs import Jobs
    from celery_ext.queues import Queue, Queues
    from celery_ext.schedules import Run, Schedule, Schedules
    from celery_ext.throttles import (
        Holder,
        Throttle,
        ThrottleControl,
        ThrottleInfo,
        Throttles,
        Waiter,
        throttled,
    )
    from kombu_reliable import (
        DependencyCycle,
        HasDependents,
        InvalidArgument,
        QueueCounts,
        ReliableError,
        UnknownJob,
        UnknownQueue,
        WrongState,
    )

_HOME = {
    'DeadLetters': 'celery_ext.dead',
    'Dependencies': 'celery_ext.job',
    'DependencyCycle': 'kombu_reliable',
    'DependencyFailed': 'celery_ext.ends',
    'Event': 'celery_ext.job',
    'Extension': 'celery_ext.installation',
    'Failure': 'celery_ext.job',
    'ForeignBroker': 'celery_ext.errors',
    'Group': 'celery_ext.dead',
    'HasDependents': 'kombu_reliable',
    'Holder': 'celery_ext.throttles',
    'InertWarning': 'celery_ext.errors',
    'InvalidArgument': 'kombu_reliable',
    'InvalidDependency': 'celery_ext.errors',
    'InvalidSchedule': 'celery_ext.errors',
    'InvalidTemplate': 'celery_ext.errors',
    'Job': 'celery_ext.job',
    'Jobs': 'celery_ext.jobs',
    'Queue': 'celery_ext.queues',
    'QueueCounts': 'kombu_reliable',
    'Queues': 'celery_ext.queues',
    'ReliableError': 'kombu_reliable',
    'Run': 'celery_ext.schedules',
    'Schedule': 'celery_ext.schedules',
    'Schedules': 'celery_ext.schedules',
    'Throttle': 'celery_ext.throttles',
    'ThrottleControl': 'celery_ext.throttles',
    'ThrottleInfo': 'celery_ext.throttles',
    'Throttles': 'celery_ext.throttles',
    'UnknownJob': 'kombu_reliable',
    'UnknownQueue': 'kombu_reliable',
    'UnknownSchedule': 'celery_ext.errors',
    'Waiter': 'celery_ext.throttles',
    'WrongState': 'kombu_reliable',
    'expected': 'celery_ext.dependencies',
    'fair_by': 'celery_ext.fairness',
    'install': 'celery_ext.installation',
    'recurring': 'celery_ext.declaring',
    'throttled': 'celery_ext.throttles',
}

__all__ = (
    'DeadLetters',
    'Dependencies',
    'DependencyCycle',
    'DependencyFailed',
    'Event',
    'Extension',
    'Failure',
    'ForeignBroker',
    'Group',
    'HasDependents',
    'Holder',
    'InertWarning',
    'InvalidArgument',
    'InvalidDependency',
    'InvalidSchedule',
    'InvalidTemplate',
    'Job',
    'Jobs',
    'Queue',
    'QueueCounts',
    'Queues',
    'ReliableError',
    'Run',
    'Schedule',
    'Schedules',
    'Throttle',
    'ThrottleControl',
    'ThrottleInfo',
    'Throttles',
    'UnknownJob',
    'UnknownQueue',
    'UnknownSchedule',
    'Waiter',
    'WrongState',
    'expected',
    'fair_by',
    'install',
    'recurring',
    'throttled',
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOME[name]), name)
