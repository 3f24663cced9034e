"""What the commands print: tables for people, one JSON document for scripts.

Names come from outside.  What a terminal would obey, control characters and the like, is printed
as an escape, and a table fits the terminal, down to 60 columns.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import click

__all__ = ('Column', 'age', 'count', 'cut', 'duration', 'fields', 'print_json', 'size', 'table',
           'terminal_width', 'visible', 'write')  # fmt: skip

#: Between two columns.
GAP = '  '
#: No column that may be cut is cut below this.
NARROWEST = 8
#: Texts that tell nothing, and where a column of them stands among those that go.
_NOTHING, _FIRST = frozenset({'', '-', '0'}), 1000
#: Beyond this, text says nothing to a reader of a table.
LONGEST = 200


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        field: what it shows, a key of the records.
        title: its head; the field unless given.
        right: numbers stand on the right.
        tail: what is cut is the beginning: names of tasks differ at their ends.
        keep: never cut: ids are there to be copied.
        drop: where there is no room columns go, those with the highest number first; those
            with 0 stay.
        show: makes text of a value; by default what :func:`text_of` makes.
        style: makes a colour of a value, or None.
    """

    field: str
    title: str = ''
    right: bool = False
    tail: bool = False
    keep: bool = False
    drop: int = 0
    show: Callable[[Any], str] | None = None
    style: Callable[[Any], str | None] | None = None

    @property
    def head(self) -> str:
        return self.title or self.field

    def text(self, record: Mapping[str, Any]) -> str:
        value = record.get(self.field)
        return visible(text_of(value) if self.show is None else self.show(value))


# -- text ------------------------------------------------------------------------


def visible(text: Any, lines: bool = False) -> str:
    """Text that a terminal only prints: what it would obey is spelled as an escape.

    Args:
        text: from anywhere.
        lines: leave line ends as they are.
    """
    return ''.join(
        one if one.isprintable() or (lines and one == '\n') else _escape(one) for one in str(text)
    )


def _escape(one: str) -> str:
    return '\\ufffd' if one == '\ufffd' else one.encode('unicode_escape').decode()


def text_of(value: Any) -> str:
    """A value as people read it."""
    if value is None or value == '':
        return '-'
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, int):
        return count(value)
    if isinstance(value, datetime):
        return value.astimezone().strftime('%Y-%m-%d %H:%M:%S')
    if isinstance(value, list | tuple):
        return ', '.join(map(str, value)) or '-'
    return str(value)


def width_of(text: str) -> int:
    """The columns of a terminal that a text takes."""
    return len(text) if text.isascii() else sum(map(_width_of_one, text))


def _width_of_one(one: str) -> int:
    if unicodedata.combining(one):
        return 0
    return 2 if unicodedata.east_asian_width(one) in 'WF' else 1


def cut(text: str, width: int, tail: bool = False) -> str:
    """A text that takes at most so many columns; with ``tail`` its end is kept."""
    if width_of(text) <= width:
        return text
    if tail:
        return cut(text[::-1], width)[::-1]
    taken, room = [], width - 1
    for one in text:
        room -= _width_of_one(one)
        if room < 0:
            break
        taken.append(one)
    return ''.join(taken) + '…'


def _pad(text: str, width: int, right: bool) -> str:
    space = ' ' * max(0, width - width_of(text))
    return space + text if right else text + space


# -- figures ---------------------------------------------------------------------


def count(number: int) -> str:
    """``12,345``"""
    return f'{number:,}'


def duration(seconds: float | timedelta | None) -> str:
    """A length of time: ``250 ms``, ``4.2 s``, ``3 min 20 s``, ``2 d 4 h``."""
    if seconds is None:
        return '-'
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if seconds < 0:
        return f'-{duration(-seconds)}'
    if seconds < 1:
        return f'{seconds * 1000:.0f} ms'
    if seconds < 10:
        return f'{seconds:.1f} s'
    whole = round(seconds)
    for unit, name, smaller, its_name in (
        (86_400, 'd', 3600, 'h'), (3600, 'h', 60, 'min'), (60, 'min', 1, 's'),
    ):  # fmt: skip
        if whole >= unit:
            rest = whole % unit // smaller
            return f'{whole // unit} {name}' + (f' {rest} {its_name}' if rest else '')
    return f'{whole} s'


def age(moment: datetime | None, now: datetime | None = None) -> str:
    """How far from now a time is: ``4 min 10 s ago``, ``in 2 h``."""
    if moment is None:
        return '-'
    seconds = ((now or datetime.now(moment.tzinfo)) - moment).total_seconds()
    return f'{duration(seconds)} ago' if seconds >= 0 else f'in {duration(-seconds)}'


def size(number: float | None) -> str:
    """``512 B``, ``3.4 MB``"""
    if number is None:
        return '-'
    for unit in ('B', 'kB', 'MB', 'GB'):
        if number < 1000:
            return f'{number:.0f} {unit}' if unit == 'B' else f'{number:.1f} {unit}'
        number /= 1000
    return f'{number:.1f} TB'


# -- tables ----------------------------------------------------------------------


def terminal_width() -> int | None:
    """The columns there are; None where there is no terminal, and so no need to cut."""
    if os.environ.get('COLUMNS', '').isdecimal() or sys.stdout.isatty():
        return max(20, shutil.get_terminal_size().columns)
    return None


def table(
    records: Iterable[Mapping[str, Any]],
    columns: Sequence[Column],
    empty: str = 'nothing',
    width: int | None = None,
) -> str:
    """Records as a table.

    Args:
        records: what ``--json`` prints as well.
        columns: what of it to show.
        empty: said if there are none.
        width: columns of the terminal; None for as many as it takes.
    """
    records = list(records)
    if not records:
        return empty
    cells = [
        [cut(column.text(record), LONGEST, column.tail) for column in columns] for record in records
    ]
    natural = [
        max(width_of(column.head), *(width_of(row[at]) for row in cells))
        for at, column in enumerate(columns)
    ]
    drops = [_drop(column, [row[at] for row in cells]) for at, column in enumerate(columns)]
    widths = _fit(columns, natural, drops, width)
    shown = [at for at in range(len(columns)) if widths[at]]
    lines = [_line([columns[at].head for at in shown], shown, columns, widths, 'bold')]
    for record, row in zip(records, cells, strict=True):
        lines.append(_line([row[at] for at in shown], shown, columns, widths, record))
    return '\n'.join(lines)


def _drop(column: Column, texts: list[str]) -> int:
    """Where there is no room, columns in which nothing stands go before all others."""
    # Who shows numbers in a way of his own means something by 0.
    nothing = _NOTHING if column.show is None else _NOTHING - {'0'}
    return column.drop if any(text not in nothing for text in texts) else _FIRST


def _fit(
    columns: Sequence[Column], natural: list[int], drops: list[int], width: int | None
) -> list[int]:
    """The width of each column, 0 for those that must go."""
    widths = list(natural)
    if width is None:
        return widths

    def excess() -> int:
        shown = [one for one in widths if one]
        return sum(shown) + len(GAP) * (len(shown) - 1) - width

    least = [
        own if column.keep or column.right else min(own, max(NARROWEST, width_of(column.head)))
        for own, column in zip(natural, columns, strict=True)
    ]
    for at in sorted(range(len(columns)), key=lambda at: -drops[at]):
        if drops[at] and excess() > sum(
            own - small for own, small in zip(widths, least, strict=True) if own
        ):
            widths[at] = 0
    while (over := excess()) > 0:
        able = [at for at in range(len(columns)) if widths[at] > least[at]]
        if not able:
            break
        widest = max(able, key=lambda at: widths[at])
        widths[widest] -= min(over, widths[widest] - least[widest], max(1, over // len(able)))
    return widths


def _line(
    texts: Sequence[str], shown: Sequence[int], columns: Sequence[Column], widths: Sequence[int],
    record: Mapping[str, Any] | str,
) -> str:  # fmt: skip
    parts = []
    for text, at in zip(texts, shown, strict=True):
        column = columns[at]
        part = _pad(cut(text, widths[at], column.tail), widths[at], column.right)
        if at == shown[-1]:
            part = part.rstrip()
        if not part.strip():
            pass  # no colour where nothing is
        elif isinstance(record, str):
            part = click.style(part, bold=True)
        elif column.style is not None and (color := column.style(record.get(column.field))):
            part = click.style(part, fg=color)
        parts.append(part)
    return GAP.join(parts).rstrip()


def fields(pairs: Mapping[str, Any]) -> str:
    """Names and values, one a line; those without a value are left out."""
    kept = {name: value for name, value in pairs.items() if value not in (None, '', [], ())}
    widest = max(map(width_of, kept), default=0)
    lines = []
    for name, value in kept.items():
        first, *others = visible(text_of(value), lines=True).split('\n')
        lines.append(click.style(_pad(name, widest, False), bold=True) + GAP + first)
        lines += [' ' * widest + GAP + other for other in others]
    return '\n'.join(lines)


# -- writing ---------------------------------------------------------------------


def write(text: str, err: bool = False) -> None:
    """Prints text; colours go where no terminal is, and what it cannot print is escaped."""
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, 'encoding', None) or 'utf-8'
    text = text.encode(encoding, 'backslashreplace').decode(encoding)
    click.echo(text, err=err)


def print_json(document: Any) -> None:
    """Prints one JSON document: times as ISO 8601, everything that is not ASCII escaped."""
    click.echo(json.dumps(document, indent=2, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable):
        return list(value)
    return str(value)
