"""Figures, times and names as the pages print them; what returns markup says so."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import Any

from tornado.escape import xhtml_escape

from celery_ext.cli.output import cut, figures, visible

__all__ = ('ago', 'count', 'duration', 'name', 'plural', 'short', 'state', 'when')

#: Where there is nothing to say, as text and as markup.
NONE = '\N{EN DASH}'
_NOTHING = f'<span class="reliable-none">{NONE}</span>'

#: Of a name that stands in a table.
SHORT = 60

_STEPS = ((90, 1, 's'), (5_400, 60, 'min'), (172_800, 3_600, 'h'), (float('inf'), 86_400, 'd'))


def count(number: int | None) -> str:
    """``12,345``"""
    return NONE if number is None else f'{number:,}'


def plural(number: int, one: str, many: str = '') -> str:
    """``1 job``, ``2 jobs``"""
    return f'{number:,} {one if number == 1 else many or one + "s"}'


def duration(seconds: float | None) -> str:
    """``250 ms``, ``4.2 s``, ``3 min``"""
    if seconds is None:
        return NONE
    if seconds < 0.9995:  # or it would be printed as 1,000 ms
        return f'{figures(seconds * 1000)} ms'
    if seconds < 10:
        return f'{figures(seconds)} s'
    return length(seconds)


def length(seconds: float) -> str:
    _, unit, name = next(step for step in _STEPS if seconds < step[0])
    return f'{round(seconds / unit):,} {name}'


def since(then: datetime, now: datetime) -> str:
    """``3 min ago``, ``in 2 h``"""
    seconds = (now - then).total_seconds()
    if abs(seconds) < 1:
        return 'now'
    return f'{length(seconds)} ago' if seconds > 0 else f'in {length(-seconds)}'


def ago(then: datetime | None, zone: tzinfo = UTC) -> str:
    """Markup: how long ago that was, or how soon it will be; the time itself is its title."""
    if then is None:
        return _NOTHING
    text = since(then, datetime.now(UTC))
    return f'<time datetime="{then.isoformat()}" title="{when(then, zone)}">{text}</time>'


def when(then: datetime, zone: tzinfo = UTC) -> str:
    """A time to the millisecond, in a zone."""
    local = then.astimezone(zone)
    return xhtml_escape(f'{local:%Y-%m-%d %H:%M:%S}.{local.microsecond // 1000:03} {local:%Z}')


def short(text: Any, width: int = SHORT, tail: bool = False) -> str:
    """A name from outside, cut; what a browser would obey, such as marks that turn the direction
    of writing, is spelled out."""
    return cut(visible(text), width, tail)


def name(text: Any, width: int = SHORT, tail: bool = False) -> str:
    """Markup: a name from outside, cut; the whole of it is its title."""
    whole = visible(text)
    if not whole:
        return _NOTHING
    shown = cut(whole, width, tail)
    title = f' title="{xhtml_escape(whole)}"' if shown != whole else ''
    return f'<span class="reliable-name"{title}>{xhtml_escape(shown)}</span>'


def state(text: str) -> str:
    """Markup: the state of a job, a queue or a schedule."""
    plain = xhtml_escape(text)
    return f'<span class="reliable-state reliable-state-{plain}">{plain}</span>'
