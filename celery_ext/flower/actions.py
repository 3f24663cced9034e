"""What the buttons do: each is one POST, answered with one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from celery_ext.flower.query import Query
from celery_ext.flower.text import plural
from celery_ext.flower.watch import Progress
from celery_ext.job import Job
from kombu_reliable import InvalidArgument, UnknownJob

__all__ = ('ACTIONS', 'LONG', 'Answer', 'Long', 'result_of')

Level = Literal['success', 'warning', 'danger']


class Answer(NamedTuple):
    """What came of an action.

    Args:
        text: a sentence.
        level: ``warning`` where nothing needed to be done, as somebody else had done it.
    """

    text: str
    level: Level = 'success'


def done(text: str) -> Answer:
    return Answer(text)


def same(text: str) -> Answer:
    return Answer(text, 'warning')


def _short(name: str) -> str:
    return name if len(name) <= 60 else f'{name[:59]}…'


# -- queues ----------------------------------------------------------------------


def pause(extension: Any, query: Query) -> Answer:
    name = query.needed('queue')
    if extension.queues[name].pause():
        return done(f'Queue {_short(name)} is paused.')
    return same(f'Queue {_short(name)} was paused before.')


def resume(extension: Any, query: Query) -> Answer:
    name = query.needed('queue')
    if extension.queues[name].resume():
        return done(f'Queue {_short(name)} goes on.')
    return same(f'Queue {_short(name)} was not paused.')


# -- jobs ------------------------------------------------------------------------

_CANCELED = {
    'gone': 'Job {} will never start.',
    'requested': 'Job {} was taken from its worker; what comes of it does not count.',
}


def _job(extension: Any, query: Query) -> Job:
    """The job that a button stood beside: by its own key if several have one id."""
    key = query.text('key')
    name = query.needed('id')
    found: Job = extension.jobs.by_key(name, key) if key else extension.jobs[name]
    return found


def cancel(extension: Any, query: Query) -> Answer:
    name = query.needed('id')
    answer = extension.jobs.cancel(
        name, terminate=query.flag('terminate'), cascade=query.flag('cascade')
    )
    if answer == 'unknown':
        raise UnknownJob(f'job {_short(name)} has ended already')
    return done(_CANCELED[answer].format(_short(name)))


def retry(extension: Any, query: Query) -> Answer:
    job = _job(extension, query).retry()
    return done(f'Job {_short(job.id)} runs again in queue {_short(job.queue)}.')


def discard(extension: Any, query: Query) -> Answer:
    job = _job(extension, query)
    job.discard()
    return done(f'Job {_short(job.id)} is deleted.')


def move(extension: Any, query: Query) -> Answer:
    job, queue = _job(extension, query), query.needed('queue')
    before = job.queue
    if before == queue:
        return same(f'Job {_short(job.id)} is in queue {_short(queue)} already.')
    job.move(queue)
    return done(f'Job {_short(job.id)} went from {_short(before)} to {_short(queue)}.')


def set_priority(extension: Any, query: Query) -> Answer:
    number = query.number('priority', -1, 0, 255)
    if number < 0:
        raise InvalidArgument('priority is missing')
    job = _job(extension, query)
    job.set_priority(number)
    return done(f'Job {_short(job.id)} has priority {number}.')


def run_job_now(extension: Any, query: Query) -> Answer:
    job = _job(extension, query)
    if job.state != 'delayed':
        return same(f'Job {_short(job.id)} is {job.state}: it waits for no time.')
    job.reschedule(countdown=0)
    return done(f'Job {_short(job.id)} starts as soon as a worker is free.')


# -- dead letters in groups ------------------------------------------------------


class Long(NamedTuple):
    """An action on many jobs.

    Args:
        key: what nobody else may do at the same time.
        text: what goes on.
        act: does it.
        said: what was done, with ``{}`` for the number.
    """

    key: str
    text: str
    act: Callable[[Any, Progress], int]
    said: str


def replay_group(query: Query) -> Long:
    name = query.needed('group')
    return Long(
        f'group {name}', f'replaying the group {_short(name)}',
        lambda extension, progress: int(extension.dead.replay_group(name, progress)),
        f'{{}} of the group {_short(name)} run again.',
    )  # fmt: skip


def discard_group(query: Query) -> Long:
    name = query.needed('group')
    return Long(
        f'group {name}', f'deleting the group {_short(name)}',
        lambda extension, progress: int(extension.dead.discard_group(name, progress)),
        f'{{}} of the group {_short(name)} are deleted.',
    )  # fmt: skip


def result_of(long: Long, number: int | None) -> Answer:
    """What to say of it; None if it goes on."""
    if number is None:
        return done(f'This takes a while: {long.text}. It goes on by itself.')
    if not number:
        return same('There was nothing to do: somebody else may have been faster.')
    return done(long.said.replace('{}', plural(number, 'dead letter')))


# -- throttles -------------------------------------------------------------------


def set_throttle(extension: Any, query: Query) -> Answer:
    name = query.needed('throttle')
    concurrency, burst = query.optional('concurrency'), query.optional('burst')
    rate = query.text('rate').strip() or None
    minutes = query.optional('minutes')
    if concurrency is None and rate is None and not query.flag('unlimited'):
        raise InvalidArgument('enter a concurrency or a rate, or choose "no limit"')
    if query.flag('unlimited'):
        concurrency = rate = burst = None
    throttle = extension.throttles[name]
    throttle.set(concurrency, rate, burst, minutes * 60 if minutes else None)
    return done(f'The limits of {_short(name)} are set.')


def reset_throttle(extension: Any, query: Query) -> Answer:
    name = query.needed('throttle')
    if extension.throttles[name].delete():
        return done(f'The limits of the tasks hold again for {_short(name)}.')
    return same(f'Nothing was set for {_short(name)}.')


def release(extension: Any, query: Query) -> Answer:
    name, job = query.needed('throttle'), query.needed('id')
    if extension.throttles[name].release(job):
        return done(f'Job {_short(job)} has no slot of {_short(name)} any more.')
    return same(f'Job {_short(job)} has no slot of {_short(name)}.')


# -- schedules -------------------------------------------------------------------


def pause_schedule(extension: Any, query: Query) -> Answer:
    name = query.needed('schedule')
    if extension.schedules[name].pause():
        return done(f'Schedule {_short(name)} is paused.')
    return same(f'Schedule {_short(name)} was paused before.')


def resume_schedule(extension: Any, query: Query) -> Answer:
    name = query.needed('schedule')
    schedule = extension.schedules[name]
    if not schedule.resume():
        return same(f'Schedule {_short(name)} was not paused.')
    following = schedule.next_run
    told = f' It fires next at {following:%Y-%m-%d %H:%M:%S} UTC.' if following else ''
    return done(f'Schedule {_short(name)} goes on.{told}')


def run_schedule(extension: Any, query: Query) -> Answer:
    name = query.needed('schedule')
    result = extension.schedules[name].run_now()
    return done(f'Schedule {_short(name)} runs as {result.id}.')


#: Name in the address -> what it does.
ACTIONS: dict[str, Callable[[Any, Query], Answer]] = {
    'pause': pause,
    'resume': resume,
    'cancel': cancel,
    'retry': retry,
    'discard': discard,
    'move': move,
    'priority': set_priority,
    'run-job': run_job_now,
    'throttle-set': set_throttle,
    'throttle-reset': reset_throttle,
    'throttle-release': release,
    'schedule-pause': pause_schedule,
    'schedule-resume': resume_schedule,
    'schedule-run': run_schedule,
}

LONG: dict[str, Callable[[Query], Long]] = {
    'replay-group': replay_group,
    'discard-group': discard_group,
}
