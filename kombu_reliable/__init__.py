"""A kombu transport on Redis and Valkey: leased delivery, delays, priorities.

Importing the package registers the transport, nothing more: names are loaded when they are
used, because kombu imports this package while it starts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kombu_reliable.registration import register

if TYPE_CHECKING:
    from kombu_reliable.envelope import pack_id, unpack_id
    from kombu_reliable.errors import (
        AccessRefused,
        ConnectionLost,
        DependencyCycle,
        DuplicateJob,
        EmbeddedServerError,
        Fenced,
        HasDependents,
        InvalidArgument,
        InvalidMessage,
        InvalidOption,
        InvalidURL,
        LayoutError,
        NotConfirmed,
        ReliableError,
        ServerFull,
        UnknownJob,
        UnknownQueue,
        UnsupportedServer,
        WrongState,
    )
    from kombu_reliable.hooks import set_hooks
    from kombu_reliable.options import Options
    from kombu_reliable.store import Store
    from kombu_reliable.store.events import Gap, JobEvent
    from kombu_reliable.store.info import Event, Failure, Group, JobInfo
    from kombu_reliable.store.limits import Limit
    from kombu_reliable.store.schedules import (
        AFTER_RUN,
        Declaration,
        Fired,
        Firing,
        ScheduleInfo,
        ScheduleStore,
        Timing,
    )
    from kombu_reliable.store.stats import Counting, Stats
    from kombu_reliable.store.summary import Bar, Summary
    from kombu_reliable.store.tags import TagCount, check_tags
    from kombu_reliable.transport import Transport
    from kombu_reliable.transport.collecting import Collector, fire_schedule
    from kombu_reliable.transport.dependencies import take_dependencies
    from kombu_reliable.transport.keeper import finish_settling
    from kombu_reliable.transport.messages import TOKEN_HEADER, open_envelope, open_job, outgoing
    from kombu_reliable.transport.transport import open_store
    from kombu_reliable.transport.unique import frees_at_start
    from kombu_reliable.types import QueueCounts, Status, Verdict
    from kombu_reliable.urls import ServerURL, parse_url

__version__ = '0.1.0'

_HOME = {
    'AccessRefused': 'errors',
    'Bar': 'store.summary',
    'ConnectionLost': 'errors',
    'Counting': 'store.stats',
    'DependencyCycle': 'errors',
    'DuplicateJob': 'errors',
    'EmbeddedServerError': 'errors',
    'Fenced': 'errors',
    'HasDependents': 'errors',
    'InvalidArgument': 'errors',
    'InvalidMessage': 'errors',
    'InvalidOption': 'errors',
    'InvalidURL': 'errors',
    'LayoutError': 'errors',
    'NotConfirmed': 'errors',
    'ReliableError': 'errors',
    'ServerFull': 'errors',
    'UnknownJob': 'errors',
    'UnknownQueue': 'errors',
    'UnsupportedServer': 'errors',
    'WrongState': 'errors',
    'Event': 'store.info',
    'Failure': 'store.info',
    'Group': 'store.info',
    'JobInfo': 'store.info',
    'Gap': 'store.events',
    'JobEvent': 'store.events',
    'TagCount': 'store.tags',
    'check_tags': 'store.tags',
    'Status': 'types',
    'unpack_id': 'envelope',
    'Limit': 'store.limits',
    'QueueCounts': 'types',
    'Stats': 'store.stats',
    'AFTER_RUN': 'store.schedules',
    'Collector': 'transport.collecting',
    'Declaration': 'store.schedules',
    'Fired': 'store.schedules',
    'Firing': 'store.schedules',
    'ScheduleInfo': 'store.schedules',
    'ScheduleStore': 'store.schedules',
    'Timing': 'store.schedules',
    'fire_schedule': 'transport.collecting',
    'Store': 'store',
    'Summary': 'store.summary',
    'open_job': 'transport.messages',
    'open_store': 'transport.transport',
    'pack_id': 'envelope',
    'frees_at_start': 'transport.unique',
    'take_dependencies': 'transport.dependencies',
    'finish_settling': 'transport.keeper',
    'set_hooks': 'hooks',
    'Options': 'options',
    'Transport': 'transport',
    'TOKEN_HEADER': 'transport.messages',
    'open_envelope': 'transport.messages',
    'outgoing': 'transport.messages',
    'Verdict': 'types',
    'ServerURL': 'urls',
    'parse_url': 'urls',
}

__all__ = (
    'AFTER_RUN',
    'TOKEN_HEADER',
    'AccessRefused',
    'Bar',
    'Collector',
    'ConnectionLost',
    'Counting',
    'Declaration',
    'DependencyCycle',
    'DuplicateJob',
    'EmbeddedServerError',
    'Event',
    'Failure',
    'Fenced',
    'Fired',
    'Firing',
    'Gap',
    'Group',
    'HasDependents',
    'InvalidArgument',
    'InvalidMessage',
    'InvalidOption',
    'InvalidURL',
    'JobEvent',
    'JobInfo',
    'LayoutError',
    'Limit',
    'NotConfirmed',
    'Options',
    'QueueCounts',
    'ReliableError',
    'ScheduleInfo',
    'ScheduleStore',
    'ServerFull',
    'ServerURL',
    'Stats',
    'Status',
    'Store',
    'Summary',
    'TagCount',
    'Timing',
    'Transport',
    'UnknownJob',
    'UnknownQueue',
    'UnsupportedServer',
    'Verdict',
    'WrongState',
    'check_tags',
    'finish_settling',
    'fire_schedule',
    'frees_at_start',
    'open_envelope',
    'open_job',
    'open_store',
    'outgoing',
    'pack_id',
    'parse_url',
    'register',
    'set_hooks',
    'take_dependencies',
    'unpack_id',
)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'kombu_reliable.{_HOME[name]}'), name)


register()
