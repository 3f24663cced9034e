"""The table knows every public operation."""

from __future__ import annotations

from tests.faults.public import EXCEPTIONS, operations
from tests.faults.running import Clean
from tests.faults.table import TABLE


def test_every_public_operation_is_in_the_table(clean: dict[str, Clean]) -> None:
    """It was called by an operation of the table, so each of its calls meets each fault."""
    ran = set().union(*(one.ran for one in clean.values()))
    missing = sorted(
        name for name, code in operations().items() if code not in ran and name not in EXCEPTIONS
    )
    assert not missing, f'no operation in the table calls {", ".join(missing)}'


def test_the_exceptions_are_exceptions(clean: dict[str, Clean]) -> None:
    known = operations()
    assert not sorted(EXCEPTIONS.keys() - known.keys()), 'there are no such operations any more'
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())


def test_every_operation_talks_to_the_server(clean: dict[str, Clean]) -> None:
    """An entry that makes no call proves nothing."""
    assert clean.keys() == TABLE.keys()
    assert not [name for name, one in clean.items() if not one.calls]
