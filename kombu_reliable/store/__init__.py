"""The typed facade of what lives in Redis.

:mod:`.operations` defines each operation once, as a :class:`~kombu_reliable.scripts.Call`;
:class:`.Store` runs them over a blocking client, the poller sends the same calls itself.
"""

from __future__ import annotations

from kombu_reliable.store.operations import Operations
from kombu_reliable.store.store import Store

__all__ = ('Operations', 'Store')
