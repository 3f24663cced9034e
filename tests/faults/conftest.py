"""Fixtures of the tests of faults, and their figures at the end of a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.conftest import make_fleet
from tests.faults.plan import know_scripts, run_cleanly
from tests.faults.running import DATABASES, Clean
from tests.faults.table import TABLE, Operation
from tests.support.servers import Server

__all__ = ('make_fleet',)

#: Under which a test hands over what is printed at the end.
FIGURES = 'faults'


@pytest.fixture(scope='module')
def fault_servers() -> Iterator[Callable[[Operation], Server]]:
    """The server for an operation; both have so many databases that no two runs share one."""
    usual = Server('valkey', databases=DATABASES)
    # It can confirm that a message is on the disk.
    safe = Server('valkey', databases=DATABASES, appendfsync='always')
    with usual, safe:
        know_scripts(usual)
        know_scripts(safe)
        yield lambda operation: safe if operation.safe else usual


@pytest.fixture(scope='module')
def clean(fault_servers: Callable[[Operation], Server]) -> dict[str, Clean]:
    """All operations without a fault: which calls they make, and what they leave behind."""
    return run_cleanly(fault_servers, TABLE.values())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    lines = [
        text
        for report in terminalreporter.getreports('passed')
        if report.when == 'call'
        for name, text in report.user_properties
        if name == FIGURES
    ]
    if lines:
        terminalreporter.section('faults')
    for line in lines:
        terminalreporter.write_line(line)
