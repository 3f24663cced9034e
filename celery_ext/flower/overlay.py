"""Templates: ours, and Flower's own with our tabs in its navigation."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from tornado.template import Loader, Template

__all__ = ('TABS', 'Overlay')

logger = logging.getLogger('celery_ext')

FOLDER = Path(__file__).parent / 'templates'

#: What our templates' names begin with; Flower's never do.
OURS = 'reliable-'

#: Name of a route -> what its tab says.
TABS = {
    'reliable-queues': 'Queues',
    'reliable-jobs': 'Jobs',
    'reliable-throttles': 'Throttles',
    'reliable-failed': 'Failed',
    'reliable-schedules': 'Schedules',
}

#: Flower's last tab of its own; ours stand behind it.
_LAST_TAB = re.compile(r'reverse_url\(.broker.\).*?</li>', re.DOTALL)


class Overlay(Loader):
    """Looks for templates in two flat folders.

    Args:
        flowers: the folder of Flower's templates.
    """

    def __init__(self, flowers: str, **settings: Any) -> None:
        super().__init__(str(FOLDER), **settings)
        self._flowers = Path(flowers)

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> Template:
        folder = FOLDER if name.startswith(OURS) else self._flowers
        text = (folder / name).read_text(encoding='utf-8')
        if name == 'navbar.html':
            text = with_tabs(text)
        return Template(text, name=name, loader=self)


def with_tabs(navigation: str) -> str:
    """Flower's navigation with our tabs behind its own."""
    place = _LAST_TAB.search(navigation)
    if place is None:
        logger.warning('the navigation of this Flower has no place for tabs; see /reliable/queues')
        return navigation
    # Version 2.0 writes out the colour of each link.
    style = ' text-dark' if 'nav-link text-dark' in navigation else ''
    tabs = f'{{% set reliable_style = "{style}" %}}{{% include "reliable-tabs.html" %}}'
    return navigation[: place.end()] + tabs + navigation[place.end() :]
