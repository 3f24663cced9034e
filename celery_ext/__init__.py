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
    from celery_ext.bulk import Result, Selection
    from celery_ext.current import CurrentJob
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
    from celery_ext.events import Events, JobEvent, Subscription
    from celery_ext.fairness import fair_by
    from celery_ext.installation import Extension, install
    from celery_ext.job import Dependencies, Event, Failure, Job
    from celery_ext.jobs import Jobs, Page
    from celery_ext.queues import Queue, Queues
    from celery_ext.schedules import Run, Schedule, Schedules
    from celery_ext.search import Found
    from celery_ext.stats import Statistics
    from celery_ext.tags import Tags, tagged
    from celery_ext.throttles import (
        Holder,
        Throttle,
        ThrottleControl,
        ThrottleInfo,
        Throttles,
        Waiter,
        throttled,
    )
    from celery_ext.tracking import tracked
    from celery_ext.uniqueness import unique
    from celery_ext.workers import Worker, Workers
    from kombu_reliable import (
        Bar,
        DependencyCycle,
        DuplicateJob,
        Fenced,
        Gap,
        HasDependents,
        InvalidArgument,
        QueueCounts,
        ReliableError,
        Stats,
        Summary,
        UnknownJob,
        UnknownQueue,
        WrongState,
    )

_HOME = {
    'Bar': 'kombu_reliable',
    'CurrentJob': 'celery_ext.current',
    'DeadLetters': 'celery_ext.dead',
    'Dependencies': 'celery_ext.job',
    'DependencyCycle': 'kombu_reliable',
    'DependencyFailed': 'celery_ext.ends',
    'DuplicateJob': 'kombu_reliable',
    'Event': 'celery_ext.job',
    'Events': 'celery_ext.events',
    'Extension': 'celery_ext.installation',
    'Failure': 'celery_ext.job',
    'Fenced': 'kombu_reliable',
    'ForeignBroker': 'celery_ext.errors',
    'Found': 'celery_ext.search',
    'Gap': 'kombu_reliable',
    'Group': 'celery_ext.dead',
    'HasDependents': 'kombu_reliable',
    'Holder': 'celery_ext.throttles',
    'InertWarning': 'celery_ext.errors',
    'InvalidArgument': 'kombu_reliable',
    'InvalidDependency': 'celery_ext.errors',
    'InvalidSchedule': 'celery_ext.errors',
    'InvalidTemplate': 'celery_ext.errors',
    'Job': 'celery_ext.job',
    'JobEvent': 'celery_ext.events',
    'Jobs': 'celery_ext.jobs',
    'Page': 'celery_ext.jobs',
    'Queue': 'celery_ext.queues',
    'QueueCounts': 'kombu_reliable',
    'Queues': 'celery_ext.queues',
    'ReliableError': 'kombu_reliable',
    'Result': 'celery_ext.bulk',
    'Run': 'celery_ext.schedules',
    'Schedule': 'celery_ext.schedules',
    'Schedules': 'celery_ext.schedules',
    'Selection': 'celery_ext.bulk',
    'Statistics': 'celery_ext.stats',
    'Stats': 'kombu_reliable',
    'Subscription': 'celery_ext.events',
    'Summary': 'kombu_reliable',
    'TagCount': 'kombu_reliable',
    'Tags': 'celery_ext.tags',
    'Throttle': 'celery_ext.throttles',
    'ThrottleControl': 'celery_ext.throttles',
    'ThrottleInfo': 'celery_ext.throttles',
    'Throttles': 'celery_ext.throttles',
    'UnknownJob': 'kombu_reliable',
    'UnknownQueue': 'kombu_reliable',
    'UnknownSchedule': 'celery_ext.errors',
    'Waiter': 'celery_ext.throttles',
    'Worker': 'celery_ext.workers',
    'Workers': 'celery_ext.workers',
    'WrongState': 'kombu_reliable',
    'expected': 'celery_ext.dependencies',
    'fair_by': 'celery_ext.fairness',
    'install': 'celery_ext.installation',
    'recurring': 'celery_ext.declaring',
    'tagged': 'celery_ext.tags',
    'throttled': 'celery_ext.throttles',
    'tracked': 'celery_ext.tracking',
    'unique': 'celery_ext.uniqueness',
}

__all__ = (
    'Bar',
    'CurrentJob',
    'DeadLetters',
    'Dependencies',
    'DependencyCycle',
    'DependencyFailed',
    'DuplicateJob',
    'Event',
    'Events',
    'Extension',
    'Failure',
    'Fenced',
    'ForeignBroker',
    'Found',
    'Gap',
    'Group',
    'HasDependents',
    'Holder',
    'InertWarning',
    'InvalidArgument',
    'InvalidDependency',
    'InvalidSchedule',
    'InvalidTemplate',
    'Job',
    'JobEvent',
    'Jobs',
    'Page',
    'Queue',
    'QueueCounts',
    'Queues',
    'ReliableError',
    'Result',
    'Run',
    'Schedule',
    'Schedules',
    'Selection',
    'Statistics',
    'Stats',
    'Subscription',
    'Summary',
    'TagCount',
    'Tags',
    'Throttle',
    'ThrottleControl',
    'ThrottleInfo',
    'Throttles',
    'UnknownJob',
    'UnknownQueue',
    'UnknownSchedule',
    'Waiter',
    'Worker',
    'Workers',
    'WrongState',
    'expected',
    'fair_by',
    'install',
    'recurring',
    'tagged',
    'throttled',
    'tracked',
    'unique',
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOME[name]), name)
