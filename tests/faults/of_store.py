"""Operations of the store."""

from __future__ import annotations

import json
import time
from typing import Any

from kombu_reliable import (
    Counting,
    Declaration,
    Firing,
    Status,
    Timing,
    UnknownJob,
    Verdict,
    WrongState,
    pack_id,
)
from kombu_reliable.scripts import script
from kombu_reliable.types import Dependencies, Settlement
from tests.faults.table import Act, operation
from tests.faults.world import QUEUE, World

TICKS = 'ticks'


def key(id: str) -> str:
    return pack_id(id)


def later(milliseconds: int = 3_600_000) -> int:
    return round(time.time() * 1000) + milliseconds


# -- looking -------------------------------------------------------------------------


@operation()
def looks_at_queues(w: World) -> Act:
    w.have('a', 'b')
    w.have('c', countdown=60)
    w.far.run(w.far.operations.bind('x', '["k", "q"]', 'q'))
    w.far.run(w.far.operations.declare('q'))

    def act() -> Any:
        store = w.store
        store.check_layout()
        return (
            store.counts(QUEUE), store.jobs.counts(QUEUE), store.knows('q'), store.knows('other'),
            store.known_queues(), store.jobs.queues(), store.jobs.paused(), store.bindings('x'),
            store.bindings_since('x', None)[1], store.knows_exchange('x'),
            store.overview(['q', QUEUE]).queues['q'], len(store.envelopes([key('a'), key('z')])),
            store.now() > 0,
        )  # fmt: skip

    return act


@operation()
def looks_at_jobs(w: World) -> Act:
    w.have('a', 'b')
    w.have('c', countdown=60)
    w.dead('d', queue='other')

    def act() -> Any:
        jobs = w.store.jobs
        return (
            jobs.get('a'), jobs.get('z'), jobs.all('c'), jobs.in_state(QUEUE, 'delayed'),
            jobs.failed(), jobs.failed('other', 'g'), jobs.groups(), jobs.look([key('b')]),
        )  # fmt: skip

    return act


@operation()
def looks_at_dependencies(w: World) -> Act:
    w.have('a')
    w.have('b', depends_on=['a'])
    return lambda: (w.store.edges.unmet(key('b')), w.store.edges.dependents(key('a')))


@operation()
def looks_at_tags(w: World) -> Act:
    w.have('a', 'b', 'c', tags=['x', 'y'], track=True)

    def act() -> Any:
        tags = w.store.tags
        return (
            tags.find(['x']).keys, tags.find(['x', 'y'], offset=1, limit=1).keys,
            tags.find(['x'], offset=1).keys, list(tags.walk(['y'])), tags.count('x'), tags.top(),
            tags.tracked(), tags.look([key('a')]),
        )  # fmt: skip

    return act


@operation()
def looks_at_throttles(w: World) -> Act:
    w.have('a', 'b', throttles=['t'])
    w.far.throttles.set('t', concurrency=1)
    w.lease()

    def act() -> Any:
        throttles = w.store.throttles
        return (
            throttles.get('t'), throttles.get('queue:q'), throttles.holders('t'),
            throttles.pending('t'), throttles.names(),
        )  # fmt: skip

    return act


@operation()
def looks_at_statistics(w: World) -> Act:
    counting = Counting()
    counting.ran(QUEUE, 'task', 0.1)
    counting.hand_over(w.far)
    stats = w.store.stats
    return lambda: (stats.read(stats.last(2)), stats.read([stats.today()], QUEUE, 'task'))


@operation()
def looks_at_workers(w: World) -> Act:
    w.far.presence.beat('me', 60, 1, {'name': 'me'})
    w.have('a')
    held = w.lease()[0]
    presence = w.store.presence
    return lambda: (presence.signs(), presence.holders(), presence.jobs([held.id]))


@operation()
def looks_at_schedules(w: World) -> Act:
    far = w.far.schedules(TICKS)
    for name in ('s', 't'):
        far.put(name, {'when': '{}', 'spec': '{}'}, Timing(later(), later()), '', {'event': 'x'})
    schedules = w.store.schedules(TICKS)
    return lambda: (
        schedules.get('s'), schedules.get('z'), len(schedules.read(['s', 't'])),
        sorted(schedules.names()), len(schedules), schedules.history('s'), schedules.now() > 0,
    )  # fmt: skip


@operation()
def looks_at_events(w: World) -> Act:
    w.have('a', track=True)
    w.have('b', track=True)

    def act() -> Any:
        events = w.store.events
        found = [(event.event, event.id) for event in events.listen('0', timeout=0.1)]
        return found, events.position() > '0'

    return act


@operation(patience=4.0)
def hears_events_as_they_come(w: World) -> Act:
    w.have('a', track=True)

    def act() -> Any:
        heard = w.store.events.listen(timeout=3.0)
        w.far.jobs.set_priority('a', 3)
        w.far.jobs.move('a', 'other')
        w.far.jobs.move('a', QUEUE)
        return [next(heard).event, next(heard).event]

    # Whether the listener is told of more than there was is the question, not how often the
    # repetition moves the job.
    return act


# -- queues --------------------------------------------------------------------------


@operation(again=[0], steps='a purge goes on in steps')
def purge(w: World) -> Act:
    w.have('a', 'b')
    return lambda: w.store.purge(QUEUE)


@operation()
def delete(w: World) -> Act:
    w.have('a', queue='q')
    w.far.run(w.far.operations.declare('q'))
    w.far.run(w.far.operations.bind('x', '["k", "q"]', 'q'))
    return lambda: w.store.delete('q', [('x', '["k", "q"]')])


@operation()
def tell_ends_to(w: World) -> Act:
    return lambda: w.store.tell_ends_to('ends')


@operation(loose=['meta'])
def unlock(w: World) -> Act:
    w.send('faults.raise', 'u', task_id='a')
    held = w.lease()[0]
    return lambda: w.store.unlock(held.id, held.token) in (True, False)


@operation()
def notice(w: World) -> Act:
    w.have('a')

    def act() -> Any:
        w.store.notice('noticed')
        return w.client.zscore(w.keys.noticed, 'noticed') is not None

    return act


@operation()
def stop_listening(w: World) -> Act:
    w.far.run(w.far.operations.listen('x', 'me:q', 'q'))
    return lambda: w.store.stop_listening('x', 'me:q')


@operation()
def load_scripts(w: World) -> Act:
    return lambda: w.store.load_scripts([script('pause'), script('notice')])


@operation(again=[False], cold=True)
def pause(w: World) -> Act:
    return lambda: w.store.jobs.pause('q')


@operation(again=[False])
def resume(w: World) -> Act:
    w.far.jobs.pause('q')
    return lambda: w.store.jobs.resume('q')


@operation(again=[0, 1, 2], steps='state after state')
def purge_by_state(w: World) -> Act:
    w.have('a', 'b')
    w.have('c', countdown=60)
    w.dead('d', queue='other')
    return lambda: w.store.jobs.purge(QUEUE, ('ready', 'delayed')) and None


@operation(safe=True)
def confirm(w: World) -> Act:
    w.options |= {'confirm_fsync': True, 'confirm_timeout': 0.4}
    w.have('a')
    return lambda: w.store.confirm()


# -- jobs ----------------------------------------------------------------------------


@operation(again=['unknown'])
def cancel(w: World) -> Act:
    w.have('a', 'b')
    return lambda: w.store.jobs.cancel('a')


@operation(again=['unknown'])
def cancel_one_that_runs(w: World) -> Act:
    w.have('a')
    w.lease()
    return lambda: w.store.jobs.cancel('a')


@operation()
def cancel_but_spare(w: World) -> Act:
    w.have('a')
    w.lease()
    return lambda: w.store.jobs.cancel('a', spare=True)


@operation(again=['unknown'])
def cancel_in_cascade(w: World) -> Act:
    w.have('a')
    w.have('b', depends_on=['a'])
    return lambda: w.store.jobs.cancel('a', cascade=True)


@operation()
def move(w: World) -> Act:
    w.have('a')
    return lambda: w.store.jobs.move('a', 'other')


@operation()
def set_priority(w: World) -> Act:
    w.have('a')
    return lambda: w.store.jobs.set_priority('a', 9)


@operation()
def reschedule(w: World) -> Act:
    w.have('a')
    when = later()
    return lambda: w.store.jobs.reschedule('a', when)


@operation(again=[WrongState])
def replay(w: World) -> Act:
    w.dead('a')
    return lambda: w.store.jobs.replay('a')


@operation(again=[UnknownJob])
def discard(w: World) -> Act:
    w.dead('a')
    return lambda: w.store.jobs.discard('a')


@operation(again=[UnknownJob])
def discard_a_completed_one(w: World) -> Act:
    w.done('a')
    return lambda: w.store.jobs.discard('a')


@operation(again=[0], steps='a group is replayed in steps')
def replay_group(w: World) -> Act:
    w.dead('a', 'b')
    return lambda: w.store.jobs.replay_group('g')


@operation(again=[0], steps='a group is discarded in steps')
def discard_group(w: World) -> Act:
    w.dead('a', 'b')
    return lambda: w.store.jobs.discard_group('g')


@operation()
def depend_on_more(w: World) -> Act:
    w.have('a', 'c')
    w.have('b', depends_on=['a'])
    return lambda: w.store.edges.add(key('b'), Dependencies((key('c'),)))


@operation(again=[0])
def depend_on_less(w: World) -> Act:
    w.have('a', 'c')
    w.have('b', depends_on=['a', 'c'])
    return lambda: w.store.edges.remove(key('b'), [key('a')]) in (0, 1)


@operation()
def tag(w: World) -> Act:
    w.have('a', 'b')
    return lambda: w.store.tags.add([key('a'), key('b')], ['x'])


@operation()
def untag(w: World) -> Act:
    w.have('a', 'b', tags=['x', 'y'])
    return lambda: w.store.tags.remove([key('a'), key('b')], ['x'])


@operation()
def track(w: World) -> Act:
    w.have('a')
    return lambda: w.store.tags.track([key('a')], 'task')


@operation()
def untrack(w: World) -> Act:
    w.have('a', track=True)
    return lambda: w.store.tags.untrack([key('a')])


# -- deliveries ----------------------------------------------------------------------


@operation(loose=['x:', 'own', 'l:', 'r:'], again=[[]])
def claim(w: World) -> Act:
    """What was claimed in vain is leased to nobody; consumers are tested elsewhere."""
    w.have('a')
    return lambda: [one.id for one in w.lease(1, far=False)] if w.client.zcard(
        w.keys.ready(QUEUE)
    ) else []  # fmt: skip


@operation(again=[(Status.UNHELD,)])
def settle(w: World) -> Act:
    w.have('a')
    held = w.lease()[0]
    settlement = Settlement(Verdict.ACK, held.queue, held.id, held.token)
    return lambda: w.store.run(w.store.operations.settle([settlement]))


@operation()
def settle_as_failed(w: World) -> Act:
    w.have('a')
    held = w.lease()[0]
    settlement = Settlement(Verdict.FAIL, held.queue, held.id, held.token, 'error')

    def act() -> Any:
        w.store.run(w.store.operations.settle([settlement]))

    return act


@operation()
def settle_as_requeued(w: World) -> Act:
    w.have('a')
    held = w.lease()[0]
    settlement = Settlement(Verdict.REQUEUE, held.queue, held.id, held.token)

    def act() -> Any:
        w.store.run(w.store.operations.settle([settlement]))

    return act


@operation()
def renew(w: World) -> Act:
    w.have('a')
    held = w.lease()[0]
    leases = [(held.queue, held.id, held.token)]
    return lambda: w.store.run(w.store.operations.renew(leases))


# -- throttles, statistics, workers, events ------------------------------------------


@operation()
def set_a_throttle(w: World) -> Act:
    return lambda: w.store.throttles.set('t', concurrency=2, rate='5/s', expires=60)


@operation(again=[False])
def delete_a_throttle(w: World) -> Act:
    w.far.throttles.set('t', concurrency=2)
    return lambda: w.store.throttles.delete('t') in (True, False)


@operation(again=[False])
def release_a_slot(w: World) -> Act:
    w.have('a', 'b', throttles=[{'name': 't', 'concurrency': 1}])
    w.lease()
    return lambda: w.store.throttles.release('t', 'a') in (True, False)


@operation()
def hand_over_counts(w: World) -> Act:
    counting = Counting()
    counting.ran(QUEUE, 'task', 0.1)
    counting.waited(QUEUE, 'task', 0.2)
    counting.happened(QUEUE, 'task', 'failed')
    return lambda: counting.hand_over(w.store)


@operation()
def beat(w: World) -> Act:
    return lambda: w.store.presence.beat('me', 60, 1, {'name': 'me'})


@operation()
def leave(w: World) -> Act:
    w.far.presence.beat('me', 60, 1, {'name': 'me'})
    return lambda: w.store.presence.leave('me')


@operation(loose=['x:'])
def log(w: World) -> Act:
    """A line may stand there twice: it is for people."""
    w.have('a')
    held = w.lease()[0]
    return lambda: w.store.events.log(held.id, held.token, 'here', {'n': 1})


@operation()
def progress(w: World) -> Act:
    w.have('a')
    held = w.lease()[0]
    return lambda: w.store.events.progress(held.id, held.token, 0.5)


# -- schedules -----------------------------------------------------------------------


@operation(again=[False])
def put_a_schedule(w: World) -> Act:
    schedules = w.store.schedules(TICKS)
    at = later()
    fields = {'when': '{}', 'spec': '{}', 'rules': '{"overlap": 1}'}
    return lambda: schedules.put('s', fields, Timing(at, at), '', {'event': 'changed'})


@operation(again=[False])
def delete_a_schedule(w: World) -> Act:
    at = later()
    w.far.schedules(TICKS).put('s', {'when': '{}', 'spec': '{}'}, Timing(at, at), '')
    return lambda: w.store.schedules(TICKS).delete('s')


@operation(again=[('#', [''])])
def declare_schedules(w: World) -> Act:
    at = later()
    rules = json.dumps({'overlap': 1, 'after': 0})
    declarations = [Declaration(name, 'digest', '{}', '{}', rules, Timing(at, at)) for name in 'st']

    def act() -> Any:
        _, words = w.store.schedules(TICKS).declare('set', declarations)
        return len(words)

    return act


@operation(again=['late'])
def fire_a_schedule(w: World) -> Act:
    at = later(-50)
    far = w.far.schedules(TICKS)
    far.put('s', {'when': '{}', 'spec': '{}', 'rules': '{}'}, Timing(at, at), '')
    info = far.get('s')
    assert info is not None
    following = Timing(later(), later())
    firing = Firing('s', info.revision, at, following, runs=0)
    return lambda: w.store.schedules(TICKS).fire(firing, 'lane', 7).outcome in ('idle', 'late')
