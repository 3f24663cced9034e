"""Operations of celery_ext, and of Celery with it: jobs, queues, dead letters, tags, throttles."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Any

from celery.exceptions import TimeoutError as ResultTimeout

from celery_ext import Throttle
from celery_ext.current import CurrentJob
from kombu_reliable import DuplicateJob, UnknownJob, WrongState
from tests.faults.table import Act, operation
from tests.faults.world import QUEUE, TASK, World
from tests.support.wait import wait_for

LATER = datetime(2050, 1, 1, tzinfo=UTC)


def send(w: World, id: str, name: str = TASK, **options: Any) -> Any:
    """Publishes through the proxy, as a program does."""
    options.setdefault('task_id', id)
    return w.ext.app.tasks[name].apply_async((id,), **options).id


# -- publishing ----------------------------------------------------------------------


@operation()
def apply_async(w: World) -> Act:
    """From the first connection on."""
    assert w.ext
    return lambda: send(w, 'a')


@operation()
def apply_async_with_depends_on(w: World) -> Act:
    w.have('a')
    w.have_published()
    return lambda: send(w, 'b', depends_on=['a'], dependency_policy='fail', ignore_result=True)


@operation()
def apply_async_with_tags(w: World) -> Act:
    w.have_published()
    return lambda: send(w, 'a', tags=['x', 'y'], track=True, countdown=60, ignore_result=True)


@operation()
def apply_async_with_throttles(w: World) -> Act:
    w.have_published()
    throttles = [Throttle('t', concurrency=1, rate='5/s')]
    return lambda: send(w, 'a', throttles=throttles, ignore_result=True)


@operation()
def apply_async_unique(w: World) -> Act:
    w.have_published()
    return lambda: send(w, 'a', 'faults.skip', ignore_result=True)


@operation()
def apply_async_unique_replacing(w: World) -> Act:
    w.send('faults.replace', 'k', task_id='a')
    w.have_published()
    return lambda: send(w, 'k', 'faults.replace', task_id='b', ignore_result=True)


@operation()
def apply_async_unique_refused(w: World) -> Act:
    """Whoever has the key is named, also if the answer was lost."""
    w.send('faults.raise', 'k', task_id='a')
    w.have_published()

    def act() -> Any:
        try:
            send(w, 'k', 'faults.raise', task_id='b', ignore_result=True)
        except DuplicateJob as error:
            return error.id
        return 'published'

    return act


@operation()
def apply_async_unique_skipped(w: World) -> Act:
    w.send('faults.skip', 'k', task_id='a')
    w.have_published()
    return lambda: send(w, 'k', 'faults.skip', task_id='b', ignore_result=True)


@operation()
def canvas(w: World) -> Act:
    w.have_published()

    def act() -> Any:
        task = w.ext.app.tasks[TASK]
        first, second = (task.si(one).set(task_id=one, ignore_result=True) for one in 'ab')
        (first | second).apply_async()

    return act


#: What a job tells of itself, as it was when it was looked at.
READ = (
    'completed_at', 'deliveries', 'dependency_policy', 'dependents', 'due', 'failure', 'history',
    'progress', 'published_at', 'result', 'throttles', 'worker',
)  # fmt: skip


# -- jobs ----------------------------------------------------------------------------


@operation()
def looks_at_jobs(w: World) -> Act:
    w.have('a', 'b', tags=['x'], track=True)
    w.have('c', depends_on=['a'])
    w.dead('d', queue='other')
    assert w.ext

    def act() -> Any:
        jobs = w.ext.jobs
        job = jobs['c']
        return (
            'z' in jobs, jobs.by_key('b', '=b'), jobs.tagged('x'), jobs.tracked(),
            jobs.in_state('failed'), jobs.failed(), job.refresh().state, job.task, job.args,
            job.kwargs, list(job.depends_on), len(job.depends_on), job.depends_on.total,
            [(name, getattr(job, name)) for name in READ],
        )  # fmt: skip

    return act


@operation()
def finds_jobs(w: World) -> Act:
    w.have('a', 'b', tags=['x'])
    w.dead('c', queue='other')
    jobs = w.ext.jobs

    def act() -> Any:
        pages = (
            jobs.search(within=60), jobs.search(tags=['x'], task='*', limit=1, within=60),
        )  # fmt: skip
        found = [([job.id for job in page.jobs], page.next, page.total) for page in pages]
        return found, sorted(jobs.some(['a', 'z']))

    return act


@operation(again=['requested', 'unknown'])
def cancel(w: World) -> Act:
    """If the first answer was lost nobody knows whether a worker had it."""
    w.have('a')
    assert w.ext
    return lambda: w.ext.jobs.cancel('a')


@operation(steps='it is taken from its worker, then all workers are told', loose=['s:'])
def cancel_one_that_runs(w: World) -> Act:
    """All workers hear of it, however often it is asked."""
    heard = Hearing(w)
    w.have('a')
    w.lease()
    job = w.ext.jobs['a']
    w.have_published()

    def act() -> Any:
        job.cancel(terminate=True)
        return heard.methods()

    return act


@operation(steps='what is queued is removed, then all workers are told', loose=['s:'])
def revoke(w: World) -> Act:
    heard = Hearing(w)
    w.have('a')
    w.have_published()

    def act() -> Any:
        w.ext.app.AsyncResult('a').revoke()
        return heard.methods()

    return act


class Hearing:
    """A worker's ear: what is said to all of them, each word once."""

    def __init__(self, w: World) -> None:
        self.stream = w.keys.fanout('celery.pidbox')
        self.w = w
        w.far.run(w.far.operations.listen('celery.pidbox', 'me:q', 'q'))

    def methods(self) -> bool:
        return bool(self.w.client.xlen(self.stream))


@operation(again=[WrongState])
def retry(w: World) -> Act:
    w.dead('a')
    assert w.ext
    return lambda: w.ext.jobs.retry('a')


@operation(again=[WrongState])
def job_retry(w: World) -> Act:
    w.dead('a')
    job = w.ext.jobs['a']
    return lambda: job.retry()


@operation(again=[UnknownJob])
def job_discard(w: World) -> Act:
    w.dead('a')
    job = w.ext.jobs['a']
    return lambda: job.discard()


@operation()
def job_move(w: World) -> Act:
    w.have('a')
    job = w.ext.jobs['a']
    return lambda: job.move('other').queue


@operation()
def job_set_priority(w: World) -> Act:
    w.have('a')
    job = w.ext.jobs['a']
    return lambda: job.set_priority(9).priority


@operation()
def job_reschedule(w: World) -> Act:
    w.have('a')
    job = w.ext.jobs['a']
    return lambda: job.reschedule(LATER).state


@operation()
def job_tag(w: World) -> Act:
    w.have('a', tags=['x'])
    job = w.ext.jobs['a']
    return lambda: job.tag('y', 'z').tags


@operation()
def job_untag(w: World) -> Act:
    w.have('a', tags=['x', 'y'])
    job = w.ext.jobs['a']
    return lambda: job.untag('x').tags


@operation()
def job_track(w: World) -> Act:
    w.have('a')
    job = w.ext.jobs['a']
    return lambda: job.track().tracked


@operation()
def job_untrack(w: World) -> Act:
    w.have('a', track=True)
    job = w.ext.jobs['a']
    return lambda: job.untrack().tracked


@operation()
def job_depends_on_more(w: World) -> Act:
    w.have('a', 'c')
    w.have('b', depends_on=['a'])
    job = w.ext.jobs['b']

    def act() -> Any:
        job.depends_on.add('c')
        return sorted(job.depends_on)

    return act


@operation()
def job_depends_on_less(w: World) -> Act:
    w.have('a', 'c')
    w.have('b', depends_on=['a', 'c'])
    job = w.ext.jobs['b']

    def act() -> Any:
        job.depends_on.remove('a')
        return list(job.depends_on)

    return act


@operation(loose=['x:'], steps='one step after the other')
def current_job(w: World) -> Act:
    """What a task tells of itself; a line may stand there twice."""
    w.have('a', tags=['x'])
    held = w.lease()[0]
    current = CurrentJob(w.ext, 'a', held.token, held.id)

    def act() -> Any:
        current.log('here', {'n': 1})
        current.progress(0.5)
        current.tag('y')
        current.untag('x')
        return current.look().tags

    return act


@operation()
def opens_its_store(w: World) -> Act:
    """By which the server hears to whom ends are told."""
    extension = w.unopened()
    return lambda: extension.store.now() > 0


# -- queues and dead letters ---------------------------------------------------------


@operation()
def looks_at_queues(w: World) -> Act:
    w.have('a', 'b')
    w.have('c', countdown=60)
    queue = w.ext.queues[QUEUE]
    return lambda: (
        queue.peek(3), queue.paused, len(queue), w.ext.queues.paused(),
        [one.name for one in w.ext.queues], queue.stats().failed,
    )  # fmt: skip


@operation(again=[False])
def queue_pause(w: World) -> Act:
    queue = w.ext.queues[QUEUE]
    return lambda: queue.pause()


@operation(again=[False])
def queue_resume(w: World) -> Act:
    w.far.jobs.pause(QUEUE)
    queue = w.ext.queues[QUEUE]
    return lambda: queue.resume()


@operation(again=[0, 1], steps='state after state')
def queue_purge(w: World) -> Act:
    w.have('a', 'b')
    w.have('c', countdown=60)
    queue = w.ext.queues[QUEUE]

    def act() -> Any:
        queue.purge()

    return act


@operation()
def queue_throttle(w: World) -> Act:
    throttle = w.ext.queues[QUEUE].throttle
    return lambda: throttle.set(concurrency=3)


@operation()
def looks_at_dead_letters(w: World) -> Act:
    w.dead('a', 'b')
    dead = w.ext.dead
    return lambda: (sorted(job.id for job in dead), dead.groups())


@operation(again=[WrongState])
def dead_replay(w: World) -> Act:
    w.dead('a')
    dead = w.ext.dead
    return lambda: dead.replay('a')


@operation(again=[0], steps='step by step')
def dead_replay_group(w: World) -> Act:
    w.dead('a', 'b')
    dead = w.ext.dead
    return lambda: dead.replay_group('g')


@operation(again=[UnknownJob])
def dead_discard(w: World) -> Act:
    w.dead('a')
    dead = w.ext.dead
    return lambda: dead.discard('a')


@operation(again=[0], steps='step by step')
def dead_discard_group(w: World) -> Act:
    w.dead('a', 'b')
    dead = w.ext.dead
    return lambda: dead.discard_group('g')


# -- tags ----------------------------------------------------------------------------


@operation()
def looks_at_tags(w: World) -> Act:
    w.have('a', 'b', tags=['x', 'y'])
    tags = w.ext.tags
    return lambda: (
        tags.top(), list(tags['x']), tags.select('x', 'y').cancel(dry_run=True).done,
    )  # fmt: skip


@operation(steps='step by step', loose=['s:'])
def tagged_cancel(w: World) -> Act:
    heard = Hearing(w)
    w.have('a', 'b', tags=['x'])
    w.lease()
    tags = w.ext.tags
    w.have_published()

    def act() -> Any:
        tags['x'].cancel(terminate=True)
        return heard.methods()

    return act


@operation(steps='step by step')
def tagged_retry(w: World) -> Act:
    w.dead('a', 'b', tags=['x'])
    tags = w.ext.tags

    def act() -> Any:
        tags['x'].retry()

    return act


@operation(steps='step by step')
def tagged_move(w: World) -> Act:
    w.have('a', 'b', tags=['x'])
    tags = w.ext.tags
    return lambda: tags['x'].move('other').done


@operation(steps='step by step')
def tagged_set_priority(w: World) -> Act:
    w.have('a', 'b', tags=['x'])
    tags = w.ext.tags
    return lambda: tags['x'].set_priority(7).done


# -- throttles -----------------------------------------------------------------------


@operation()
def looks_at_throttles(w: World) -> Act:
    w.have('a', 'b', throttles=[{'name': 't', 'concurrency': 1}])
    w.lease()
    throttles = w.ext.throttles
    return lambda: (
        't' in throttles, throttles['t'].holders(), throttles['t'].pending(),
        [one.name for one in throttles], [one.pending for one in throttles.look()],
    )  # fmt: skip


@operation()
def throttle_set(w: World) -> Act:
    throttle = w.ext.throttles['t']
    return lambda: throttle.set(concurrency=2, rate='5/s', expires=60)


@operation()
def throttle_delete(w: World) -> Act:
    w.far.throttles.set('t', concurrency=2)
    throttle = w.ext.throttles['t']
    return lambda: throttle.delete() in (True, False)


@operation()
def throttle_release(w: World) -> Act:
    w.have('a', 'b', throttles=[{'name': 't', 'concurrency': 1}])
    w.lease()
    throttle = w.ext.throttles['t']
    return lambda: throttle.release('a') in (True, False)


# -- events, statistics, workers -----------------------------------------------------


@operation(patience=4.0)
def events_listen(w: World) -> Act:
    w.have('a', track=True)
    w.have('b', track=True)
    events = w.ext.events
    return lambda: [one.id for one in events.listen('0', timeout=0.2)]


@operation(patience=4.0)
def events_on(w: World) -> Act:
    """A subscription goes on over lost connections, and tells each event once."""
    w.have('a', track=True)
    w.have('b', track=True)
    events = w.ext.events

    def act() -> Any:
        heard: list[Any] = []
        with events.on('put', lambda event: heard.append(event.id), since='0'):
            wait_for(lambda: len(heard) >= 2, 8, 'events')
        return heard

    return act


@operation()
def events_on_from_now(w: World) -> Act:
    events = w.ext.events

    def act() -> Any:
        events.on('put', print).close()

    return act


@operation()
def looks_at_statistics(w: World) -> Act:
    stats = w.ext.stats
    return lambda: (stats().failed, stats.by('task', days=2))


@operation()
def looks_at_workers(w: World) -> Act:
    w.far.presence.beat('host:1:x', 60, 1, {'name': 'me@host', 'lease': 1})
    w.have('a')
    w.lease()
    workers = w.ext.workers
    return lambda: (
        workers['me@host'].holding, len(workers), workers.alive()[0].jobs,
        [one.name for one in workers],
    )  # fmt: skip


# -- results -------------------------------------------------------------------------


@operation(errors=(ResultTimeout,), patience=8.0)
def result_that_is_there(w: World) -> Act:
    w.far_ext.app.backend.store_result('a', 42, 'SUCCESS')
    assert w.ext
    return lambda: w.ext.app.AsyncResult('a').get(timeout=6)


@operation(errors=(ResultTimeout,), patience=8.0)
def result_that_comes(w: World) -> Act:
    """Somebody waits for it."""
    assert w.ext
    backend = w.far_ext.app.backend

    def act() -> Any:
        def tell() -> None:
            channel = backend.get_key_for_task('a')
            wait_for(lambda: dict(w.client.pubsub_numsub(channel))[channel], 8, 'a listener')
            backend.store_result('a', 42, 'SUCCESS')

        teller = threading.Thread(target=tell)
        teller.start()
        try:
            return w.ext.app.AsyncResult('a').get(timeout=6)
        finally:
            teller.join()

    return act


@operation(patience=8.0)
def result_is_stored(w: World) -> Act:
    assert w.ext

    def act() -> Any:
        backend = w.ext.app.backend
        backend.store_result('a', 42, 'SUCCESS')
        return backend.get_task_meta('a', cache=False)['result']

    return act


@operation(patience=8.0)
def result_is_forgotten(w: World) -> Act:
    w.far_ext.app.backend.store_result('a', 42, 'SUCCESS')
    assert w.ext
    return lambda: w.ext.app.AsyncResult('a').forget()
