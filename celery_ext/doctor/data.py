"""Checks of what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis.exceptions

from celery_ext.doctor.patient import Finding, Patient, some, text_of
from celery_ext.ends import ENDS
from kombu_reliable import ReliableError
from kombu_reliable.options import STOCK_OPTIONS

__all__ = ('layout', 'leftovers', 'queues')

#: Ends that no worker reported, and that nobody has read, beyond which none seems to read them.
UNREAD_ENDS = 1000


def layout(patient: Patient) -> Iterator[Finding]:
    store = patient.store
    try:
        store.check_layout()
    except (ReliableError, redis.exceptions.ResponseError) as error:
        yield Finding(
            'layout', 'problem', str(error),
            'use the version of kombu_reliable that wrote the data, or another database or '
            'global_keyprefix',
        )  # fmt: skip
        return
    keys = store.keys
    kinds = {keys.meta: 'hash', keys.owners: 'hash', keys.producers: 'zset', keys.alarms: 'zset'}
    foreign = [
        key for key, kind in kinds.items() if text_of(store.client.type(key)) not in ('none', kind)
    ]
    if foreign:
        yield Finding(
            'layout', 'problem', f'{", ".join(foreign)} was overwritten by somebody else',
            'delete it, and use another database or global_keyprefix for one of the two',
        )  # fmt: skip
        return
    yield Finding('layout', 'ok', 'the data is of this version')


def leftovers(patient: Patient) -> Iterator[Finding]:
    given: set[str] = set(patient.conf.broker_transport_options or {})
    unused = sorted((given & STOCK_OPTIONS) | _found_in_results(patient.conf))
    if unused:
        yield Finding(
            'leftovers', 'warning', f'options without meaning here are set: {", ".join(unused)}',
            'remove them; instead of visibility_timeout there is lease, which need not be as '
            'long as the longest task',
        )  # fmt: skip
    waits = _waiting_in_stock(patient)
    if waits:
        yield Finding(
            'leftovers', 'warning',
            f"about {waits:,} messages of kombu's redis transport wait in this database",
            'celery -A proj reliable migrate --from redis://...',
        )  # fmt: skip
    if not (unused or waits):
        yield Finding('leftovers', 'ok', "nothing is left of kombu's redis transport")


def _found_in_results(conf: Any) -> set[str]:
    given = conf.result_backend_transport_options or {}
    return {'result_backend_transport_options[visibility_timeout]'} & {
        f'result_backend_transport_options[{name}]' for name in given
    }


def _waiting_in_stock(patient: Patient) -> int:
    """Messages in the lists of the app's queues and in workers' hands."""
    prefix = patient.options.global_keyprefix
    given = patient.conf.broker_transport_options or {}
    sep, steps = given.get('sep', '\x06\x16'), given.get('priority_steps', (0, 3, 6, 9))
    unacked = given.get('unacked_key', 'unacked')
    with patient.store.client.pipeline(transaction=False) as pipe:
        pipe.hlen(prefix + unacked)
        for queue in patient.app.amqp.queues:
            for step in steps:
                pipe.llen(f'{prefix}{queue}{sep}{step}' if step else prefix + queue)
        replies = pipe.execute(raise_on_error=False)
    return sum(reply for reply in replies if isinstance(reply, int))


def queues(patient: Patient) -> Iterator[Finding]:
    jobs, limit = patient.store.jobs, patient.options.failed_limit
    names = jobs.queues()
    paused = jobs.paused()
    full = [name for name in names if jobs.counts(name).dead >= 0.9 * limit]
    if paused:
        yield Finding(
            'queues', 'warning', f'{some(paused)} paused: nothing is started there',
            'celery -A proj reliable resume QUEUE, if that was forgotten',
        )  # fmt: skip
    if full:
        yield Finding(
            'queues', 'warning',
            f'{some(full)} near the limit of {limit:,} dead letters: the oldest are deleted',
            'celery -A proj reliable failed groups',
        )  # fmt: skip
    if ENDS in names and jobs.counts(ENDS).ready > UNREAD_ENDS:
        yield Finding(
            'queues', 'warning', 'ends of tasks that no worker has seen are not written to the '
            'result backend: no worker reads of them',
            'run workers with celery_ext.install(app)',
        )  # fmt: skip
    if not (paused or full):
        yield Finding('queues', 'ok', 'none is paused, none overflows')
