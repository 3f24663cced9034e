"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.workers import Fleet, fleet


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
