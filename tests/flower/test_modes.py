"""Flower in other moods: nobody may act, the server is away, the broker is another, older ones."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

import celery_ext
from celery_ext import Extension
from tests.flower.site import Answer, Site, Tab, flower
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.wait import wait_for
from tests.support.workers import Fleet, fleet

OUR_PAGES = ('queues', 'queue?name=held', 'jobs', 'job?id=x', 'throttles', 'failed', 'schedules')
FLOWERS_PAGES = ('/', '/workers', '/tasks', '/broker', '/healthcheck')

Make = Callable[..., Fleet]


@pytest.fixture
def make(tmp_path: Path, url: str) -> Iterator[Make]:
    """Makes a fleet on an empty database."""
    made: list[Any] = []

    def make(broker: str = '', **settings: Any) -> Fleet:
        settings.setdefault('module', 'tests.support.installed')
        one = fleet(tmp_path, broker or url, **settings)
        made.append(one)
        return one.__enter__()

    yield make
    for one in made:
        one.__exit__(None, None, None)


def publish(ext: Extension, queue: str = 'held', **options: Any) -> Any:
    return ext.app.send_task('tests.support.app.run', (1,), queue=queue, **options)


# -- nobody may act --------------------------------------------------------------


def test_without_authentication_nobody_acts(make: Make) -> None:
    """As Flower has it for its own buttons; it says why."""
    crew = make()
    ext = celery_ext.install(crew.app())
    job = publish(ext)
    # The second one finds what the first has left.
    persistent = ('--persistent=True', f'--db={crew.directory / "flower.db"}')
    with flower(crew, *persistent) as site:
        shown = site.request('/reliable/queues').text
        assert 'has no authentication' in shown
        assert not re.findall(r'<button type="submit" class="btn btn-sm btn-\S+">', shown)
        assert len(re.findall(r'<button type="submit"[^>]* disabled>', shown)) >= 1
        for action, form in (('pause', {'queue': 'held'}), ('cancel', {'id': job.id})):
            assert site.act(action, **form)[0] == 401
        assert not ext.queues['held'].paused
        assert ext.jobs[job.id].state == 'ready'
    with flower(crew, *persistent, FLOWER_UNAUTHENTICATED_API='true') as site:
        assert site.act('pause', queue='held')[0] == 200
        assert ext.queues['held'].paused


def test_read_only(make: Make) -> None:
    crew = make()
    ext = celery_ext.install(crew.app())
    publish(ext)
    with flower(crew, '--read_only=True', user='ada:x') as site:
        assert 'read-only mode' in site.request('/reliable/queues').text
        status, said = site.act('pause', queue='held')
        assert status == 403 and 'read-only' in said
        assert not ext.queues['held'].paused


# -- the server is away ----------------------------------------------------------


def timed(site: Site, path: str, form: dict[str, Any] | None = None) -> tuple[str, float, Answer]:
    begun = time.monotonic()
    answer = site.request(path, form)
    return path, time.monotonic() - begun, answer


def in_time(site: Site, path: str, seconds: float, form: dict[str, Any] | None = None) -> bool:
    """Whether it was, or is when it is asked alone: on a busy machine many at once are not."""
    return seconds < 3 or any(timed(site, path, form)[1] < 3 for _ in range(3))


def test_a_server_that_is_slow_or_dead(make: Make, server: Server, database: int) -> None:
    """Our pages say so within 3 s, Flower's own live on, and all is well when it comes back."""
    with Proxy(('127.0.0.1', server.port)) as proxy:
        crew = make(f'reliable+{proxy.url(database)}')
        ext = celery_ext.install(crew.app(f'reliable+{server.url(database)}'))
        publish(ext)
        with flower(crew, user='ada:x') as site:
            assert site.request('/reliable/queues').status == 200
            token = site.token()
            for away in (proxy.stop_forwarding, proxy.refuse):
                away()
                if away == proxy.refuse:
                    proxy.cut()
                # What was read a second ago may still be shown.
                wait_for(lambda: site.request('/reliable/queues').status == 503, 10)
                form = {'_xsrf': token, 'queue': 'held'}
                asked = [(f'/reliable/{name}', None) for name in 2 * OUR_PAGES]
                with ThreadPoolExecutor(20) as visitors:
                    answers = visitors.map(
                        lambda one: timed(site, *one), [*asked, ('/reliable/act/pause', form)]
                    )
                    for path, seconds, answer in answers:
                        assert answer.status == 503, path
                        assert 'answer' in answer.text
                        assert in_time(site, path, seconds, form if '/act/' in path else None)
                for path in FLOWERS_PAGES:
                    _, seconds, answer = timed(site, path)
                    assert answer.status == 200, path
                    assert in_time(site, path, seconds)
                proxy.heal()
                wait_for(lambda: site.request('/reliable/queues').status == 200, 20)
                for name in OUR_PAGES:
                    assert site.request(f'/reliable/{name}').status in (200, 404), name


# -- other brokers, other ways in ------------------------------------------------

#: Runs Celery as it is where this package is not installed.
WITHOUT = """
import importlib.metadata
known = importlib.metadata.entry_points
OURS = ('celery_ext', 'kombu_reliable')

def others(**wanted):
    return [one for one in known(**wanted) if one.value.split('.')[0] not in OURS]

importlib.metadata.entry_points = others
from celery.__main__ import main
main()
"""


def _comparable(text: str) -> str:
    """Without what is new each time."""
    return re.sub(r'value="[^"]*"|\?v=\w+|\d+', '', text)


def test_a_stock_app_sees_no_change(
    make: Make, server: Server, database: int, tmp_path: Path
) -> None:
    crew = make(server.url(database), module='tests.support.app', options={'visibility_timeout': 9})
    app = crew.app()
    for _ in range(3):
        app.send_task('tests.support.app.run', (1,))
    config = tmp_path / 'flowerconfig.py'
    config.write_text('import celery_ext.flower\n')
    with (
        flower(crew, f'--conf={config}', user='ada:x') as site,
        flower(crew, user='ada:x', program=(sys.executable, '-c', WITHOUT)) as plain,
    ):
        for path in ('/broker', '/workers', '/tasks', '/api/queues/length', '/reliable/queues'):
            ours, theirs = site.request(path), plain.request(path)
            assert ours.status == theirs.status == (404 if 'reliable' in path else 200)
            assert _comparable(ours.text) == _comparable(theirs.text)
            assert 'reliable' not in ours.text.replace('/reliable/', '')
        assert '<td>celery</td>' in re.sub(r'\s+', '', site.request('/broker').text)
        assert '"messages": 3' in site.request('/api/queues/length').text


def test_one_line_in_flowerconfig(make: Make, tmp_path: Path) -> None:
    """Where the entry points are not installed, nor the extension in the app."""
    crew = make(module='tests.support.app')
    ext = celery_ext.install(crew.app())
    publish(ext)
    config = tmp_path / 'flowerconfig.py'
    config.write_text('import celery_ext.flower\n')
    with flower(
        crew, f'--conf={config}', program=(sys.executable, '-c', WITHOUT), user='ada:x'
    ) as site:
        for name in OUR_PAGES:
            assert site.request(f'/reliable/{name}').status in (200, 404), name
        assert 'data-queue="held"' in site.request('/reliable/queues').text
        assert site.act('pause', queue='held')[0] == 200
        assert ext.queues['held'].paused
        assert 'Schedules' in site.request('/workers').text


# -- older Flowers ---------------------------------------------------------------


@pytest.mark.matrix
@pytest.mark.parametrize('version', ['2.0.1', '2.1.0', '2.2.0'])
def test_versions_of_flower(
    version: str, make: Make, tmp_path: Path, browser: Any, server: Server
) -> None:
    """Each tab, one button, and the pages of Flower's own."""
    target = tmp_path / 'other'
    command = ['pip', 'install', '-q', '--no-deps', '--target', str(target), f'flower=={version}']
    done = subprocess.run([sys.executable, '-m', *command], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'pip cannot install flower {version}: {done.stderr[-200:]}')
    crew = make()
    ext = celery_ext.install(crew.app())
    crew.start('-Q', 'work', '--without-mingle', '--without-gossip')
    first = publish(ext, tags=['seen'])
    second = publish(ext, depends_on=[first])
    ext.schedules.create('hourly', 'tests.support.app.run', every=3600)
    ext.throttles['bank'].set(concurrency=2)
    failing = ext.app.send_task('tests.support.app.fail', ('no luck',), queue='work')
    wait_for(lambda: ext.jobs[failing.id].state == 'failed', 20)
    path = f'{target}:{crew.environment()["PYTHONPATH"]}'
    with flower(crew, prefix='below', user='ada:x', PYTHONPATH=path) as site:
        tab = Tab(browser, site)
        _look_around(tab, site, ext, str(second.id))
        tab.check()
        assert _version(site) == version


def _look_around(tab: Tab, site: Site, ext: Extension, job: str) -> None:
    shown = {
        'queues': 'held', 'jobs?tag=seen': 'tests.support.app.run', 'throttles': 'bank',
        'failed': 'ValueError: no luck', 'schedules': 'hourly', 'queue?name=held': 'held',
        f'job?id={job}': 'for 1 other job', 'throttle?name=bank': 'set here',
        'schedule?name=hourly': 'every',
    }  # fmt: skip
    for path, text in shown.items():
        tab.open(f'/reliable/{path}')
        tab.until('#reliable', text)
        assert {'Workers', 'Queues', 'Schedules'} < set(tab.texts('a.nav-link'))
    tab.open('/reliable/queues?search=held')
    assert tab.press('tr[data-queue=held] button') == 'Queue held is paused.'
    assert ext.queues['held'].paused
    for path in ('/', '/workers', '/tasks', '/broker'):
        tab.open(path)
        assert {'Broker', 'Queues', 'Schedules'} < set(tab.texts('a.nav-link'))
    assert 'held' in tab.texts('#queue-table tbody tr td:first-child')


def _version(site: Site) -> str:
    """As a program with its surroundings sees it."""
    environment = psutil.Process(site.process.pid).environ()
    code = 'import flower; print(flower.__version__)'
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
