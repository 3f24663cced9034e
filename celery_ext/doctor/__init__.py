"""Looks for what is set up so that tasks may be lost, run twice, or wait for nothing.

Each check yields findings; a finding says what is the case and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis.exceptions
from kombu.exceptions import OperationalError

from celery_ext.broker import is_ours
from celery_ext.doctor import application, data, server
from celery_ext.doctor.patient import Finding, Patient
from kombu_reliable import ReliableError

__all__ = ('CHECKS', 'Finding', 'examine')

#: The checks, by name, in the order in which they are made.
CHECKS: dict[str, Callable[[Patient], Iterable[Finding]]] = {
    'version': server.version,
    'memory': server.memory,
    'persistence': server.persistence,
    'clock': server.clock,
    'replication': server.replication,
    'layout': data.layout,
    'leftovers': data.leftovers,
    'queues': data.queues,
    'lease': application.lease,
    'acks': application.acks,
    'extension': application.extension,
    'results': application.results,
}


def examine(app: Any) -> list[Finding]:
    """Makes all checks.  A server that cannot be reached ends them."""
    patient = Patient(app)
    found = list(_connection(patient))
    if any(one.level == 'problem' for one in found):
        return found
    for name, check in CHECKS.items():
        found += _made(name, check, patient)
    return found


def _made(name: str, check: Callable[[Patient], Iterable[Finding]], patient: Patient) -> Any:
    try:
        return list(check(patient))
    except Exception as error:  # one that cannot be made must not hide the others
        return [Finding(name, 'warning', f'could not be checked: {type(error).__name__}: {error}')]


def _connection(patient: Patient) -> Iterator[Finding]:
    if not is_ours(patient.app):
        yield Finding(
            'connection', 'problem', 'the broker is not kombu_reliable',
            'write "reliable+" in front of the broker URL',
        )  # fmt: skip
        return
    try:
        patient.store.client.ping()
        url = patient.app.connection_for_write().as_uri()
    except (
        ReliableError, redis.exceptions.RedisError, OperationalError, OSError, TypeError, ValueError
    ) as error:  # fmt: skip
        yield Finding(
            'connection', 'problem', str(error) or type(error).__name__,
            'check broker_url, broker_transport_options, and that the server runs',
        )  # fmt: skip
        return
    yield Finding('connection', 'ok', f'{url} answers')
