"""Where those are woken who fire schedules."""

from __future__ import annotations

__all__ = ('TICKS',)

#: The queue of ticks: each is a message that says which schedule is to be looked at.
TICKS = 'celery_ext.schedules'
