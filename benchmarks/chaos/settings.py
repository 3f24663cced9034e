"""How long, how many, how bad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ('KOMBU', 'OURS', 'QUEUES', 'Settings', 'Transport')

Transport = Literal['reliable', 'kombu']

OURS: Transport = 'reliable'
KOMBU: Transport = 'kombu'

#: Workers whose pool has no processes of its own leave out the second.
QUEUES = ('celery', 'side')

#: Deliveries after which a task that kills its worker is a dead letter.
DELIVERIES = 20


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    Args:
        transport: whose.
        tasks: stored before it ends; 0: as many as it takes.
        seconds: of troubles before it ends; 0: as long as it takes.
        kills: of workers before it ends.
        server_kills: of the server before it ends.
        seed: chooses troubles and tasks.  What comes of it also depends on the machine.
        workers: that run at the same time.
        producers: that publish at the same time.
        rate: tasks a second, of all producers together; 0: no limit.
        lease: in seconds; also the ``visibility_timeout`` of kombu's transport.
        pace: seconds from one trouble to the next, on average.
        appendfsync: ``always`` or ``everysec``.
        server: ``valkey`` or ``redis``.
    """

    transport: Transport = OURS
    tasks: int = 0
    seconds: float = 60.0
    kills: int = 0
    server_kills: int = 0
    seed: int = 1
    workers: int = 4
    producers: int = 2
    rate: float = 0.0
    lease: float = 4.0
    pace: float = 2.0
    appendfsync: Literal['always', 'everysec'] = 'always'
    server: Literal['valkey', 'redis'] = 'valkey'

    @property
    def extension(self) -> bool:
        return self.transport == OURS

    def url(self, port: int) -> str:
        scheme = 'reliable+redis' if self.extension else 'redis'
        return f'{scheme}://127.0.0.1:{port}/0'

    @property
    def options(self) -> dict[str, Any]:
        """Transport options."""
        if not self.extension:
            return {'visibility_timeout': self.lease}
        return {'lease': self.lease, 'delivery_limit': DELIVERIES, 'fanout_life': 10}
