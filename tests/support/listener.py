"""Hears what workers say to the server."""

from __future__ import annotations

import re
import threading

import redis

__all__ = ('Listener',)


class Listener:
    """Hears the verdicts that workers send, in their order."""

    SAID = re.compile(r'(ack|fail|requeue|release|replace|cancel|once) celery (\S+) \S+\.\d+ ')

    def __init__(self, client: redis.Redis) -> None:
        self.verdicts: dict[str, list[str]] = {}
        #: When each verdict was first heard, by the server's clock.
        self.times: dict[tuple[str, str], float] = {}
        self._client = client
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _listen(self) -> None:
        with self._client.monitor() as monitor:
            self._ready.set()
            for heard in monitor.listen():
                for verdict, job in self.SAID.findall(heard['command'] + ' '):
                    # A settlement may be sent twice, and an id may live twice at a time.
                    job = job.rpartition('~')[2]
                    self.times.setdefault((job, verdict), heard['time'])
                    said = self.verdicts.setdefault(job, [])
                    if said[-1:] != [verdict]:
                        said.append(verdict)
                if 'the-end' in heard['command']:
                    return

    def close(self) -> None:
        self._client.get('the-end')
        self._thread.join(10)
        self._client.close()
