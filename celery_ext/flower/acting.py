"""Where the buttons go: whoever may act acts, and hears in one sentence what came of it."""

from __future__ import annotations

import logging
from base64 import b64decode
from typing import Any

from flower.api import BaseApiHandler
from tornado.web import HTTPError, RequestHandler, authenticated

from celery_ext.cli.output import visible
from celery_ext.flower.access import refusal
from celery_ext.flower.actions import ACTIONS, LONG, Answer, result_of
from celery_ext.flower.page import GONE, OurHandler, sentence, told_by
from celery_ext.flower.query import Query
from celery_ext.flower.watch import Unavailable
from kombu_reliable import DuplicateJob, HasDependents, ReliableError, WrongState

__all__ = ('ActionHandler',)

logger = logging.getLogger('celery_ext')

#: It makes no sense as things are now; often because somebody else was faster.
CONFLICTS = (WrongState, HasDependents, DuplicateJob)


class ActionHandler(OurHandler, BaseApiHandler):
    """Answers with JSON where the page asks for it, and else, as without JavaScript, with a page.

    Flower's own checks come first: whether it has any authentication, whose request this is, and
    from which site it comes.
    """

    @authenticated
    async def post(self, name: str) -> None:
        self._check()
        try:
            answer = await self._act(name, Query(self.request.body_arguments))
        except GONE as error:
            self._answer(404, Answer(sentence(error), 'warning'))
        except CONFLICTS as error:
            self._answer(409, Answer(sentence(error), 'warning'))
        except ReliableError as error:
            self._answer(400, Answer(sentence(error), 'danger'))
        except Unavailable as error:
            self._answer(503, Answer(
                f'No answer from the server: {error}. It may have been done all the same.', 'danger'
            ))  # fmt: skip
        else:
            self._answer(200, answer)

    def _check(self) -> None:
        reason = refusal(self)
        if reason:
            raise HTTPError(403, reason)
        # Flower asks for the token only where it keeps sessions, and older versions never do.
        RequestHandler.check_xsrf_cookie(self)

    async def _act(self, name: str, query: Query) -> Answer:
        if name not in ACTIONS and name not in LONG:
            raise HTTPError(404, 'there is no such action')
        logger.info('Flower: %s %s by %s', name, query.shown(), self._who())
        try:
            if name in LONG:
                long = LONG[name](query)
                number = await self.watch.run_long(long.key, long.text, long.act)
                return result_of(long, number)
            return await self.watch.run(ACTIONS[name], query)
        finally:
            self.watch.forget()

    def _who(self) -> str:
        """For the log: Flower knows no names where it asks for a password."""
        if not self.application.options.basic_auth:
            return visible(self.current_user)
        try:
            credentials = b64decode(self.request.headers['Authorization'].split()[1])
            return visible(credentials.decode().partition(':')[0])
        except (KeyError, IndexError, ValueError):
            return 'somebody'

    def _answer(self, status: int, answer: Answer) -> None:
        if self._wants_json():
            self.set_status(status)
            self.write({'message': answer.text, 'level': answer.level})
        else:
            self.message(status, answer.text)

    def _wants_json(self) -> bool:
        return 'application/json' in self.request.headers.get('Accept', '')

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 401 or not self._wants_json():
            OurHandler.write_error(self, status_code, **kwargs)
            return
        told = told_by((kwargs.get('exc_info') or (None, None))[1])
        self.write({'message': told or 'Something went wrong.', 'level': 'danger'})
        self.finish()
