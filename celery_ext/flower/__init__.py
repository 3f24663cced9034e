"""Pages inside Flower: queues, jobs, throttles, dead letters, schedules.

``celery -A proj flower`` has them by itself, if the broker is kombu_reliable.  Where the entry
points of this package are not installed, one line in ``flowerconfig.py`` does the same:

    import celery_ext.flower

Importing this package has every Flower that starts in this process get the pages; a Flower of
another broker is left as it is.
"""

from __future__ import annotations

from celery_ext.flower.plugin import connect, extend

__all__ = ('connect', 'extend')

connect()
