"""Drives the scripts and the rules of :mod:`tests.model` with the same random calls.

CI takes the same paths each time.  ``-m matrix`` searches longer, along new paths, and prints the
seed; ``KR_MODEL_STEPS=200000`` longer still.  ``--hypothesis-seed`` takes those of a seed again.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.model.everything import Everything

STEPS_PER_EXAMPLE = 50
LONG = int(os.environ.get('KR_MODEL_STEPS', 12_000))


def drive(client: redis.Redis, steps: int, number: int | None) -> None:
    """So many steps, along the paths of a seed; None: always along the same."""

    def machine() -> Everything:
        return Everything(client)

    chosen = settings(
        max_examples=max(1, steps // STEPS_PER_EXAMPLE),
        stateful_step_count=STEPS_PER_EXAMPLE,
        derandomize=number is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine if number is None else seed(number)(machine), settings=chosen)


def seed_of(config: pytest.Config) -> int | None:
    given = config.getoption('--hypothesis-seed')
    return None if given is None else int(given)


@pytest.mark.timeout(900)  # to make a found failure short takes minutes
def test_scripts_follow_the_rules(client: redis.Redis, backend: Any, request: Any) -> None:
    drive(client, 1_000 if backend is None else 5_000, seed_of(request.config))


@pytest.mark.matrix
@pytest.mark.timeout(0)
def test_scripts_follow_the_rules_for_long(client: redis.Redis, request: Any) -> None:
    number = seed_of(request.config)
    if number is None:
        number = random.SystemRandom().randrange(2**32)
    print(f'{LONG} steps, --hypothesis-seed={number}')
    drive(client, LONG, number)
