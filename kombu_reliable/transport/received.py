"""The message that a consumer gets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.transport import virtual

from kombu_reliable.transport.failure import detail_of
from kombu_reliable.types import Origin, Verdict

__all__ = ('Message',)


class Message(virtual.Message):
    """A message that remembers whether its body could be read.

    Consumers, Celery's among them, acknowledge what they cannot decode, or it would come again
    and again.  Here that makes it a dead letter: somebody may want to know what it was.
    """

    def __init__(self, payload: Mapping[str, Any], channel: Any = None, **kwargs: Any) -> None:
        super().__init__(payload, channel=channel, **kwargs)
        #: kombu has tried to unpack a compressed body already.
        self._undecodable = bool(self.errors)
        self.begun = False
        #: Where it waited, and since when; None for a fanout message.
        self.origin: Origin | None = payload.get('origin')
        #: Has its verdict already; what is said next changes nothing.
        self._settled = False

    def _decode(self) -> Any:
        try:
            body = super()._decode()
        except Exception:
            self._undecodable = True
            raise
        self._undecodable = False
        return body

    def begin(self) -> None:
        """Says that the work has started, so that a shutdown does not give it back as new."""
        self.begun = True
        if self.channel is not None:
            self.channel.qos.begin(self.delivery_tag)

    def waited(self, until: float | None = None) -> float | None:
        """For how many seconds it had waited to be claimed, by the server's clock, whatever becomes
        of this machine's.

        Args:
            until: a moment of :func:`time.monotonic`; now unless given.
        """
        if self.origin is None or self.origin.ready_at is None or self.channel is None:
            return None
        now: float | None = self.channel.endpoint.server_time(until)
        return None if now is None else max(0.0, now - self.origin.ready_at)

    def ack(self, multiple: bool = False) -> None:
        """Ends the delivery: done, unless nobody could read it."""
        if self._settled:
            return
        self._mark_failed()
        super().ack(multiple)

    def reject(self, requeue: bool = False) -> None:
        """Ends the delivery as failed, or gives it back."""
        if self._settled:
            return
        if not requeue:
            self._mark_failed()
        super().reject(requeue)

    def settle(
        self, verdict: Verdict, detail: Mapping[str, str] | str = '', wait: float = 0.0
    ) -> None:
        """Ends the delivery with any verdict.  The first one counts: an ack or reject that
        follows changes nothing, and is no error.

        Args:
            verdict: what becomes of it.
            detail: for a failure, the reason, or a mapping of ``reason``, ``type``, ``message``,
                ``traceback`` and ``group``.
            wait: for how long, in seconds, to wait until the server has confirmed it.

        Example:
            >>> message.settle(Verdict.FAIL, {'reason': 'failed', 'type': 'ValueError'})
        """
        if self._settled or self.channel is None:
            return
        self._settled = True
        self._state = 'ACK'
        self.channel.qos.settle(self.delivery_tag, verdict, detail_of(detail))
        if wait:
            self.channel.keeper.settle_now(self.delivery_tag, wait)

    def once(self) -> None:
        """Says that this must not be delivered again: if its lease is lost, it has failed, reason
        ``lost``.  Frees the place that it takes up; it is still to be settled."""
        if not self._settled and self.channel is not None:
            self.channel.qos.once(self.delivery_tag)

    def unlock(self) -> bool:
        """Gives up the unique key at the start of the work, as ``x-unique-until: start`` asks for.
        Waits for the server.

        Returns:
            Whether the message still had it.
        """
        job = self.channel and self.channel.keeper.job_of(self.delivery_tag)
        return bool(job) and self.channel.store.jobs.unlock(job, self.delivery_tag)

    @property
    def lost(self) -> bool:
        """Whether the store has said that it is not ours any more: another consumer has it, or
        it was canceled."""
        return self.channel is not None and self.channel.keeper.lost(self.delivery_tag)

    def _mark_failed(self) -> None:
        # The first verdict counts: what the base class says next frees the place only.
        if self._undecodable and self.channel is not None and not self.acknowledged:
            self.channel.qos.fail(self.delivery_tag, 'undecodable')
