"""Parts of long lists, and the way through them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ('SIZE', 'Pages')

#: Rows of a page.
SIZE = 50


@dataclass(frozen=True, slots=True)
class Pages:
    """Where a page stands in its list.

    Args:
        offset: how many stand before it.
        shown: how many it shows.
        total: how many there are; None if nobody has counted them.
        size: how many a page shows at most.
    """

    offset: int
    shown: int
    total: int | None = None
    size: int = SIZE

    @property
    def first(self) -> int:
        return self.offset + 1

    @property
    def last(self) -> int:
        return self.offset + self.shown

    @property
    def previous(self) -> int | None:
        return max(0, self.offset - self.size) if self.offset else None

    @property
    def next(self) -> int | None:
        following = self.offset + self.size
        if self.total is None:
            return following if self.shown >= self.size else None
        return following if following < self.total else None

    @property
    def end(self) -> int | None:
        """Where the last page begins."""
        if self.total is None or self.next is None:
            return None
        return (self.total - 1) // self.size * self.size
