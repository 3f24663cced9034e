"""Keeps the leases of this process alive and its settlements safe.

One keeper exists per process and server.  It owns the *registry*, who holds which delivery,
and the :class:`~kombu_reliable.transport.outbox.Outbox`, what was settled but not confirmed.
Both are independent of connections and channels: losing those loses nothing.  Its thread renews
leases and sends what the event loop had no time to send: under the solo pool, in a warm shutdown
and after a closed channel nobody else would.
"""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import redis.exceptions

from kombu_reliable.errors import ReliableError
from kombu_reliable.store import Store
from kombu_reliable.store.operations import RENEW_LIMIT, SETTLE_LIMIT
from kombu_reliable.transport.native import Log, NativeThread, Wake, native
from kombu_reliable.transport.outbox import Outbox, Posted
from kombu_reliable.types import Delivery, Settlement, Status, Verdict

__all__ = ('Keeper', 'finish_settling')

logger = logging.getLogger('kombu_reliable')

#: How often the keeper looks for settlements that wait.  Fresh ones are left to the event loop.
PATIENCE = 0.05

#: How long the event loop may take to read the answer, in seconds.
OVERDUE = 1.0

#: How long the end of the process waits for settlements to be confirmed, in seconds.
FAREWELL = 5.0

#: Verdicts after which a message is delivered again.
GIVES_BACK = (Verdict.REQUEUE, Verdict.RELEASE)

#: How long the thread sleeps for nothing before it ends, in seconds.
LINGER = 60.0

#: How often a lasting failure is repeated in the log, in seconds.
REPEAT_WARNING = 30.0


class _Held:
    """One delivery in the hands of this process."""

    __slots__ = ('dropped_at', 'id', 'lost', 'message', 'once', 'queue', 'settled', 'token')

    def __init__(self, delivery: Delivery) -> None:
        self.queue = delivery.queue
        self.id = delivery.id
        self.token = delivery.token
        #: Has its verdict; kept until the server has confirmed it.
        self.settled = False
        #: Known to be somebody else's by now; its verdict is sent all the same, to be counted.
        self.lost = False
        #: What was said so that it is not delivered again.
        self.once: Posted | None = None
        #: None until it is handed out.
        self.message: weakref.ref[Any] | None = None
        #: When it was seen that nobody holds the message any more, on the monotonic clock.
        self.dropped_at: float | None = None

    def wanted(self) -> bool:
        return self.settled or self.message is None or self.message() is not None


class Keeper:
    """The registry, the outbox, and the thread that serves both.

    Args:
        open_store: makes a store with a connection of the keeper's own; called when needed.
        lease: length of a lease in seconds.
    """

    def __init__(self, open_store: Callable[[], Store], lease: float) -> None:
        self._open_store = open_store
        self._interval = lease / 3
        self._reset()
        _keepers.add(self)

    @property
    def _store(self) -> Store:
        """Each thread has its own: green sockets cannot change their thread."""
        ident = self._native.get_ident()
        store = self._stores.get(ident)
        if store is None:
            store = self._stores[ident] = self._open_store()
        return store

    def _close_store(self) -> None:
        store = self._stores.pop(self._native.get_ident(), None)
        if store is not None:
            store.client.close()

    def _reset(self) -> None:
        self._native = native()
        self._log = Log(self._native)
        self._stores: dict[int, Store] = {}
        self._held: dict[str, _Held] = {}
        self._outbox = Outbox()
        self._wake = Wake(self._native)
        # Celery's cold shutdown comes as a signal, and reads the claim that is under way.
        self._lock = self._native.allocate_rlock()
        self._thread: NativeThread | None = None
        self._stopping = False
        self._next_renewal = 0.0
        self._failing_since: float | None = None
        self._next_warning = 0.0
        self._announced = False
        self._gave_up_at = float('-inf')

    # -- registry ----------------------------------------------------------------

    def hold(self, deliveries: Sequence[Delivery]) -> None:
        """Notes deliveries before the first of them is handed out."""
        if not deliveries:
            return
        for delivery in deliveries:
            self._held[delivery.token] = _Held(delivery)
        self._ensure_thread()
        self._wake.set()

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._next_renewal = time.monotonic() + self._interval
                self._thread = NativeThread(self._native, self._run)

    def attach(self, token: str, message: Any) -> None:
        """From now on the delivery lives as long as somebody holds ``message``."""
        held = self._held.get(token)
        if held is not None:
            held.message = weakref.ref(message)

    def holds(self, token: str) -> bool:
        held = self._held.get(token)
        return held is not None and held.dropped_at is None

    def lost(self, token: str) -> bool:
        """Whether a renewal has shown that the delivery is not ours any more."""
        held = self._held.get(token)
        return held is not None and held.lost

    def queue_of(self, token: str) -> str | None:
        held = self._held.get(token)
        return held.queue if held else None

    def job_of(self, token: str) -> str | None:
        held = self._held.get(token)
        return held.id if held else None

    # -- outbox ------------------------------------------------------------------

    def settle(self, token: str, verdict: Verdict, detail: str = '') -> None:
        """Ends a delivery: one append, from any thread or signal handler, and never an error.

        The first verdict counts; tokens that are not held are ignored.
        """
        held = self._held.get(token)
        if held is None or held.settled:
            return
        held.settled = True
        if held.once is not None:
            held.once.dropped = True
        self._outbox.post(Settlement(verdict, held.queue, held.id, held.token, detail))

    def once(self, token: str) -> None:
        """Has a delivery not made again; it is still to be settled.  Of one that is settled
        before that was sent, nothing needs to be said."""
        held = self._held.get(token)
        if held is not None and not held.settled and held.once is None:
            held.once = self._outbox.post(Settlement(Verdict.ONCE, held.queue, held.id, token))

    def settle_now(self, token: str, timeout: float) -> None:
        """Waits until the server has confirmed the end of a delivery, or for so many seconds."""
        deadline = time.monotonic() + timeout
        while not _try(self.flush) and token in self._held and time.monotonic() < deadline:
            time.sleep(PATIENCE / 10)
            self._outbox.recall_overdue(0.0)

    @property
    def unsettled(self) -> bool:
        """Whether verdicts are waiting for their confirmation."""
        return any(held.settled for held in list(self._held.values()))

    def collect(self, limit: int = SETTLE_LIMIT, waited: float = 0.0) -> list[Posted]:
        """Takes settlements to send, see :meth:`.Outbox.collect`."""
        self._log.speak()
        return self._outbox.collect(limit, waited)

    def confirmed(self, posted: list[Posted], statuses: Sequence[Status]) -> None:
        """The server has answered; what was answered before is left alone."""
        for item, status in self._outbox.confirmed(posted, statuses):
            settlement = item.settlement
            if settlement.verdict is Verdict.ONCE:
                continue  # still to be settled; whether its lease is lost, its renewal says
            self._held.pop(settlement.token, None)
            # Of what was sent before, the first may have been heard, and what was given back
            # may be with somebody else, even with ourselves, by now.
            given_back = item.sent and settlement.verdict in GIVES_BACK
            if (status is Status.FENCED and not given_back) or (
                status is Status.UNHELD and not item.sent
            ):
                self._log.warning(
                    'late %s of %s from queue %r changed nothing: its lease was lost%s',
                    settlement.verdict.value, settlement.id, settlement.queue,
                    ' and another worker has it' if status is Status.FENCED else '',
                )  # fmt: skip

    def put_back(self, posted: list[Posted]) -> None:
        """No answer came; the server may or may not have seen them."""
        self._outbox.put_back(posted)

    # -- renewal -----------------------------------------------------------------

    def leases(self) -> list[tuple[str, str, str]]:
        """``(queue, id, token)`` of everything that somebody here still wants."""
        alive = []
        now = time.monotonic()
        for token, held in list(self._held.items()):
            if held.wanted():
                if not held.lost:
                    alive.append((held.queue, held.id, token))
            elif held.dropped_at is None:
                # Nobody can settle it any more, and its lease ends by itself.  But a channel that
                # closes may still give it back: Celery drops messages just before.
                held.dropped_at = now
            elif now - held.dropped_at > 3 * self._interval:
                self._held.pop(token, None)
        return alive

    def renewed(self, leases: Sequence[tuple[str, str, str]], statuses: Sequence[Status]) -> None:
        for (queue, job, token), status in zip(leases, statuses, strict=True):
            held = self._held.get(token)
            if status is Status.DONE or held is None or held.settled:
                continue
            held.lost = True
            self._log.warning(
                'lost the lease of %s from queue %r%s', job, queue,
                ': another worker has it' if status is Status.FENCED else ': it was removed',
            )  # fmt: skip

    # -- the thread --------------------------------------------------------------

    def _run(self) -> None:
        self._log.be_discreet()
        try:
            self._work()
        finally:
            self._close_store()

    def _work(self) -> None:
        while self._has_work() and not self._stopping:
            self._native.sleep(PATIENCE)
            # Each in a try of its own: a settlement that fails must not end leases.
            steps = (self._renew_if_due, lambda: self.flush(PATIENCE / 2))
            errors = [error for step in steps if (error := _try(step))]
            if errors:
                self._failed(errors[0])
            else:
                self._recovered()

    def _has_work(self) -> bool:
        """Sleeps while nothing is held; False ends the thread after a long sleep."""
        while not (self._held or self._outbox or self._stopping):
            # Whoever notes something sets it afterwards.
            if self._wake.wait(LINGER):
                self._next_renewal = time.monotonic() + self._interval
                continue
            with self._lock:
                if not self._held:
                    self._thread = None
                    return False
        return True

    def flush(self, waited: float = 0.0) -> None:
        """Sends what has waited in the outbox for so many seconds, and waits for the answer."""
        self._outbox.recall_overdue(OVERDUE)
        while posted := self.collect(waited=waited):
            try:
                call = self._store.operations.settle([item.settlement for item in posted])
                statuses = self._store.run(call)
            except BaseException:
                self.put_back(posted)
                raise
            self.confirmed(posted, statuses)

    def finish(self) -> None:
        """Sends every settlement once more that is not confirmed, whoever has it.

        The thread may take one at any moment and will not live to send it, so this looks again
        until all are confirmed.
        """
        self._end_green_thread()
        if time.monotonic() - self._gave_up_at < 2 * FAREWELL:
            return
        deadline = time.monotonic() + FAREWELL
        error: Exception | None = None
        while self.unsettled and time.monotonic() < deadline:
            self._outbox.recall_overdue(0.0)
            if error := _try(self.flush):
                time.sleep(PATIENCE)
        lost = [held for held in list(self._held.values()) if held.settled]
        if lost:
            self._gave_up_at = time.monotonic()
            logger.error(
                '%d settlements could not be sent (%s); these tasks run again: %s',
                len(lost), error, ', '.join(held.id for held in lost[:10]),
            )  # fmt: skip

    def _end_green_thread(self) -> None:
        """The end of the interpreter must not cut off a thread that runs greenlets."""
        thread = self._thread
        if thread is not None and self._native.green:
            self._stopping = True
            self._wake.set()
            thread.join(FAREWELL)

    def _renew_if_due(self) -> None:
        if time.monotonic() < self._next_renewal:
            return
        self.renew()
        self._next_renewal = time.monotonic() + self._interval

    def renew(self) -> None:
        """Renews every lease now."""
        leases = self.leases()
        batches = [leases[i : i + RENEW_LIMIT] for i in range(0, len(leases), RENEW_LIMIT)]
        if not batches:
            return
        operations = self._store.operations
        answers = self._store.run_all([operations.renew(batch) for batch in batches])
        for batch, statuses in zip(batches, answers, strict=True):
            self.renewed(batch, statuses)

    def _failed(self, error: Exception) -> None:
        """One failure is how a lost connection is noticed; the next attempt opens another."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        elif now >= self._next_warning:
            self._next_warning = now + REPEAT_WARNING
            self._announced = True
            self._log.warning('cannot renew or settle (%s), trying on', error)
        self._native.sleep(min(0.5, self._interval / 4))

    def _recovered(self) -> None:
        if self._failing_since is not None and self._announced:
            self._log.warning(
                'renewing and settling again after %.1f s', time.monotonic() - self._failing_since
            )
        self._failing_since, self._announced = None, False


def _try(step: Callable[[], None]) -> Exception | None:
    """Runs a step of the thread, which must outlive whatever goes wrong in it."""
    try:
        step()
    except Exception as error:
        if not isinstance(error, (redis.exceptions.RedisError, OSError, ReliableError)):
            logger.exception('unexpected error in the keeper')
        return error
    return None


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _forget_in_child() -> None:
    """What a process holds is not its children's: they must neither renew nor settle it."""
    for keeper in list(_keepers):
        keeper._reset()


def finish_settling() -> None:
    """Sends what this process has settled and no server has confirmed; takes some seconds at
    most.  It happens at exit by itself; a program that replaces itself calls it before."""
    for keeper in list(_keepers):
        keeper.finish()


os.register_at_fork(after_in_child=_forget_in_child)
atexit.register(finish_settling)
