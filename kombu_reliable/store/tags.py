"""Finds jobs by their tags, and gives them tags; knows which jobs are tracked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu_reliable.errors import InvalidArgument
from kombu_reliable.scripts import Call, translating
from kombu_reliable.store import checks
from kombu_reliable.store.checks import tags as check_tags
from kombu_reliable.store.info import JobInfo
from kombu_reliable.store.job_operations import JOBS_LIMIT

if TYPE_CHECKING:
    from kombu_reliable.store.store import Store

__all__ = ('Found', 'TagCount', 'Tags', 'check_tags')

#: Members of tags that one call looks at; it takes about 1 ms.
LOOKED_AT = 1_000

#: ... and those that are looked at for a page.
PAGE_LOOKS = 6_000


class TagCount(NamedTuple):
    """A tag, and how many jobs have it."""

    tag: str
    count: int  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Found:
    """A part of the jobs that have some tags.

    Args:
        keys: of jobs.
        next: where to go on; ``''`` if these were the last ones.  There may be more although
            there are no keys: for this part enough was looked at.
    """

    keys: tuple[str, ...]
    next: str


class Tags:
    """Finds jobs by their tags.  A job can be found until it is gone for good: as a dead letter,
    and while it is kept after its completion, too.

    Args:
        store: where they live.

    Example:
        >>> store.tags.find(['billing', 'customer:17']).keys
        ('VbKUOHEhRBqZgv2BNhYEzg',)
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._keys = store.keys
        self._client: Any = store.client

    # -- finding -----------------------------------------------------------------

    def find(
        self,
        tags: Sequence[str],
        *,
        any: bool = False,
        offset: int = 0,
        limit: int = 100,
        after: str = '',
        newest_first: bool = True,
    ) -> Found:
        """A page of the jobs that have tags, in order of their publish.

        With one tag any page costs the same.  With several, the jobs before it are gone through,
        but no more than 6,000 at once: then there are fewer than asked for, and ``next`` says
        where to go on.

        Args:
            tags: one or more.
            any: jobs that have any of them; else those that have all.
            offset: how many to pass over.
            limit: how many to return at most.
            after: what :attr:`Found.next` was.
            newest_first: the last that was published comes first.
        """
        checks.page(offset, limit)
        wanted = _wanted(tags)
        if len(wanted) == 1 and offset and not after:
            after = self._order_at(wanted[0], offset - 1, newest_first)
            if not after:
                return Found((), '')
            offset = 0
        keys: list[str] = []
        looks = PAGE_LOOKS
        while limit > len(keys) and looks > 0:
            call = self._part(
                wanted, any, newest_first, after, offset, min(limit - len(keys), LOOKED_AT)
            )
            after, offset, found = self._store.run(call)
            keys += found
            looks -= LOOKED_AT
            if not after:
                break
        return Found(tuple(keys), after)

    def walk(
        self, tags: Sequence[str], *, any: bool = False, step: int = JOBS_LIMIT
    ) -> Iterator[list[str]]:
        """The keys of the jobs that have tags now, in steps, from the oldest.

        What is published meanwhile is not among them; what is tagged meanwhile may be.
        """
        wanted = _wanted(tags)
        end = int(self._client.hget(self._keys.meta, 'seq') or 0)
        after = ''
        while True:
            after, _, found = self._store.run(self._part(wanted, any, False, after, 0, step))
            if found:
                yield found
            if not after or int(after) >= end:
                return

    def count(self, tag: str) -> int:
        """How many jobs have a tag."""
        with translating():
            return int(self._client.zcard(self._keys.tag(tag)))

    def top(self, offset: int = 0, limit: int = 100) -> list[TagCount]:
        """A page of the tags, those of most jobs first."""
        checks.page(offset, limit)
        if not limit:
            return []
        with translating():
            found = self._client.zrange(
                self._keys.tags, offset, offset + limit - 1, desc=True, withscores=True
            )
        return [TagCount(tag.decode(errors='replace'), int(count)) for tag, count in found]

    def tracked(self, offset: int = 0, limit: int = 100) -> list[str]:
        """A page of the keys of the tracked jobs, the newest first."""
        checks.page(offset, limit)
        if not limit:
            return []
        with translating():
            found = self._client.zrange(self._keys.tracked, offset, offset + limit - 1, desc=True)
        return [key.decode(errors='replace') for key in found]

    def look(self, keys: Sequence[str]) -> list[JobInfo]:
        """The jobs of these keys, without those that have gone meanwhile."""
        return self._store.jobs.look(keys)

    # -- changing ----------------------------------------------------------------

    def add(self, keys: Sequence[str], tags: Any) -> list[str]:
        """Gives tags to jobs, in whatever state they are.

        Returns:
            For each ``done``, ``unknown``, or ``too-many``: then it keeps those that it had.
        """
        wanted = json.dumps(check_tags(tags))
        return self._mark('tag', keys, 1, wanted, checks.MOST_TAGS, self._keep())

    def remove(self, keys: Sequence[str], tags: Any) -> list[str]:
        """Takes tags from jobs; see :meth:`add`."""
        wanted = json.dumps(check_tags(tags))
        return self._mark('tag', keys, 0, wanted, checks.MOST_TAGS, '')

    def track(self, keys: Sequence[str], task: str) -> list[str]:
        """Has jobs of a task tell what befalls them, see :class:`.Events`.

        Returns:
            For each ``done`` or ``unknown``.
        """
        return self._mark('track', keys, 1, task, self._keep())

    def untrack(self, keys: Sequence[str]) -> list[str]:
        """Has jobs tell nothing any more; see :meth:`track`."""
        return self._mark('track', keys, 0, '', '')

    # -- how ---------------------------------------------------------------------

    def _keep(self) -> str:
        options = self._store.operations.options
        retain = options.kept_for(True)
        return f'{retain};{options.completed_limit}' if retain else ''

    def _mark(self, name: str, keys: Sequence[str], *args: Any) -> list[str]:
        statuses: list[str] = []
        for at in range(0, len(keys), JOBS_LIMIT):
            step = keys[at : at + JOBS_LIMIT]
            call: Call[list[str]] = self._store.operations.call(name, _words, *args, *step)
            found: list[str] = self._store.repeat(call)
            statuses += found
        return statuses

    def _part(
        self, tags: Sequence[str], any: bool, newest_first: bool, after: str, skip: int, limit: int
    ) -> Call[tuple[str, int, list[str]]]:
        return self._store.operations.call(
            'tagged', _part_of, 'any' if any else 'all', int(newest_first), after, skip, limit,
            LOOKED_AT, *tags,
        )  # fmt: skip

    def _order_at(self, tag: str, index: int, newest_first: bool) -> str:
        with translating():
            found = self._client.zrange(
                self._keys.tag(tag), index, index, desc=newest_first, withscores=True
            )
        return f'{found[0][1]:.0f}' if found else ''


def _wanted(tags: Sequence[str]) -> tuple[str, ...]:
    wanted = check_tags(tags)
    if not wanted:
        raise InvalidArgument('name at least one tag')
    return wanted


def _words(reply: Sequence[bytes]) -> list[str]:
    return [word.decode() for word in reply]


def _part_of(reply: Sequence[Any]) -> tuple[str, int, list[str]]:
    after, skip, *keys = reply
    return after.decode(), int(skip), [key.decode(errors='replace') for key in keys]
