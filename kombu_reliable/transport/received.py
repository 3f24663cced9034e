"""The message that a consumer gets."""

from __future__ import annotations

from typing import Any

from kombu.transport import virtual

__all__ = ('Message',)


class Message(virtual.Message):
    """A message that remembers whether its body could be read.

    Consumers, Celery's among them, acknowledge what they cannot decode, or it would come again
    and again.  Here that makes it a dead letter: somebody may want to know what it was.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: kombu has tried to unpack a compressed body already.
        self._undecodable = bool(self.errors)
        self.begun = False

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

    def ack(self, multiple: bool = False) -> None:
        """Ends the delivery: done, unless nobody could read it."""
        self._mark_failed()
        super().ack(multiple)

    def reject(self, requeue: bool = False) -> None:
        """Ends the delivery as failed, or gives it back."""
        if not requeue:
            self._mark_failed()
        super().reject(requeue)

    def _mark_failed(self) -> None:
        # The first verdict counts: what the base class says next frees the place only.
        if self._undecodable and self.channel is not None and not self.acknowledged:
            self.channel.qos.fail(self.delivery_tag, 'undecodable')
