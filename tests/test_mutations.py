"""Each broken script of :mod:`tests.mutations` is found by the machine of :mod:`tests.model`."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from kombu_reliable.scripts import Sources, packaged, script
from tests.model.everything import Everything
from tests.mutations import MUTATIONS, QUICK, Mutation

STEPS_PER_EXAMPLE = 50
#: Some are found near the end of a third of these, and any change of the machine leads elsewhere.
MOST_STEPS = 180_000
#: The same paths each time; nobody wants to see them made short.
SETTINGS = settings(
    max_examples=MOST_STEPS // STEPS_PER_EXAMPLE,
    stateful_step_count=STEPS_PER_EXAMPLE,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)


def search(client: redis.Redis, sources: Sources) -> None:
    run_state_machine_as_test(lambda: Everything(client, sources), settings=SETTINGS)


@pytest.mark.parametrize('mutation', MUTATIONS, ids=str)
def test_each_mutation_can_be_made(mutation: Mutation) -> None:
    folder, name = mutation.file.split('/')
    assert mutation(folder, name) != packaged(folder, name)


def test_a_mutation_that_cannot_be_made_is_an_error() -> None:
    lost = Mutation('lib/place', 'return nothing of the kind', '', 'nothing')
    with pytest.raises(LookupError, match='lib/place has 0 lines'):
        script('claim', lost)


def test_mutations_have_names_of_their_own() -> None:
    names = [one.breaks for one in MUTATIONS]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)


@pytest.mark.parametrize('mutation', [one for one in MUTATIONS if one.breaks in QUICK], ids=str)
def test_a_broken_script_is_found(server: Any, database: int, mutation: Mutation) -> None:
    with server.client(db=database) as client, pytest.raises(AssertionError):
        search(client, mutation)


@pytest.mark.matrix
@pytest.mark.timeout(2400)
def test_nothing_is_found_where_nothing_is_broken(server: Any, database: int) -> None:
    """On the same paths, so what is found on them is the mutation."""
    with server.client(db=database) as client:
        search(client, packaged)


@pytest.mark.matrix
@pytest.mark.timeout(2400)
@pytest.mark.parametrize('mutation', [one for one in MUTATIONS if one.breaks not in QUICK], ids=str)
def test_every_broken_script_is_found(server: Any, database: int, mutation: Mutation) -> None:
    with server.client(db=database) as client, pytest.raises(AssertionError):
        search(client, mutation)
