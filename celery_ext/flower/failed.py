"""The tab Failed: dead letters by group, and one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from celery_ext.dead import Group
from celery_ext.flower.jobs import JobRow, job_rows
from celery_ext.flower.page import Page
from celery_ext.flower.pages import SIZE, Pages
from celery_ext.flower.query import Query
from celery_ext.flower.queues import rows

__all__ = ('FailedPage',)

#: Groups that are shown.
GROUPS = 25

#: Dead letters of all queues and groups are not listed beyond this: all lists would have to be
#: gone through to find who comes next.
DEEPEST = 5_000


@dataclass(frozen=True, slots=True)
class FailedView:
    """Dead letters.

    Args:
        groups: a page of the groups, if none was chosen.
        group_pages: where it stands.
        rows: a page of dead letters.
        pages: where that stands.
        group, queue: what was chosen.
        total: how many there are in all queues.
        cut: there are more, which are found by group or queue.
        busy: what goes on with whole groups, and how far it is.
    """

    groups: list[Group]
    group_pages: Pages
    rows: list[JobRow]
    pages: Pages
    group: str
    queue: str
    total: int
    cut: bool
    busy: list[str]


class FailedPage(Page):
    tab = 'reliable-failed'
    template = 'reliable-failed.html'

    def look(self, extension: Any, query: Query) -> FailedView:
        group, queue = query.text('group'), query.text('queue')
        offset, skipped = query.number('offset'), query.number('groups')
        listed, _ = rows(self.watch, extension)
        total = sum(row.counts.dead for row in listed)
        held: int | None = total
        if queue:
            held = next((row.counts.dead for row in listed if row.name == queue), 0)
        groups = extension.dead.groups(skipped, GROUPS)
        if group:
            known = [one for one in extension.dead.groups(0, 1000) if one.name == group]
            held = known[0].count if known and not queue else None if queue else 0
        plain = not group and not queue
        if plain:
            offset = min(offset, DEEPEST)
        jobs = extension.dead.page(queue or None, group or None, offset, SIZE)
        cut = plain and total > DEEPEST + SIZE
        if cut:
            held = DEEPEST + SIZE
        return FailedView(
            groups, Pages(skipped, len(groups), None, GROUPS), job_rows(jobs),
            Pages(offset, len(jobs), held), group, queue, total, cut,
            [str(one) for one in list(self.watch.long.values())],
        )  # fmt: skip
