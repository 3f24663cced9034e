"""What all our pages share: who may see them, where the server is asked, what errors look like."""

from __future__ import annotations

import logging
from functools import cached_property
from typing import Any

import tornado.web
from flower.views import BaseHandler
from tornado.web import authenticated

from celery_ext.errors import UnknownSchedule
from celery_ext.flower.query import Query
from celery_ext.flower.ui import Ui
from celery_ext.flower.watch import Unavailable, Watch
from kombu_reliable import ReliableError, UnknownJob, UnknownQueue

__all__ = ('GONE', 'OurHandler', 'Page', 'sentence', 'told_by')

logger = logging.getLogger('celery_ext')


#: What a page or an action is about is not there any more, or never was.
GONE = (UnknownJob, UnknownQueue, UnknownSchedule)


class OurHandler(BaseHandler):
    """A handler with the broker at hand, and errors inside Flower's layout."""

    tab = ''

    @property
    def watch(self) -> Watch:
        watch: Watch = self.application.celery_ext
        return watch

    @cached_property
    def query(self) -> Query:
        return Query(self.request.arguments)

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header('Cache-Control', 'no-store')
        self.set_header('X-Content-Type-Options', 'nosniff')

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 401:
            super().write_error(status_code, **kwargs)
            return
        error = (kwargs.get('exc_info') or (None, None))[1]
        told = told_by(error)
        if not hasattr(self, '_current_user'):
            self.current_user = None  # or who it is would be found out once more
        self.message(status_code, told or 'Something went wrong; the log of Flower tells more.')

    def message(self, status: int, text: str) -> None:
        """Ends the request with a page that says something."""
        self.set_status(status)
        self.render('reliable-message.html', view=None, tab=self.tab, text=text, ui=Ui(self))


class Page(OurHandler):
    """A page that looks at something.

    Subclasses set ``template``, ``tab`` and ``look``.
    """

    #: In the folder ``templates``.
    template = ''

    @authenticated
    async def get(self) -> None:
        try:
            view = await self.watch.run(self.look, self.query)
            await self.complete(view)
        except Unavailable as error:
            self.message(503, f'The server does not answer: {error}')
        except GONE as error:
            self.message(404, sentence(error))
        except ReliableError as error:
            self.message(400, sentence(error))
        else:
            self.render(self.template, view=view, tab=self.tab, ui=Ui(self))

    def look(self, extension: Any, query: Query) -> Any:
        """Reads what the template shows; runs in another thread.

        Raises:
            UnknownJob: what the page is about is not there; or another one of ``GONE``.
        """
        raise NotImplementedError

    async def complete(self, view: Any) -> None:
        """Adds what a page can do without."""


def told_by(error: Any) -> str:
    """What an error of Tornado's was given to say."""
    if not isinstance(error, tornado.web.HTTPError) or not error.log_message:
        return ''
    return str(error.log_message % error.args)


def sentence(error: BaseException) -> str:
    """What an error says, as the beginning of a message."""
    text = str(error.args[0] if error.args else error)
    return text[:1].upper() + text[1:]
