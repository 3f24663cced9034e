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
    from celery_ext.dependencies import expected
    from celery_ext.ends import DependencyFailed
    from celery_ext.errors import ForeignBroker, InertWarning, InvalidDependency, InvalidTemplate
    from celery_ext.events import Events, JobEvent, Subscription
    from celery_ext.fairness import fair_by
    from celery_ext.installation import Extension, install
    from celery_ext.job import Dependencies, Event, Failure, Job
    from celery_ext.jobs import Jobs, Page
    from celery_ext.queues import Queue, Queues
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
    from kombu_reliable import (
        DependencyCycle,
        Fenced,
        Gap,
        HasDependents,
        InvalidArgument,
        QueueCounts,
        ReliableError,
        TagCount,
        UnknownJob,
        UnknownQueue,
        WrongState,
    )

_HOME = {
    'CurrentJob': 'celery_ext.current',
    'DeadLetters': 'celery_ext.dead',
    'Dependencies': 'celery_ext.job',
    'DependencyCycle': 'kombu_reliable',
    'DependencyFailed': 'celery_ext.ends',
    'Event': 'celery_ext.job',
    'Events': 'celery_ext.events',
    'Extension': 'celery_ext.installation',
    'Failure': 'celery_ext.job',
    'Fenced': 'kombu_reliable',
    'ForeignBroker': 'celery_ext.errors',
    'Gap': 'kombu_reliable',
    'Group': 'celery_ext.dead',
    'HasDependents': 'kombu_reliable',
    'Holder': 'celery_ext.throttles',
    'InertWarning': 'celery_ext.errors',
    'InvalidArgument': 'kombu_reliable',
    'InvalidDependency': 'celery_ext.errors',
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
    'Selection': 'celery_ext.bulk',
    'Subscription': 'celery_ext.events',
    'TagCount': 'kombu_reliable',
    'Tags': 'celery_ext.tags',
    'Throttle': 'celery_ext.throttles',
    'ThrottleControl': 'celery_ext.throttles',
    'ThrottleInfo': 'celery_ext.throttles',
    'Throttles': 'celery_ext.throttles',
    'UnknownJob': 'kombu_reliable',
    'UnknownQueue': 'kombu_reliable',
    'Waiter': 'celery_ext.throttles',
    'WrongState': 'kombu_reliable',
    'expected': 'celery_ext.dependencies',
    'fair_by': 'celery_ext.fairness',
    'install': 'celery_ext.installation',
    'tagged': 'celery_ext.tags',
    'throttled': 'celery_ext.throttles',
    'tracked': 'celery_ext.tracking',
}

__all__ = (
    'CurrentJob',
    'DeadLetters',
    'Dependencies',
    'DependencyCycle',
    'DependencyFailed',
    'Event',
    'Events',
    'Extension',
    'Failure',
    'Fenced',
    'ForeignBroker',
    'Gap',
    'Group',
    'HasDependents',
    'Holder',
    'InertWarning',
    'InvalidArgument',
    'InvalidDependency',
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
    'Selection',
    'Subscription',
    'TagCount',
    'Tags',
    'Throttle',
    'ThrottleControl',
    'ThrottleInfo',
    'Throttles',
    'UnknownJob',
    'UnknownQueue',
    'Waiter',
    'WrongState',
    'expected',
    'fair_by',
    'install',
    'tagged',
    'throttled',
    'tracked',
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_HOME[name]), name)
