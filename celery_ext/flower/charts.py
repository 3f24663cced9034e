"""Histograms of durations, drawn here: the pages need no library for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tornado.escape import xhtml_escape

from celery_ext.flower.text import count, duration
from kombu_reliable import Bar, Summary

__all__ = ('histogram',)

WIDTH, HEIGHT = 560, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 22, 26

#: More columns would be too thin to point at.
COLUMNS = 36
#: Times that are written below.
TICKS = 6
#: The width of a name of those below.
NAME = 82
#: Percentiles that are marked.
SHARES = {'p50': 0.5, 'p95': 0.95}


class Column(NamedTuple):
    low: float
    high: float
    held: int


def histogram(summary: Summary) -> str:
    """Markup: how durations are spread.  The columns grow wider in time from left to right, each
    by the same factor, so that milliseconds and hours fit on one page."""
    if not summary.count:
        return '<p class="reliable-empty">Nothing was counted yet.</p>'
    columns = _columns(summary.bars())
    most = max(column.held for column in columns)
    return (
        f'<svg class="reliable-chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<title>{count(summary.count)} counted, mean {duration(summary.mean)}</title>'
        f'{_frame(most)}{"".join(_column(columns, number, most) for number in range(len(columns)))}'
        f'{_times(columns)}{_marks(columns, summary)}</svg>'
    )


def _columns(bars: Sequence[Bar]) -> list[Column]:
    step = -(-len(bars) // COLUMNS)
    groups = [bars[at : at + step] for at in range(0, len(bars), step)]
    return [Column(one[0].low, one[-1].high, sum(bar.count for bar in one)) for one in groups]


def _x(columns: Sequence[Column], position: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * position / len(columns)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _column(columns: Sequence[Column], number: int, most: int) -> str:
    column = columns[number]
    if not column.held:
        return ''
    left, right = _x(columns, number), _x(columns, number + 1)
    width = min(right - left - 1.5, 40)
    height = max(2.0, _y(0) - _y(column.held / most))
    told = f'{duration(column.low)} to {duration(column.high)}: {count(column.held)}'
    return (
        f'<rect class="reliable-bar" x="{(left + right - width) / 2:.1f}" '
        f'y="{_y(0) - height:.1f}" width="{width:.1f}" height="{height:.1f}" rx="1.5">'
        f'<title>{xhtml_escape(told)}</title></rect>'
    )


def _frame(most: int) -> str:
    half = most // 2
    labels = {0.0: 0, half / most: half, 1.0: most}
    lines = ''.join(
        f'<line class="reliable-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" '
        f'y1="{_y(share):.1f}" y2="{_y(share):.1f}"/>'
        for share in labels
    )
    return lines + ''.join(
        f'<text class="reliable-axis" x="{LEFT - 6}" y="{_y(share) + 4:.1f}" '
        f'text-anchor="end">{_short(value)}</text>'
        for share, value in labels.items()
    )


def _short(number: float) -> str:
    """``950``, ``1.2k``, ``35M``"""
    for limit, unit in ((1e3, ''), (1e6, 'k'), (1e9, 'M')):
        if number < limit:
            return f'{number * 1e3 / limit:.3g}{unit}'
    return f'{number / 1e9:.3g}G'


def _times(columns: Sequence[Column]) -> str:
    step = max(1, -(-len(columns) // TICKS))
    return ''.join(
        f'<text class="reliable-axis" x="{_x(columns, number):.1f}" y="{HEIGHT - 8}" '
        f'text-anchor="{"middle" if number else "start"}">{duration(columns[number].low)}</text>'
        for number in range(0, len(columns), step)
    )


def _marks(columns: Sequence[Column], summary: Summary) -> str:
    if summary.count < 2:
        return ''
    lines, names, last = '', '', float('-inf')
    for name, share in SHARES.items():
        value = summary.percentile(share)
        x = _x(columns, _position(columns, value))
        # The one to the left of its line, the other to the right of it, where there is room.
        left = x > WIDTH - RIGHT - NAME if last > 0 else x > LEFT + NAME
        anchor, at = ('end', x - 4) if left else ('start', x + 4)
        crowded = last > 0 and (x - NAME < last if left else last < LEFT + 2 * NAME > x)
        y = TOP + 4 if crowded else TOP - 10
        last = x
        lines += (
            f'<line class="reliable-mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 16}" '
            f'y2="{_y(0):.1f}"/>'
        )
        names += (
            f'<text class="reliable-mark-name" x="{at:.1f}" y="{y}" text-anchor="{anchor}">'
            f'{name} {duration(value)}</text>'
        )
    return lines + names


def _position(columns: Sequence[Column], value: float) -> float:
    """Where a duration stands, in columns."""
    for number, column in enumerate(columns):
        if value < column.high:
            span = column.high - column.low
            return number + max(0.0, min(1.0, (value - column.low) / span if span else 0.0))
    return float(len(columns))
