"""The transport options: one dataclass, one place that parses them."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kombu_reliable.errors import InvalidOption
from kombu_reliable.masking import SECRETS, unmask, unmask_secrets

__all__ = ('Options',)

logger = logging.getLogger('kombu_reliable')

#: Options of kombu's own redis transport that have no meaning here.
STOCK_OPTIONS = frozenset(
    [
        'visibility_timeout',
        'unacked_key',
        'unacked_index_key',
        'unacked_mutex_key',
        'unacked_mutex_expire',
        'unacked_restore_limit',
        'unacked_restore_interval',
        'unacked_restore_throttle',
        'priority_steps',
        'sep',
        'fanout_prefix',
        'fanout_patterns',
        'ack_emulation',
        'polling_interval',
        'retry_on_timeout',
        'body_encoding',
        'deadletter_queue',
        'keyprefix_queue',
        'keyprefix_fanout',
        'brpop_timeout',
        'reauth_check_interval',
        'sentinel_fanout_compat',
        'master_name',
        'min_other_sentinels',
        'sentinel_kwargs',
    ]
)

#: Keys of kombu's failover and retry handling, which kombu reads itself.
KOMBU_OPTIONS = frozenset(
    [
        'max_retries',
        'interval_start',
        'interval_step',
        'interval_max',
        'connect_retries_timeout',
        'errback',
        'callback',
        'on_revive',
        'retry_errors',
        'confirm_publish',
        'client_properties',
    ]
)

#: For how long, in ms, completed jobs are kept that are tagged or tracked, unless told otherwise.
KEPT_IF_MARKED = 3_600_000

#: Times and numbers beyond this are mistakes, and would not be exact in milliseconds.
LARGEST = 1e10

_warned: set[frozenset[str]] = set()


@dataclass(frozen=True, slots=True)
class Options:
    """What ``broker_transport_options`` and the query of the URL may say.

    Times are in seconds.

    Args:
        lease: how long a silent worker keeps its messages.
        delivery_limit: deliveries of one message before it becomes a dead letter; 0: no limit.
        priority_order: ``'highest-first'`` as in AMQP, ``'lowest-first'`` as in kombu's redis.
        queue_order_strategy: ``'round_robin'``, ``'priority'`` or ``'sorted'``, as in kombu.
        global_keyprefix: stands in front of every key.
        fanout_maxlen: messages that a fanout exchange keeps for slow listeners.
        fanout_replay: a fanout message that is older is not delivered any more.
        fanout_life: how long an idle fanout stream and an absent listener are remembered.
        failed_retention: how long dead letters are kept.
        failed_limit: dead letters kept per queue.
        completed_retention: how long completed jobs are kept; unless set, an hour for those that
            are tagged or tracked, and not at all for others.
        completed_limit: completed jobs kept per queue.
        reconnect_timeout: how long a worker tries to reconnect before Celery hears of it;
            None: for as long as the server is merely away.
        confirm_replicas: a publish returns when so many replicas have it.
        confirm_fsync: a publish returns when it is on the server's disk.
        confirm_timeout: how long a publish waits for that; shorter than ``socket_timeout``.
        socket_timeout: longest wait for a reply.
        socket_connect_timeout: longest wait for a connection.
        max_connections: connections that publishers of one process may open to a server.

    Example:
        >>> Options.parse({'lease': '45'}).lease
        45.0
    """

    lease: float = 30.0
    delivery_limit: int = 20
    priority_order: str = 'highest-first'
    queue_order_strategy: str = 'round_robin'
    global_keyprefix: str = ''
    fanout_maxlen: int = 10_000
    fanout_replay: float = 60.0
    fanout_life: float = 300.0
    failed_retention: float = 7 * 86_400.0
    failed_limit: int = 10_000
    completed_retention: float | None = None
    completed_limit: int = 10_000
    reconnect_timeout: float | None = None
    confirm_replicas: int = 0
    confirm_fsync: bool = False
    confirm_timeout: float = 2.0
    socket_timeout: float = 5.0
    socket_connect_timeout: float = 5.0
    socket_keepalive: bool = True
    socket_keepalive_options: Mapping[int, int] | None = None
    health_check_interval: float = 25.0
    max_connections: int | None = None
    client_name: str | None = None
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    credential_provider: Any = field(default=None, repr=False)
    ssl: Mapping[str, Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        _require(self.lease >= 0.5, 'lease', self.lease, 'at least 0.5 seconds')
        _require(self.delivery_limit >= 0, 'delivery_limit', self.delivery_limit, '0 or more')
        _require(
            self.priority_order in ('highest-first', 'lowest-first'), 'priority_order',
            self.priority_order, "'highest-first' or 'lowest-first'",
        )  # fmt: skip
        _require(
            self.queue_order_strategy in ('round_robin', 'priority', 'sorted'),
            'queue_order_strategy', self.queue_order_strategy,
            "'round_robin', 'priority' or 'sorted'",
        )  # fmt: skip
        _require(
            not set('{}') & set(self.global_keyprefix), 'global_keyprefix',
            self.global_keyprefix, 'without braces: they mark the hash tag behind it',
        )  # fmt: skip
        for name in (
            'fanout_maxlen', 'fanout_replay', 'fanout_life', 'failed_retention', 'failed_limit',
            'completed_limit', 'socket_timeout', 'socket_connect_timeout', 'confirm_timeout',
        ):  # fmt: skip
            _require(getattr(self, name) > 0, name, getattr(self, name), 'greater than 0')
        if self.completed_retention is not None:
            _require(
                self.completed_retention >= 0, 'completed_retention', self.completed_retention,
                '0 or more',
            )  # fmt: skip
        _require(self.confirm_replicas >= 0, 'confirm_replicas', self.confirm_replicas, '0 or more')
        _require(
            not (self.confirm_replicas or self.confirm_fsync)
            or self.confirm_timeout < self.socket_timeout,
            'confirm_timeout', self.confirm_timeout, 'less than socket_timeout',
        )  # fmt: skip
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (int, float)):
                _require(value <= LARGEST, entry.name, value, f'at most {LARGEST:.0f}')

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Builds the options from ``transport_options`` and a URL's query.

        Raises:
            InvalidOption: an option is unknown (the message names the nearest one) or its
                value makes no sense.
        """
        known = {entry.name: entry for entry in fields(cls)}
        values: dict[str, Any] = {}
        stock: set[str] = set()
        for name, masked in given.items():
            name, value = str(name), unmask(masked)
            if name in known:
                values[name] = _convert(name, value, known[name].type)
            elif name.startswith('ssl_'):
                values['ssl'] = {**(values.get('ssl') or {}), name: value}
            elif name in STOCK_OPTIONS:
                stock.add(name)
            elif name not in KOMBU_OPTIONS:
                raise InvalidOption(_unknown(name, known))
        _warn_once(frozenset(stock))
        return cls(**values)

    def rank(self, priority: int) -> int:
        """The rank under which a message of ``priority`` is stored; a higher one runs first."""
        priority = max(0, min(255, priority))
        return priority if self.priority_order == 'highest-first' else 255 - priority

    def kept_for(self, marked: bool) -> int | None:
        """For how long a completed job is kept of which nobody has said anything, in ms; None if
        it is not kept.

        Args:
            marked: whether it is tagged or tracked.
        """
        if self.completed_retention is not None:
            return round(self.completed_retention * 1000)
        return KEPT_IF_MARKED if marked else None


def _require(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        raise InvalidOption(f'transport option {name}={value!r} must be {expected}')


def _unknown(name: str, known: Mapping[str, Any]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f', did you mean {nearest[0]!r}?' if nearest else f'; known are {", ".join(known)}'
    return f'unknown transport option {name!r}{hint}'


def _warn_once(stock: frozenset[str]) -> None:
    if stock and stock not in _warned:
        _warned.add(stock)
        logger.warning(
            'transport options of the stock redis transport have no meaning here '
            'and are ignored: %s',
            ', '.join(sorted(stock)),
        )


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        if value.lower() in ('1', 'true', 'yes', 'on'):
            return True
        if value.lower() in ('0', 'false', 'no', 'off'):
            return False
        raise ValueError(value)
    return bool(value)


def _tls_settings(value: Any) -> dict[str, Any] | None:
    """``True`` stands for TLS with its defaults."""
    if isinstance(value, Mapping):
        return unmask_secrets(value)
    return {} if _flag(value) else None


def _convert(name: str, value: Any, kind: Any) -> Any:
    """Converts what a URL can only say as text."""
    kind = str(kind)
    if value is None and 'None' in kind:
        return None
    try:
        if kind.startswith('float'):
            return float(value)
        if kind.startswith('int'):
            return int(value)
        if kind.startswith('bool'):
            return _flag(value)
        if kind.startswith('str') and not isinstance(value, str):
            raise TypeError(value)
        if name == 'ssl':
            return _tls_settings(value)
    except (TypeError, ValueError, OverflowError):
        shown = '**' if name in SECRETS else repr(value)
        raise InvalidOption(
            f'transport option {name}={shown} is not a {kind.split(" ")[0].split("[")[0]}'
        ) from None
    return value
