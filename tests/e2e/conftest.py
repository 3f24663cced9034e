"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from celery.bin.celery import celery
from celery.result import AsyncResult
from click.testing import CliRunner, Result

import celery_ext
from celery_ext import Extension
from tests.support.workers import Fleet, fleet, task


@pytest.fixture
def make_fleet(tmp_path: Path, url: str) -> Iterator[Callable[..., Fleet]]:
    """Makes a fleet with settings of the test's own on an empty database."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Fleet:
            settings.setdefault('broker', url)
            return stack.enter_context(fleet(tmp_path, **settings))

        yield make


@pytest.fixture
def workers(make_fleet: Callable[..., Fleet]) -> Fleet:
    """A fleet with a lease of 2 s."""
    return make_fleet()


@pytest.fixture
def installed(make_fleet: Callable[..., Fleet]) -> Fleet:
    """A fleet whose workers have the extension, with a lease of 2 s."""
    return make_fleet(module='tests.support.installed')


@pytest.fixture
def ext(installed: Fleet) -> Extension:
    """The extension of a producer in this process."""
    return celery_ext.install(installed.app())


@pytest.fixture
def send(ext: Extension) -> Callable[..., AsyncResult]:
    """Publishes a task of the test app by its short name."""

    def send(name: str, *args: Any, **options: Any) -> AsyncResult:
        return task(ext.app, name, *args).apply_async(**options)

    return send


@pytest.fixture
def reliable(ext: Extension) -> Callable[..., Result]:
    """Runs ``celery -A app reliable ...`` in this process, for the app of ``ext``."""

    def run(*args: str, input: str | None = None, columns: int | None = None) -> Result:
        environment = {'COLUMNS': str(columns) if columns else None}
        return CliRunner().invoke(
            celery, ['reliable', *args], input=input, env=environment, default_map={'app': ext.app}
        )  # fmt: skip

    return run
