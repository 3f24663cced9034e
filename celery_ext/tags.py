"""Tags: words by which jobs are found together, and acted on together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from celery_ext.bulk import Selection
from celery_ext.decorators import declare
from celery_ext.features import Call, feature
from celery_ext.templates import check
from kombu_reliable import TagCount, check_tags

if TYPE_CHECKING:
    from celery_ext.installation import Extension

__all__ = ('Tags', 'tagged')

T = TypeVar('T')

#: The header, as the transport knows it.
TAGS = 'x-tags'


def tagged(*tags: str) -> Callable[[T], T]:
    """Gives every job of a task tags; the options of a call add to them.

    Completed jobs that have tags are kept for an hour, unless the option ``completed_retention``
    or the call says otherwise.

    Args:
        tags: texts; arguments of the task are filled in.

    Example:
        >>> @app.task
        ... @tagged('billing', 'customer:{customer_id}')
        ... def charge(customer_id, amount): ...
        >>> charge.apply_async((17, 5), tags=['urgent'])
        >>> [job.task for job in ext.jobs.tagged('billing', 'customer:17')]
        ['shop.charge']
    """
    checked = tuple(check(tag) for tag in tags)

    def decorate(target: T) -> T:
        return declare(target, 'tags', checked)

    return decorate


def _headers(call: Call) -> Mapping[str, Any]:
    filled = [call.fill(tag) for tags in call.declared for tag in tags]
    return {TAGS: list(check_tags([*filled, *call.options.get('tags', ())]))}


def _checked(tags: Any) -> list[str]:
    return list(check_tags(tags))


feature('tags', headers=(TAGS,), build=_headers, options={'tags': _checked})


class Tags:
    """All tags, by name.

    Example:
        >>> ext.tags.top(2)
        [TagCount(tag='billing', count=3120), TagCount(tag='customer:17', count=4)]
        >>> ext.tags['customer:17'].cancel()
        Result(seen=4, done=3, skipped={'failed': 1})
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension

    def top(self, limit: int = 10, offset: int = 0) -> list[TagCount]:
        """The tags that most jobs have, with their number: waiting, running, failed and kept."""
        found: list[TagCount] = self._extension.store.tags.top(offset, limit)
        return found

    def __getitem__(self, tag: str) -> Selection:
        """The jobs that have a tag."""
        return self.select(tag)

    def select(self, *tags: str, any: bool = False) -> Selection:
        """The jobs that have all of some tags, or any of them, to act on them together."""
        return Selection(self._extension, tags, any)
