"""What the tabs show, and what their buttons do, in a browser; the broker is asked separately."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from celery_ext import Extension, Throttle, UnknownJob
from tests.flower.site import Site, Tab
from tests.support.wait import wait_for
from tests.support.workers import Fleet

Publish = Callable[..., Any]

#: A name that means something to HTML, URLs, shells and eyes.
NASTY = '"><script>window.pwned = 1</script>\'&amp;%2F/../?a=b#c;d é漢字🦊 \u202egnp.'


def page(which: str, /, **query: Any) -> str:
    return f'/reliable/{which}' + (f'?{urlencode(query)}' if query else '')


def row(name: str, value: str) -> str:
    return f'tr[data-{name}="{value}"]'


# -- what is shown ---------------------------------------------------------------


def test_queues(tab: Tab, ext: Extension, publish: Publish) -> None:
    """Also those that nobody consumes."""
    for number in range(3):
        publish('run', number, queue='shown')
    publish('run', 9, queue='shown', countdown=3600)
    tab.open(page('queues'))
    assert tab.texts('a.nav-link.active') == ['Queues']
    assert {'Jobs', 'Throttles', 'Failed', 'Schedules'} < set(tab.texts('a.nav-link'))
    shown = row('queue', 'shown')
    tab.until(f'{shown} [data-state=ready]', '3')  # what was read is shown for a second
    assert tab.text(f'{shown} [data-state=delayed]') == '1'
    assert 'work' in tab.texts('#reliable-queues tbody tr td:first-child')
    tab.open(page('queues', search='sHow'))
    assert tab.texts('#reliable-queues tbody tr td:first-child') == ['shown']


def test_the_page_of_a_queue_has_charts(
    tab: Tab, ext: Extension, publish: Publish, site: Site
) -> None:
    results = [publish('run', number, queue='work') for number in range(12)]
    for result in results:
        result.get(timeout=20)
    wait_for(lambda: ext.queues['work'].stats().run.count >= 12, 15)
    wait_for(lambda: ext.queues['work'].stats().wait.count >= 12, 15)
    tab.open(page('queue', name='work'))
    assert len(tab.texts('svg.reliable-chart')) == 2
    assert len(tab.texts('rect.reliable-bar')) >= 2
    runs = ext.queues['work'].stats().run
    assert f'{runs.count} counted' in tab.texts('.reliable-card-head')[1]
    assert '1 worker' in tab.text('.reliable-bar-card > div:first-child')


def test_jobs_are_found_by_state_queue_task_and_tag(tab: Tab, publish: Publish) -> None:
    first = publish('run', 1, queue='found', tags=['red', 'blue'])
    second = publish('add', 1, 2, queue='found', tags=['red'], priority=5)
    third = publish('run', 3, queue='found', countdown=600)
    chosen = {
        (): [second.id, first.id, third.id],
        (('state', 'delayed'),): [third.id],
        (('task', 'tests.support.app.add'),): [second.id],
        (('task', 'tests.*.run'),): [first.id, third.id],
        (('tags', 'red'),): [second.id, first.id],
        (('tags', 'blue, red'),): [first.id],
        (('tag', 'red'), ('state', 'ready'), ('task', '*.run')): [first.id],
        (('tags', 'green'),): [],
    }
    for query, wanted in chosen.items():
        tab.open(page('jobs', queue='found', **dict(query)))
        ids = tab.script(
            'return Array.from(document.querySelectorAll("tr[data-job]")).map(r => r.dataset.job)'
        )
        assert ids == wanted, query
    # And as a person would, from the form.
    tab.open(page('jobs'))
    tab.fill('#reliable-filters [name=queue]', 'found')
    tab.fill('#reliable-filters [name=tags]', 'blue')
    tab.click('#reliable-filters button[type=submit]')
    tab.until('#reliable-jobs tbody tr', first.id)
    assert len(tab.texts('#reliable-jobs tbody tr')) == 1


def test_long_lists_have_pages(tab: Tab, publish: Publish) -> None:
    for number in range(120):
        publish('run', number, queue='long')
    tab.open(page('jobs', queue='long', state='ready'))
    assert '50 of 120' in tab.text('.reliable-pages > span:first-child')
    first = tab.texts('#reliable-jobs tbody tr td:first-child')
    tab.click('.reliable-pages a:nth-of-type(2)')  # First and Previous are no links here
    tab.until('.reliable-pages', '120 of 120')
    assert len(tab.texts('#reliable-jobs tbody tr')) == 20
    assert not set(first) & set(tab.texts('#reliable-jobs tbody tr td:first-child'))


def test_a_failed_job_tells_why(tab: Tab, ext: Extension, publish: Publish) -> None:
    failing = publish('fail', 'no <b>luck</b>', queue='work', tags=['sad'])
    wait_for(lambda: ext.jobs[failing.id].state == 'failed', 20)
    tab.open(page('job', id=failing.id))
    assert tab.text('#reliable-job .reliable-state') == 'failed'
    assert tab.text('.reliable-error') == 'ValueError: no <b>luck</b>'
    assert 'raise ValueError(message)' in tab.text('.reliable-code')
    assert {'put', 'popped', 'failed'} <= set(tab.texts('.reliable-event'))
    tab.open(page('failed'))
    group = row('group', 'tests.support.app.fail')
    assert tab.text(f'{group} .reliable-bad') == '1'
    assert 'ValueError: no <b>luck</b>' in tab.text(f'#reliable-dead {row("job", failing.id)}')


def test_dependencies_are_drawn(tab: Tab, ext: Extension, publish: Publish) -> None:
    first = [publish('run', number, queue='drawn') for number in range(2)]
    middle = publish('run', 3, queue='drawn', depends_on=first)
    last = publish('run', 4, queue='drawn', depends_on=[middle])
    tab.open(page('job', id=middle.id))
    nodes = tab.script(
        'return Array.from(document.querySelectorAll(".reliable-node")).map(n => n.dataset.job)'
    )
    assert set(nodes) == {middle.id, last.id, *(one.id for one in first)}
    assert len(tab.texts('path.reliable-edge')) == 3
    assert 'for 2 other jobs' in tab.text('#reliable-job > div:first-child')
    # A node leads to its job, and from there it looks the same from the other side.
    tab.script(
        'document.querySelector(`.reliable-node[data-job="${arguments[0]}"]`).parentNode'
        '.dispatchEvent(new MouseEvent("click", {bubbles: true}))', last.id,
    )  # fmt: skip
    tab.until('.reliable-node-here', last.id[:8])
    assert len(tab.texts('path.reliable-edge')) == 3
    # One for whom others wait is cancelled with them, if that is what one wants.
    tab.open(page('job', id=middle.id))
    tab.expected.add(404)
    tab.press('form[action$=cancel] button', sure=True)
    assert ext.jobs.get(middle.id) is None


def test_the_page_looks_again_by_itself(tab: Tab, ext: Extension, publish: Publish) -> None:
    publish('run', 1, queue='alive')
    tab.open(page('queues', search='alive'))
    tab.hurry()
    tab.script('window.same = true')
    publish('run', 2, queue='alive')
    tab.until(f'{row("queue", "alive")} [data-state=ready]', '2')
    ext.queues['alive'].pause()
    tab.until(row('queue', 'alive'), 'paused')
    assert tab.script('return window.same')
    # What somebody has begun to enter stays.
    job = publish('run', 3, queue='alive')
    tab.open(page('job', id=job.id))
    tab.hurry()
    ext.jobs[job.id].set_priority(3)
    tab.until('[data-field=priority]', '3')
    tab.fill('#reliable-move', 'elsewhere')
    ext.jobs[job.id].set_priority(4)
    tab.script('await new Promise(done => setTimeout(done, 1000))')
    assert tab.script('return document.querySelector("#reliable-move").value') == 'elsewhere'
    assert tab.text('[data-field=priority]') == '3'


def test_names_are_only_text(tab: Tab, ext: Extension, publish: Publish) -> None:
    """On every page where they may stand, and they are found again by what links to them."""
    long = 'x' * 500
    for name in (NASTY, long):
        job = publish(
            'run', name, queue=name, tags=[name[:80]], throttles=[Throttle(name[:100], 1)],
            task_id=f'{name[:60]}-id',
        )  # fmt: skip
        ext.schedules.create(name[:200], 'tests.support.app.run', every=3600, args=[name])
        tab.open(page('queues', search=name))
        tab.until('#reliable-queues tbody a', name[:30])
        assert len(tab.texts('#reliable-queues tbody tr')) == 1
        tab.click('#reliable-queues tbody a')
        tab.until('h1', name[:30])
        tab.open(page('jobs', queue=name))
        tab.click('#reliable-jobs tbody td:first-child a')
        tab.until('.reliable-details', job.id[:50])
        assert tab.script('return document.querySelector("#reliable-job").dataset.job') == job.id
        tab.click('.reliable-details a.reliable-tag')
        tab.until('#reliable-jobs tbody', name[:20])
        tab.open(page('throttles', search=name[:100]))
        tab.click('#reliable-throttles tbody a')
        tab.until('#reliable-pending tbody', job.id[:10])
        tab.open(page('schedules'))
        assert name[:30] in ' '.join(tab.texts('#reliable-schedules tbody a'))
        tab.open(page('schedule', name=name[:200]))
        tab.until('h1', name[:30])
        assert 'Schedule' in tab.press('form[action$="schedule-pause"] button')
        assert ext.schedules[name[:200]].paused
        tab.open(page('queue', name=name))
        ext.schedules[name[:200]].delete()  # no page shows it any more
        tab.press('form[action$="act/pause"] button')
        assert ext.queues[name].paused
        tab.open('/broker')
        assert any(name[:30] in text for text in tab.texts('#queue-table tbody td'))
    assert tab.script('return window.pwned === undefined')


# -- buttons ---------------------------------------------------------------------


def test_pause_and_resume(tab: Tab, ext: Extension, publish: Publish) -> None:
    publish('run', 1, queue='held')
    tab.open(page('queues', search='held'))
    held = row('queue', 'held')
    tab.until(held, 'held')
    assert tab.press(f'{held} button') == 'Queue held is paused.'
    assert ext.queues['held'].paused
    tab.until(f'{held} button', 'Resume')
    assert tab.press(f'{held} button') == 'Queue held goes on.'
    assert not ext.queues['held'].paused
    # Somebody else is faster.
    tab.until(f'{held} button', 'Pause')
    ext.queues['held'].pause()
    assert tab.press(f'{held} button[type=submit]') in (
        'Queue held was paused before.', 'Queue held goes on.',
    )  # fmt: skip


def test_the_buttons_of_a_job(tab: Tab, ext: Extension, publish: Publish) -> None:
    job = publish('run', 1, queue='acted', countdown=600)
    publish('run', 2, queue='acted-too')
    tab.open(page('job', id=job.id))
    tab.fill('#reliable-priority', '7')
    assert 'priority 7' in tab.press('form[action$=priority] button')
    assert ext.jobs[job.id].priority == 7
    tab.until('[data-field=priority]', '7')
    tab.fill('#reliable-move', 'acted-too')
    assert 'from acted to acted-too' in tab.press('form[action$=move] button')
    assert ext.jobs[job.id].queue == 'acted-too'
    tab.until('[data-field=queue]', 'acted-too')
    assert 'starts as soon as' in tab.press('form[action$=run-job] button')
    assert ext.jobs[job.id].state == 'ready'
    tab.until('#reliable-job .reliable-state', 'ready')
    assert 'will never start' in tab.press('form[action$=cancel] button', sure=True)
    assert ext.jobs.get(job.id) is None
    tab.expected.add(404)
    tab.until('#reliable-message', 'any more')


def test_a_question_can_be_answered_with_no(tab: Tab, ext: Extension, publish: Publish) -> None:
    job = publish('run', 1, queue='asked')
    tab.open(page('job', id=job.id))
    tab.click('form[action$=cancel] button')
    tab.until('#reliable-question', 'Cancel this job')
    tab.click('#reliable-dialog button[value=no]')
    assert ext.jobs[job.id].state == 'ready'
    assert not tab.texts('.reliable-said')


def test_dead_letters_run_again_or_go(
    tab: Tab, ext: Extension, publish: Publish, tmp_path: Path
) -> None:
    path = str(tmp_path / 'mended')
    failing = [publish('fail_unless', path, queue='work') for _ in range(4)]
    wait_for(lambda: all(ext.jobs[one.id].state == 'failed' for one in failing), 20)
    name = 'tests.support.app.fail_unless'
    tab.open(page('failed', group=name))
    assert len(tab.texts('#reliable-dead tbody tr')) == 4
    assert tab.press(f'{row("job", failing[0].id)} form[action$=discard] button', sure=True)
    with pytest.raises(UnknownJob):
        ext.jobs[failing[0].id]
    wait_for(lambda: len(tab.texts('#reliable-dead tbody tr')) == 3, 15)
    Path(path).touch()
    assert 'runs again' in tab.press(f'{row("job", failing[1].id)} form[action$=retry] button')
    wait_for(lambda: not ext.jobs.get(failing[1].id), 20)
    tab.open(page('failed'))
    group = row('group', name)
    said = tab.press(f'{group} form[action$=replay-group] button', sure=True)
    assert said == f'2 dead letters of the group {name} run again.'
    wait_for(lambda: not any(ext.jobs.get(one.id) for one in failing), 20)
    assert not ext.dead.page(group=name)
    wait_for(lambda: not tab.texts(group), 15)


def test_a_group_is_discarded(tab: Tab, ext: Extension, publish: Publish) -> None:
    failing = [publish('reject', False, queue='work') for _ in range(3)]
    wait_for(lambda: all(ext.jobs[one.id].state == 'failed' for one in failing), 20)
    tab.open(page('failed'))
    group = row('group', 'tests.support.app.reject')
    assert '3 dead letters' in tab.press(f'{group} form[action$=discard-group] button', sure=True)
    assert not [one for one in failing if ext.jobs.get(one.id)]


def test_limits_are_set_and_forgotten(tab: Tab, ext: Extension, publish: Publish) -> None:
    for number in range(2):
        publish('run', number, queue='limits', throttles=[Throttle('bank', concurrency=1)])
    tab.open(page('throttles', search='bank'))
    assert tab.text(f'{row("throttle", "bank")} [data-field=pending]') == '2'
    tab.click('#reliable-throttles tbody a')
    tab.until('#reliable-limits', 'of its tasks')
    tab.fill('[name=concurrency]', '4')
    tab.fill('[name=rate]', '30/m')
    tab.press('form[action$=throttle-set] button')
    info = ext.throttles['bank'].get()
    assert info is not None
    assert (info.concurrency, info.rate, info.source) == (4, '30/m', 'set')
    tab.until('[data-field=rate]', '30/m')
    tab.press('form[action$=throttle-reset] button', sure=True)
    info = ext.throttles['bank'].get()
    assert info is not None and info.source == 'default'
    tab.until('[data-field=source]', 'of its tasks')
    # What makes no sense is refused in words.
    tab.expected.add(400)
    tab.fill('[name=rate]', 'often')
    assert 'often' in tab.press('form[action$=throttle-set] button')


def test_a_slot_is_released(tab: Tab, ext: Extension, publish: Publish, tmp_path: Path) -> None:
    path = str(tmp_path / 'go')
    holder = publish('wait_for_file', path, queue='work', throttles=[Throttle('desk', 1)])
    wait_for(lambda: [one.id for one in ext.throttles['desk'].holders()] == [holder.id], 20)
    tab.open(page('throttle', name='desk'))
    tab.press(f'#reliable-holders {row("job", holder.id)} button', sure=True)
    assert not ext.throttles['desk'].holders()
    tab.until('#reliable-holders', 'No job has a slot')
    # Meanwhile it runs, and can be taken from its worker.
    tab.open(page('job', id=holder.id))
    assert tab.text('#reliable-job .reliable-state') == 'leased'
    assert 'taken from its worker' in tab.press('form[action$=cancel] button', sure=True)
    assert ext.jobs.get(holder.id) is None
    Path(path).touch()
    tab.expected.add(404)


def test_what_runs_is_terminated(tab: Tab, ext: Extension, publish: Publish, crew: Fleet) -> None:
    running = publish('last_words', queue='work')
    crew.ledger.wait(1, 'started', id=running.id)
    tab.open(page('job', id=running.id))
    tab.expected.add(404)
    tab.press('#reliable-job form:last-child button', sure=True)
    crew.ledger.wait(1, 'killed', id=running.id)
    assert ext.jobs.get(running.id) is None


def test_schedules(tab: Tab, ext: Extension) -> None:
    ext.schedules.create('hourly', 'tests.support.app.run', every=3600, queue='work')
    tab.open(page('schedules'))
    hourly = row('schedule', 'hourly')
    assert 'every' in tab.text(f'{hourly} td:nth-child(3)')
    assert 'runs as' in tab.press(f'{hourly} form[action$=schedule-run] button')
    [run] = [run for run in ext.schedules['hourly'].history() if run.id]
    ext.app.AsyncResult(run.id).get(timeout=20)
    tab.until(f'{hourly} td:nth-child(7)', 'success')
    tab.press(f'{hourly} form[action$=schedule-pause] button')
    assert ext.schedules['hourly'].state == 'paused'
    tab.until(f'{hourly} .reliable-state', 'paused')
    tab.press(f'{hourly} form[action$=schedule-resume] button')
    assert ext.schedules['hourly'].state == 'active'
    tab.open(page('schedule', name='hourly'))
    assert {'asked', 'paused', 'resumed'} <= set(tab.texts('#reliable-runs tbody td:nth-child(2)'))
    ext.schedules['hourly'].delete()
    tab.expected.add(404)
    assert 'hourly' in tab.press('form[action$=schedule-run] button')


# -- what goes wrong -------------------------------------------------------------


def test_what_has_gone_is_told_kindly(tab: Tab, ext: Extension, publish: Publish) -> None:
    """A job that vanishes between the list and the click; names of nothing."""
    job = publish('run', 1, queue='vanishing')
    tab.open(page('jobs', queue='vanishing'))
    ext.jobs.cancel(job)
    tab.expected.add(404)
    tab.click('#reliable-jobs tbody td:first-child a')
    tab.until('#reliable-message', 'has succeeded, was cancelled')
    assert tab.texts('a.nav-link.active') == ['Jobs']
    for missing in (page('queue', name='nobody'), page('schedule', name='never')):
        tab.open(missing)
        tab.until('#reliable-message', 'no')
    tab.expected.add(400)
    for nonsense in (page('jobs', state='odd'), page('jobs', after='x'), page('job')):
        tab.open(nonsense)
        tab.until('#reliable-message', '')


def test_two_press_the_same_button(site: Site, ext: Extension, publish: Publish) -> None:
    job = publish('run', 1, queue='twice')
    assert site.act('cancel', id=job.id)[0] == 200
    assert site.act('cancel', id=job.id) == (404, f'Job {job.id} has ended already')
    assert site.act('move', id=job.id, queue='x')[0] == 404
    again = publish('run', 1, queue='twice', countdown=60)
    assert site.act('retry', id=again.id)[0] == 409
    assert site.act('run-job', id=again.id) != site.act('run-job', id=again.id)
    assert site.act('pause', queue='twice')[1] == 'Queue twice is paused.'
    assert site.act('pause', queue='twice') == (200, 'Queue twice was paused before.')
    assert site.act('replay-group', group='none of that name')[0] == 200
    assert site.act('explode', id=job.id)[0] == 404
    assert site.act('priority', id=again.id, priority='256')[0] == 400
    assert site.act('priority', id=again.id)[0] == 400
    # Without JavaScript it is a page.
    plain = site.request('/reliable/act/resume', {'_xsrf': site.token(), 'queue': 'twice'})
    assert plain.status == 200 and 'Queue twice goes on.' in plain.text


def test_only_those_who_may(site: Site, ext: Extension, publish: Publish) -> None:
    publish('run', 1, queue='mine')
    for path in (page('queues'), page('job', id='x'), '/broker', '/api/queues/length'):
        assert site.request(path, user='ada:wrong').status == 401
    pause = {'queue': 'mine'}
    token = site.token()
    # Without a password, without a token, from another site, as a GET.
    stranger = site.request('/reliable/act/pause', {**pause, '_xsrf': token}, user='eve:x')
    assert stranger.status == 401
    assert site.request('/reliable/act/pause', pause).status == 403
    forged = site.request('/reliable/act/pause', {**pause, '_xsrf': token[:-4] + 'ffff'})
    assert forged.status == 403
    assert site.request('/reliable/act/pause?queue=mine').status == 405
    assert not ext.queues['mine'].paused
    assert site.act('pause', **pause)[0] == 200
    assert ext.queues['mine'].paused
    log = site.log.read_text()
    assert "pause {'queue': 'mine'} by ada" in log
    assert token not in log and 'pass:word' not in log


def test_the_page_of_the_broker(tab: Tab, site: Site, publish: Publish) -> None:
    """Flower's own, which would not know the URL, with every queue."""
    for number in range(4):
        publish('run', number, queue='unheard')

    def listed() -> bool:
        tab.open('/broker')  # what was read is shown for a second
        return tab.texts('#queue-table tr[id="unheard"] td')[:2] == ['unheard', '4']

    wait_for(listed, 15, 'the queue')
    assert 'work' in tab.texts('#queue-table tbody tr td:first-child')
    assert '"name": "unheard", "messages": 4' in site.request('/api/queues/length').text
    for path in ('/workers', '/tasks', '/'):
        tab.open(path)
        assert {'Workers', 'Broker', 'Queues', 'Schedules'} < set(tab.texts('a.nav-link'))
