"""Drives the scripts and the rules of :mod:`tests.model` with the same random calls.

``KR_MODEL_STEPS=200000 pytest tests/test_model.py`` searches longer, along new paths each time, and
prints the seed; ``--hypothesis-seed`` fixes or varies the paths of any run.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.everything import Everything

LONG = int(os.environ.get('KR_MODEL_STEPS', 0))
STEPS_PER_EXAMPLE = 50


def model_settings(steps: int, config: pytest.Config) -> settings:
    """CI takes the same paths each time; a long run or a given seed takes others."""
    steps = LONG or steps
    return settings(
        max_examples=max(1, steps // STEPS_PER_EXAMPLE),
        stateful_step_count=STEPS_PER_EXAMPLE,
        derandomize=not LONG and config.getoption('--hypothesis-seed') is None,
        deadline=None,
        database=None,
        print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.timeout(0 if LONG else 600)  # to make a found failure short takes minutes
def test_scripts_follow_the_rules(client: redis.Redis, backend: Any, request: Any) -> None:
    steps = 1_000 if backend is None else 4_000
    run_state_machine_as_test(
        lambda: Everything(client), settings=model_settings(steps, request.config)
    )
