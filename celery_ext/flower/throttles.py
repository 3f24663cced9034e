"""The tab Throttles: limits, who holds slots, who waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_ext.flower.page import Page
from celery_ext.flower.pages import SIZE, Pages
from celery_ext.flower.query import Query
from celery_ext.throttles import Holder, ThrottleInfo, Waiter

__all__ = ('SingleThrottlePage', 'ThrottlesPage')

#: So many are looked at to show those first for which most wait; more are shown by name.
SORTED = 500


@dataclass(frozen=True, slots=True)
class ThrottlesView:
    rows: list[ThrottleInfo]
    pages: Pages


class ThrottlesPage(Page):
    tab = 'reliable-throttles'
    template = 'reliable-throttles.html'

    def look(self, extension: Any, query: Query) -> ThrottlesView:
        wanted, offset = query.text('search').lower(), query.number('offset')
        names = self.watch.recent('throttles', extension.throttles.names)
        chosen = sorted(name for name in names if wanted in name.lower())
        part = slice(offset, offset + SIZE)
        if len(chosen) > SORTED:
            shown = extension.throttles.look(chosen[part])
        else:
            shown = extension.throttles.look(chosen)[part]
        return ThrottlesView(shown, Pages(offset, len(shown), len(chosen)))


@dataclass(frozen=True, slots=True)
class ThrottleView:
    """What there is to see of one throttle.

    Args:
        name: its name.
        info: its limits; None if nothing was set and no job uses it.
        holders: a page of those who have a slot.
        pending: a page of those who wait.
    """

    name: str
    info: ThrottleInfo | None
    holders: list[Holder]
    holder_pages: Pages
    pending: list[Waiter]
    pending_pages: Pages


class SingleThrottlePage(Page):
    tab = 'reliable-throttles'
    template = 'reliable-throttle.html'

    def look(self, extension: Any, query: Query) -> ThrottleView:
        name = query.needed('name')
        held_from, pending_from = query.number('held'), query.number('pending')
        throttle = extension.throttles[name]
        info = throttle.get()
        holders = throttle.holders(held_from, SIZE)
        pending = throttle.pending(pending_from, SIZE)
        return ThrottleView(
            name, info,
            holders, Pages(held_from, len(holders), info.held if info else 0),
            pending, Pages(pending_from, len(pending), info.pending if info else 0),
        )  # fmt: skip
