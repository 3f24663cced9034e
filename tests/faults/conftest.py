"""Fixtures of the tests of faults."""

from __future__ import annotations

from tests.e2e.conftest import make_fleet

__all__ = ('make_fleet',)
