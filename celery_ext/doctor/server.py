"""Checks of the server."""

from __future__ import annotations

import time
from collections.abc import Iterator

from celery_ext.doctor.patient import Finding, Patient
from kombu_reliable import UnsupportedServer
from kombu_reliable.transport.examination import check_version

__all__ = ('clock', 'memory', 'persistence', 'replication', 'version')

#: How far clocks may be apart, in seconds.
SKEW, GREAT_SKEW = 1.0, 30.0


def version(patient: Patient) -> Iterator[Finding]:
    info = patient.info
    name = 'Valkey' if 'valkey_version' in info else 'Redis'
    try:
        check_version(info)
    except UnsupportedServer as error:
        yield Finding('version', 'problem', str(error), 'use a newer server')
        return
    number = info.get('valkey_version') or info.get('redis_version')
    yield Finding('version', 'ok', f'{name} {number}')


def memory(patient: Patient) -> Iterator[Finding]:
    info = patient.info
    policy, most = info.get('maxmemory_policy', 'noeviction'), info.get('maxmemory', 0)
    if policy != 'noeviction':
        yield Finding(
            'memory', 'problem',
            f'maxmemory-policy is {policy}: when its memory is full, the server deletes messages',
            'CONFIG SET maxmemory-policy noeviction, and put it into its configuration file',
        )  # fmt: skip
    elif most and info['used_memory'] > 0.8 * most:
        yield Finding(
            'memory', 'warning',
            f'{info["used_memory"] / most:.0%} of maxmemory is used; when it is full, publishes '
            'are refused',
            'raise maxmemory, or find out which queue grows: celery ... reliable queues',
        )  # fmt: skip
    else:
        yield Finding('memory', 'ok', 'when its memory is full, the server refuses new messages')


def persistence(patient: Patient) -> Iterator[Finding]:
    info = patient.info
    for field, what in (('aof_last_write_status', 'write its append-only file'),
                        ('rdb_last_bgsave_status', 'write its snapshot')):  # fmt: skip
        if info.get(field, 'ok') != 'ok':
            yield Finding(
                'persistence', 'problem', f'the server could not {what}',
                'look into its log: is the disk full?',
            )  # fmt: skip
    if info.get('aof_enabled'):
        fsync = patient.setting('appendfsync') or 'everysec'
        if fsync == 'no':
            yield Finding(
                'persistence', 'warning',
                'appendfsync is no: a crash of the machine loses up to half a minute of tasks',
                'CONFIG SET appendfsync everysec',
            )  # fmt: skip
        else:
            lost = 'nothing' if fsync == 'always' else 'the last one or two seconds'
            yield Finding('persistence', 'ok', f'appendfsync is {fsync}: a crash loses {lost}')
        return
    if patient.setting('save') == '':
        yield Finding(
            'persistence', 'problem',
            'the server keeps nothing on disk: all tasks are lost when it restarts',
            'CONFIG SET appendonly yes, and put it into its configuration file',
        )  # fmt: skip
    else:
        yield Finding(
            'persistence', 'warning',
            'the server writes snapshots only: a crash loses the minutes since the last one',
            'CONFIG SET appendonly yes, and put it into its configuration file',
        )  # fmt: skip


def clock(patient: Patient) -> Iterator[Finding]:
    before = time.time()
    server = patient.store.now() / 1000
    skew = server - (before + time.time()) / 2
    where = f'{abs(skew):.1f} s {"ahead of" if skew > 0 else "behind"} that of this machine'
    if abs(skew) <= SKEW:
        yield Finding('clock', 'ok', "the server's clock agrees with that of this machine")
        return
    yield Finding(
        'clock', 'problem' if abs(skew) > GREAT_SKEW else 'warning',
        f"the server's clock is {where}: tasks with a countdown start so much early or late",
        'let both be set by NTP',
    )  # fmt: skip


def replication(patient: Patient) -> Iterator[Finding]:
    info, wanted = patient.info, patient.options.confirm_replicas
    if info.get('role', 'master') != 'master':
        yield Finding(
            'replication', 'problem', 'the server is a replica: it takes no messages',
            'point broker_url at its primary, or at the sentinels',
        )  # fmt: skip
        return
    replicas = int(info.get('connected_slaves', 0))
    if wanted > replicas:
        yield Finding(
            'replication', 'problem',
            f'confirm_replicas is {wanted}, and {replicas} replicas are connected: no publish '
            'can be confirmed',
            'connect the replicas, or lower confirm_replicas',
        )  # fmt: skip
        return
    lagging = [
        name
        for name, one in info.items()
        if name.startswith('slave')
        and isinstance(one, dict)
        and (one.get('state') != 'online' or int(one.get('lag', 0)) > 10)
    ]
    if lagging:
        yield Finding(
            'replication', 'warning', f'{len(lagging)} of {replicas} replicas lag behind',
            'a failover to one of them would lose what it has not got; look into its log',
        )  # fmt: skip
        return
    yield Finding('replication', 'ok', f'{replicas} replicas')
