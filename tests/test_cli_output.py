"""How the command line prints, without an app."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click import unstyle

from celery_ext.cli.output import (
    Column,
    age,
    cut,
    duration,
    fields,
    figures,
    size,
    table,
    visible,
    width_of,
)
from celery_ext.flower import text as text_of_pages

STATES = ('ready', 'delayed', 'waiting', 'throttled', 'leased', 'failed')


def queue(name: str, **counts: int) -> dict[str, Any]:
    return {'name': name, **dict.fromkeys(STATES, 0), **counts}


@pytest.mark.parametrize(
    ('number', 'text'),
    [
        (0, '0'), (0.0, '0'), (1e-5, '0.00001'), (0.01234, '0.0123'), (0.5, '0.5'), (1, '1'),
        (4.204, '4.2'), (99.96, '100'), (999.4, '999'), (999.6, '1,000'), (12_345.6, '12,346'),
        (1e9, '1,000,000,000'),
    ],
)  # fmt: skip
def test_three_figures_and_no_powers(number: float, text: str) -> None:
    assert figures(number) == text


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0, '0 ms'), (0.0004, '0.4 ms'), (0.9994, '999 ms'), (0.9996, '1 s'), (1.234, '1.23 s'),
        (9.999, '10 s'), (59, '59 s'), (300, '5 min'),
    ],
)  # fmt: skip
def test_lengths_of_time_on_pages(seconds: float, text: str) -> None:
    assert text_of_pages.duration(seconds) == text


def test_a_table_needs_no_more_than_it_has() -> None:
    columns = [Column('name'), *(Column(state, right=True) for state in STATES)]
    rows = [queue('mail' * 20, ready=12_345, failed=3), queue('x', leased=1)]
    assert '12,345' in table(rows, columns)
    for width in (60, 80, 200):
        text = unstyle(table(rows, columns, width=width))
        assert all(width_of(line) <= width for line in text.split('\n')), text
        # What has something to say stays; what is 0 everywhere goes where there is no room.
        assert all(word in text for word in ('ready', 'leased', 'failed', '12,345'))
    assert 'delayed' in table(rows, columns, width=80)


def test_columns_go_in_their_order_and_ids_are_never_cut() -> None:
    columns = [Column('id', keep=True), Column('a', drop=1), Column('b', drop=2), Column('c')]
    rows = [{'id': 'i' * 36, 'a': 'a' * 30, 'b': 'b' * 30, 'c': 'c' * 30}]
    heads = [
        unstyle(table(rows, columns, width=width)).splitlines()[0].split() for width in (60, 48)
    ]
    assert heads == [['id', 'a', 'c'], ['id', 'c']]
    assert 'i' * 36 in table(rows, columns, width=30)


def test_no_rows() -> None:
    assert table([], [Column('x')], 'nothing there') == 'nothing there'


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        ('red \x1b[31m', r'red \x1b[31m'),
        ('two\nlines\t', r'two\nlines\t'),
        ('left \u202e right', r'left \u202e right'),
        ('half \ud800', r'half \ud800'),
        ('grün 日本', 'grün 日本'),
        ('[bold]not markup[/]', '[bold]not markup[/]'),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_wide_characters_count_twice() -> None:
    assert width_of('日本') == 4
    assert cut('日本語', 5) == '日本…'
    assert cut('a.long.name', 6, tail=True) == '….name'
    assert width_of('e\u0301') == 1


@pytest.mark.parametrize(
    ('seconds', 'text'),
    [
        (0.25, '250 ms'), (4.21, '4.2 s'), (59.4, '59 s'), (59.7, '1 min'), (200, '3 min 20 s'),
        (3600, '1 h'), (187_200, '2 d 4 h'), (-5, '-5.0 s'), (None, '-'),
        (timedelta(minutes=2), '2 min'),
    ],
)  # fmt: skip
def test_durations(seconds: Any, text: str) -> None:
    assert duration(seconds) == text


def test_ages_and_sizes() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert age(now - timedelta(seconds=90), now) == '1 min 30 s ago'
    assert age(now + timedelta(hours=2), now) == 'in 2 h'
    assert [size(number) for number in (12, 3_400, 2_000_000, None)] == [
        '12 B', '3.4 kB', '2.0 MB', '-',
    ]  # fmt: skip


def test_fields_align_and_leave_out_what_is_not_there() -> None:
    text = fields({'id': 'x', 'empty': None, 'message': 'two\nlines'})
    assert unstyle(text).split('\n') == ['id       x', 'message  two', '         lines']
