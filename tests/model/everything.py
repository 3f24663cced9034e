"""The machine with all its steps."""

from __future__ import annotations

from tests.model.steps_operators import Operators
from tests.model.steps_producers import Producers
from tests.model.steps_workers import Workers


class Everything(Producers, Workers, Operators):
    """Producers, workers and operators, as the server sees them."""
