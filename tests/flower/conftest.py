"""Fixtures for Flower's pages: one worker, one Flower and one browser for a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import celery_ext
from celery_ext import Extension
from tests.conftest import empty_database
from tests.flower.site import Site, Tab, flower, start_browser
from tests.support.servers import Server
from tests.support.workers import Fleet, fleet

#: With all that a site in the open may have set.
PREFIX, USER = 'ops/flower', 'ada:pass:word'


@pytest.fixture(scope='module')
def crew(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of workers with the extension, on a database of the module's own."""
    directory = tmp_path_factory.mktemp('flower')
    with (
        empty_database(server) as number,
        fleet(directory, f'reliable+{server.url(number)}', module='tests.support.installed') as one,
    ):
        yield one


@pytest.fixture(scope='module')
def ext(crew: Fleet) -> Extension:
    """What the pages show and change, looked at by somebody else."""
    return celery_ext.install(crew.app())


@pytest.fixture(scope='module')
def site(crew: Fleet) -> Iterator[Site]:
    """A Flower with a password, below a prefix, in persistent mode; and one worker."""
    crew.start('-Q', 'celery,work', '--without-mingle', '--without-gossip')
    database = crew.directory / 'flower.db'
    with flower(crew, '--persistent=True', f'--db={database}', prefix=PREFIX, user=USER) as running:
        yield running


@pytest.fixture(scope='session')
def browser() -> Iterator[Any]:
    driver = start_browser()
    yield driver
    driver.quit()


@pytest.fixture
def tab(browser: Any, site: Site) -> Iterator[Tab]:
    """A window; when the test is over no script has failed and nothing was refused."""
    window = Tab(browser, site)
    yield window
    window.check()


Publish = Callable[..., Any]


@pytest.fixture
def publish(ext: Extension) -> Publish:
    """Publishes a task of the test app."""

    def publish(name: str, *args: Any, **options: Any) -> Any:
        return ext.app.send_task(f'tests.support.app.{name}', args, **options)

    return publish
