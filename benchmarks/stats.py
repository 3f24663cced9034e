"""What it costs that workers count how long tasks wait and run.

    python -m benchmarks.stats             seven pairs, about three minutes
    python -m benchmarks.stats --quick     does it run? (no figures to trust)
    python -m benchmarks.stats --check     exit 1 if the bar is missed

Both workers have celery_ext; one counts, the other was told not to.  See benchmarks.installed for
how it is measured, and for what celery_ext costs with all that it does by itself, this included.
"""

from __future__ import annotations

from benchmarks.installed import Side, compare

__all__ = ('BAR', 'SIDES')

#: The largest median of the ratios.
BAR = 1.05

SIDES = Side('off', True, stats=False), Side('on', True)


if __name__ == '__main__':
    compare('stats', __doc__ or '', SIDES, BAR)
