"""The public operations, so that none is forgotten in the table."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from types import CodeType
from typing import Any

from celery.app.control import Control
from celery.app.task import Task
from celery.result import AsyncResult

from celery_ext import bulk, dead, events, job, jobs, queues, schedules, stats, tags, throttles
from celery_ext import workers as workers_of
from celery_ext.backend import ReliableBackend
from celery_ext.current import CurrentJob
from celery_ext.firing import Firer
from celery_ext.installation import Extension
from kombu_reliable.store import Store, presence
from kombu_reliable.store import dependencies as stored_dependencies
from kombu_reliable.store import events as stored_events
from kombu_reliable.store import jobs as stored_jobs
from kombu_reliable.store import schedules as stored_schedules
from kombu_reliable.store import stats as stored_stats
from kombu_reliable.store import tags as stored_tags
from kombu_reliable.store import throttles as stored_throttles
from kombu_reliable.transport import Transport
from kombu_reliable.transport.channel import Channel
from kombu_reliable.transport.collecting import fire_schedule
from kombu_reliable.transport.keeper import Keeper
from kombu_reliable.transport.publisher import PublishBatch
from kombu_reliable.transport.received import Message

__all__ = ('EXCEPTIONS', 'operations')

#: Classes, by what stands in front of the names of their methods.
CLASSES: dict[str, type] = {
    'Transport': Transport,
    'Channel': Channel,
    'PublishBatch': PublishBatch,
    'Message': Message,
    'Store': Store,
    'store.Jobs': stored_jobs.Jobs,
    'store.Edges': stored_dependencies.Edges,
    'store.Tags': stored_tags.Tags,
    'store.Events': stored_events.Events,
    'store.Throttles': stored_throttles.Throttles,
    'store.StatsReader': stored_stats.StatsReader,
    'store.Counting': stored_stats.Counting,
    'store.Presence': presence.Presence,
    'store.ScheduleStore': stored_schedules.ScheduleStore,
    'Extension': Extension,
    'ext.Jobs': jobs.Jobs,
    'ext.Job': job.Job,
    'ext.Dependencies': job.Dependencies,
    'ext.Queues': queues.Queues,
    'ext.Queue': queues.Queue,
    'ext.DeadLetters': dead.DeadLetters,
    'ext.Tags': tags.Tags,
    'ext.Selection': bulk.Selection,
    'ext.Events': events.Events,
    'ext.Subscription': events.Subscription,
    'ext.Statistics': stats.Statistics,
    'ext.Workers': workers_of.Workers,
    'ext.Throttles': throttles.Throttles,
    'ext.ThrottleControl': throttles.ThrottleControl,
    'ext.Schedules': schedules.Schedules,
    'ext.Schedule': schedules.Schedule,
    'ext.Firer': Firer,
    'ext.CurrentJob': CurrentJob,
}

#: Functions and methods of others in which ours takes part.
FUNCTIONS: dict[str, Any] = {
    'Keeper.finish': Keeper.finish,
    'fire_schedule': fire_schedule,
    'Keeper.settle': Keeper.settle,
    'Keeper.settle_now': Keeper.settle_now,
    'Control.revoke': Control.revoke,
    'Task.apply_async': Task.apply_async,
    'AsyncResult.get': AsyncResult.get,
    'AsyncResult.revoke': AsyncResult.revoke,
    'AsyncResult.forget': AsyncResult.forget,
    'ReliableBackend.store_result': ReliableBackend.store_result,
    'ReliableBackend.get_task_meta': ReliableBackend.get_task_meta,
}

#: Special methods that talk to the server where a class has its own.
SPECIAL = ('__getitem__', '__iter__', '__len__', '__contains__', '__call__')

#: What needs no entry, and why.
EXCEPTIONS: dict[str, str] = {
    **dict.fromkeys(
        (
            'Channel.Consumer', 'Channel.Producer', 'Channel.cycle', 'Channel.encode_body',
            'Channel.get_bindings', 'Channel.get_exchanges', 'Channel.list_bindings',
            'Extension.current_job', 'Extension.schedules', 'Message.lost',
            'Message.serializable', 'Message.waited', 'Transport.as_uri',
            'Transport.consumer_name', 'Transport.driver_version',
            'Transport.get_heartbeat_interval', 'Transport.get_manager',
            'Transport.heartbeat_check', 'Transport.manager',
            'Transport.qos_semantics_matches_spec', 'Transport.supports_ev',
            'Transport.supports_heartbeats', 'ext.Jobs.current', 'ext.Queue.fair_by',
            'ext.Queue.throttle', 'ext.Dependencies.__contains__', 'ext.Dependencies.count',
            'ext.Dependencies.index', 'store.Counting.happened', 'store.Counting.ran',
            'store.Counting.waited', 'Channel.flow', 'Channel.forget',
        ),
        'says nothing to the server',
    ),
    **dict.fromkeys(('Channel.exchange_bind', 'Channel.exchange_unbind'), 'is not supported'),
    **dict.fromkeys(
        ('Transport.on_message_ready', 'Transport.on_readable'), 'is for other transports of kombu'
    ),
    **dict.fromkeys(
        ('Transport.register_with_event_loop', 'Transport.unregister_from_event_loop'),
        'needs the event loop of a worker, see test_workers',
    ),
    'Channel.drain_events': 'is the one of the transport',
    'Channel.after_reply_message_received': 'deletes a queue, and that is in the table',
    'Message.ack_log_error': 'acknowledges, and that is in the table',
    'Message.reject_log_error': 'rejects, and that is in the table',
}  # fmt: skip


def operations() -> dict[str, CodeType]:
    """The code of each public operation, by its name."""
    found = dict(_functions())
    for prefix, cls in CLASSES.items():
        for name, code in _methods(cls):
            found[f'{prefix}.{name}'] = code
    return found


def _functions() -> Iterator[tuple[str, CodeType]]:
    for name, function in FUNCTIONS.items():
        yield name, inspect.unwrap(function).__code__


def _methods(cls: type) -> Iterator[tuple[str, CodeType]]:
    for name in dir(cls):
        if name.startswith('_') and name not in SPECIAL:
            continue
        code = _code_of(inspect.getattr_static(cls, name))
        if code is not None:
            yield name, code


def _code_of(member: Any) -> CodeType | None:
    """Of a method or property; None of what is data."""
    match member:
        case property():
            member = member.fget
        case cached_property():
            member = member.func
        case staticmethod() | classmethod():
            member = member.__func__
    member = getattr(member, 'fget', member)
    return getattr(inspect.unwrap(member), '__code__', None) if callable(member) else None
