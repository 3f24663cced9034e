"""What templates build pages from: links, buttons, and the way actions are sent.

All methods return markup unless they say otherwise; whatever goes in is escaped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tornado.escape import xhtml_escape

from celery_ext.flower import text
from celery_ext.flower.access import refusal

__all__ = ('STATIC', 'Ui')

STATIC = Path(__file__).parent / 'static'


@cache
def _digest(name: str) -> str:
    """Changes with the file: browsers keep for years what they have got under one."""
    return hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:16]


class Ui:
    """One page's.

    Args:
        handler: that answers the request.
    """

    count = staticmethod(text.count)
    plural = staticmethod(text.plural)
    duration = staticmethod(text.duration)
    name = staticmethod(text.name)
    state = staticmethod(text.state)
    short = staticmethod(text.short)

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self._zone = handler.application.capp.timezone
        #: Why nothing can be changed; ``''`` if it can.
        self.refused = refusal(handler)
        self.live = bool(handler.application.options.auto_refresh)

    # -- text --------------------------------------------------------------------

    def ago(self, then: datetime | None) -> str:
        return text.ago(then, self._zone)

    def when(self, then: datetime | None) -> str:
        """A time, and how long ago it was."""
        if then is None:
            return text.ago(None)
        exact = text.when(then, self._zone)
        return f'{exact} <span class="reliable-muted">({self.ago(then)})</span>'

    # -- links -------------------------------------------------------------------

    def url(self, route: str, **query: Any) -> str:
        """An address, as plain text.  Names stand in its query: in a path, slashes and dots
        would be lost on the way through proxies."""
        given = {name: value for name, value in query.items() if value not in (None, '')}
        address = self._handler.reverse_url(f'reliable-{route}')
        return f'{address}?{urlencode(given)}' if given else str(address)

    def same(self, **changes: Any) -> str:
        """The address of this page with other arguments, as plain text."""
        query = {**self._handler.query.raw(), **changes}
        given = {name: value for name, value in query.items() if value not in (None, '')}
        path = self._handler.request.path
        return f'{path}?{urlencode(given)}' if given else str(path)

    def static(self, name: str) -> str:
        """The address of a file of ours, as plain text."""
        address = self._handler.reverse_url('reliable-static', name)
        return f'{address}?v={_digest(name)}'

    def link(self, route: str, shown: str, width: int = text.SHORT, **query: Any) -> str:
        """A link that shows a name."""
        address = xhtml_escape(self.url(route, **query))
        return f'<a href="{address}">{text.name(shown, width)}</a>'

    def job(self, id: str, width: int = 36) -> str:
        return self.link('job', id, width, id=id)

    def queue(self, name: str, width: int = text.SHORT) -> str:
        return self.link('queue', name, width, name=name) if name else text.name('')

    def tag(self, name: str) -> str:
        address = xhtml_escape(self.url('jobs', tag=name))
        return f'<a class="reliable-tag" href="{address}">{text.name(name, 40)}</a>'

    # -- actions -----------------------------------------------------------------

    def form(self, action: str, confirm: str = '', css: str = '') -> str:
        """The beginning of a form that acts; ``{% raw ui.form('throttle-set') %} ... </form>``.

        Args:
            action: which one, see :mod:`celery_ext.flower.actions`.
            confirm: the question to which yes has to be said before.
            css: further classes.
        """
        address = xhtml_escape(self._handler.reverse_url('reliable-act', action))
        question = f' data-confirm="{xhtml_escape(confirm)}"' if confirm else ''
        return (
            f'<form class="reliable-act {css}" method="post" action="{address}"{question}>'
            f'<input type="hidden" name="_xsrf" value="{self._token}">'
        )

    @property
    def _token(self) -> str:
        token = self._handler.xsrf_token
        return xhtml_escape(token.decode() if isinstance(token, bytes) else token)

    def hidden(self, fields: Mapping[str, Any]) -> str:
        return ''.join(
            f'<input type="hidden" name="{xhtml_escape(name)}" value="{xhtml_escape(str(value))}">'
            for name, value in fields.items()
        )

    def submit(self, label: str, style: str = 'outline-secondary', title: str = '') -> str:
        """The button of a form; off, with the reason, where nothing can be changed."""
        shown = self.refused or title
        hint = f' title="{xhtml_escape(shown)}"' if shown else ''
        off = ' disabled' if self.refused else ''
        # A button that is off shows no title in every browser; what it stands in does.
        return (
            f'<span{hint}><button type="submit" class="btn btn-sm btn-{style}"{off}>'
            f'{xhtml_escape(label)}</button></span>'
        )

    def button(
        self, action: str, label: str, style: str = 'outline-secondary', confirm: str = '',
        title: str = '', **fields: Any,
    ) -> str:  # fmt: skip
        """A button that acts, with all that it has to say."""
        return (
            self.form(action, confirm) + self.hidden(fields) + self.submit(label, style, title)
            + '</form>'
        )  # fmt: skip
