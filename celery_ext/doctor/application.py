"""Checks of the app and its tasks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from celery_ext.doctor.patient import Finding, Patient, some

__all__ = ('acks', 'extension', 'lease', 'results')

#: Leases shorter than this are lost in short stalls; longer ones keep the work of killed workers.
SHORT_LEASE, LONG_LEASE = 5.0, 300.0

#: How long a result backend has to answer, in seconds.
PATIENCE = 5.0


def lease(patient: Patient) -> Iterator[Finding]:
    length, limit = patient.options.lease, patient.conf.task_time_limit
    limits = [task.time_limit for task in _tasks(patient.app) if task.time_limit]
    longest = max([*limits, limit or 0])
    if length < SHORT_LEASE:
        yield Finding(
            'lease', 'warning',
            f'the lease is {length:g} s: a worker that stalls so long loses its tasks',
            f'make it {SHORT_LEASE:g} s or more; 30 is the default',
        )  # fmt: skip
    elif length > LONG_LEASE or (longest and length > 30 and length >= longest):
        why = f', and no task may run longer than {longest:g} s' if longest else ''
        yield Finding(
            'lease', 'warning',
            f'the lease is {length:g} s{why}: so long wait the tasks of a worker that was killed',
            'make it shorter; it is renewed while a task runs, so 30 s do for hours',
        )  # fmt: skip
    else:
        yield Finding(
            'lease', 'ok', f'tasks of a worker that was killed start again after {length:g} s'
        )


def _tasks(app: Any) -> list[Any]:
    """The app's own tasks."""
    app.loader.import_default_modules()
    app.finalize()
    foreign = ('celery.', 'celery_ext.')
    return [task for name, task in sorted(app.tasks.items()) if not name.startswith(foreign)]


def acks(patient: Patient) -> Iterator[Finding]:
    tasks = _tasks(patient.app)
    early = [task.name for task in tasks if not task.acks_late]
    dropped = [
        task.name for task in tasks if task.acks_late and not task.reject_on_worker_lost
    ]  # fmt: skip
    requeued = [
        task.name for task in tasks if task.acks_late and not task.acks_on_failure_or_timeout
    ]
    if early:
        yield Finding(
            'acks', 'warning',
            f'{some(early)} acknowledged before the run: lost if the worker dies meanwhile',
            'set task_acks_late = True, or call celery_ext.install(app) before tasks are used',
        )  # fmt: skip
    if dropped:
        yield Finding(
            'acks', 'warning', f'{some(dropped)} not run again if the process is killed',
            'set task_reject_on_worker_lost = True',
        )  # fmt: skip
    if requeued:
        yield Finding(
            'acks', 'warning',
            f'{some(requeued)} run again after each failure, up to the delivery limit',
            'leave task_acks_on_failure_or_timeout at True: what fails becomes a dead letter',
        )  # fmt: skip
    if not (early or dropped or requeued):
        yield Finding('acks', 'ok', f'all {len(tasks)} tasks survive the death of their worker')


def extension(patient: Patient) -> Iterator[Finding]:
    if patient.app.__dict__.get('celery_ext') is None:
        yield Finding(
            'extension', 'warning',
            'celery_ext is not installed: failed tasks are acknowledged and gone',
            'call celery_ext.install(app) where the app is made',
        )  # fmt: skip
    else:
        yield Finding('extension', 'ok', 'celery_ext is installed')


def results(patient: Patient) -> Iterator[Finding]:
    conf, backend = patient.conf, patient.app.backend
    if not conf.result_backend or conf.result_backend.startswith('disabled'):
        yield Finding('results', 'ok', 'there is no result backend')
        return
    error = _in_time(lambda: _touch(backend))
    if error is not None:
        yield Finding(
            'results', 'problem', f'the result backend does not answer: {error}',
            'check result_backend; tasks that cannot store their result fail',
        )  # fmt: skip
    elif not conf.result_expires:
        yield Finding(
            'results', 'warning', 'results never expire: they fill the server',
            'set result_expires',
        )  # fmt: skip
    else:
        yield Finding('results', 'ok', 'the result backend answers')


def _touch(backend: Any) -> None:
    client: Any = getattr(backend, 'client', None)
    if hasattr(client, 'ping'):
        client.ping()
    else:
        backend.get_state('kombu_reliable.doctor')


def _in_time(look: Callable[[], None]) -> str | None:
    """What went wrong; backends try again for long."""
    outcome: list[str | None] = [f'not within {PATIENCE:g} s']

    def run() -> None:
        try:
            look()
            outcome[0] = None
        except Exception as error:
            outcome[0] = ' '.join(str(error).split()) or type(error).__name__

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return outcome[0]
