"""How many messages a channel may hold, and which ones it does.

It keeps tags, never messages: a lease lives as long as somebody holds its message, and a
reference from here would keep every message of a channel alive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu_reliable import hooks
from kombu_reliable.store.operations import CLAIM_LIMIT
from kombu_reliable.types import Verdict

if TYPE_CHECKING:
    from kombu_reliable.transport.channel import Channel

__all__ = ('LeaseQoS',)


class LeaseQoS:
    """Prefetch of one channel.

    Args:
        channel: the channel.
        prefetch_count: messages it may hold without having settled them; 0 for no limit.
    """

    def __init__(self, channel: Channel, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        #: In the order of their delivery.
        self._tags: dict[str, None] = {}
        self._waiting: set[str] = set()
        self._begun: set[str] = set()

    def can_consume(self) -> bool:
        """Whether the channel may hold one more message.

        Celery's ``worker_disable_prefetch`` replaces this method on the instance.
        """
        if not self.prefetch_count or len(self._tags) < self.prefetch_count:
            return True
        self._forget_dropped()
        return len(self._tags) < self.prefetch_count

    def _forget_dropped(self) -> None:
        """A message that was dropped unsettled frees its place when its lease is given up."""
        for tag in self._tags.copy():
            if not self.channel.keeper.holds(tag):
                self._tags.pop(tag, None)
                self._begun.discard(tag)

    def can_consume_max_estimate(self) -> int | None:
        if self.prefetch_count:
            return max(self.prefetch_count - len(self._tags), 0)
        return None

    def credit(self) -> int:
        """How many messages may be claimed now."""
        if not self.channel.flowing or not self.can_consume():
            return 0
        if 'can_consume' in self.__dict__:
            # Somebody else decides, about one message at a time, once he has seen the last.
            return 0 if self._waiting else 1
        if not self.prefetch_count:
            return CLAIM_LIMIT
        return min(self.prefetch_count - len(self._tags), CLAIM_LIMIT)

    def worth_claiming(self) -> bool:
        """Claiming for each freed place would cost a round trip a task; half of them is as good
        as long as nothing stands idle for it."""
        credit = self.credit()
        if not credit:
            return False
        if not self.prefetch_count or 2 * credit >= self.prefetch_count:
            return True
        idle = hooks.idle_slots()
        return idle is None or idle > 0

    @property
    def tags(self) -> frozenset[str]:
        """The tags of what was delivered and not settled."""
        return frozenset(self._tags.copy())

    def delivered_before(self, delivery_tag: str) -> list[str]:
        """The tags of what was delivered before and is not settled; none if ``delivery_tag``
        is settled itself."""
        tags = list(self._tags.copy())
        return tags[: tags.index(delivery_tag)] if delivery_tag in tags else []

    def reserve(self, delivery_tag: str) -> None:
        """Counts a message that was claimed and is not handed out yet."""
        self._tags[delivery_tag] = None
        self._waiting.add(delivery_tag)

    def handed_out(self, delivery_tag: str) -> None:
        self._waiting.discard(delivery_tag)

    def begin(self, delivery_tag: str) -> None:
        """Notes that the work has started: however it ends, this delivery counts."""
        if delivery_tag in self._tags:
            self._begun.add(delivery_tag)

    @property
    def unbegun(self) -> frozenset[str]:
        """The tags of what was delivered, and not begun as far as is known here."""
        return self.tags - self._begun

    def ack(self, delivery_tag: str) -> None:
        self.settle(delivery_tag, Verdict.ACK)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue:
            self.settle(delivery_tag, Verdict.REQUEUE)
        else:
            self.settle(delivery_tag, Verdict.FAIL, 'rejected')

    def release(self, delivery_tag: str) -> None:
        """Gives a message back that was not started; that counts as no delivery."""
        self.settle(delivery_tag, Verdict.RELEASE)

    def fail(self, delivery_tag: str, reason: str) -> None:
        self.settle(delivery_tag, Verdict.FAIL, reason)

    def once(self, delivery_tag: str) -> None:
        """Has a message not delivered again.  Its place is free, as after an ack."""
        self._free(delivery_tag)
        self.channel.keeper.once(delivery_tag)
        self.channel.nudge()

    def settle(self, delivery_tag: str, verdict: Verdict, detail: str = '') -> None:
        self._free(delivery_tag)
        self.channel.keeper.settle(delivery_tag, verdict, detail)
        self.channel.nudge()

    def _free(self, delivery_tag: str) -> None:
        self._tags.pop(delivery_tag, None)
        self._waiting.discard(delivery_tag)
        self._begun.discard(delivery_tag)

    def restore_unacked(self) -> list[Any]:
        """Gives back everything that was not settled (``basic.recover``)."""
        for tag in self.tags:
            self.settle(tag, Verdict.REQUEUE)
        return []

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """kombu calls this at shutdown; :meth:`.Channel.close` has done it."""

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to restore: leases end by themselves."""
