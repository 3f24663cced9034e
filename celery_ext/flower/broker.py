"""Flower's own page of the broker, and its API of queue lengths, for brokers that it does not know.

They look as ever, and list every queue, consumed or not.
"""

from __future__ import annotations

import logging
from typing import Any

from flower.api import BaseApiHandler
from flower.views import BaseHandler
from tornado.web import authenticated

from celery_ext.flower.queues import QueueRow, rows
from celery_ext.flower.watch import Unavailable, Watch

__all__ = ('BrokerPage', 'QueueLengths')

logger = logging.getLogger('celery_ext')


class _Lengths:
    """What both share."""

    application: Any

    async def lengths(self) -> list[dict[str, Any]]:
        watch: Watch = self.application.celery_ext
        found, _ = await watch.run(lambda extension: rows(watch, extension))
        return [_length(row) for row in found]


def _length(row: QueueRow) -> dict[str, Any]:
    """As Flower knows it from RabbitMQ; those that have failed are no messages any more."""
    held = row.counts.leased
    return {
        'name': row.name,
        'messages': row.queued + held,
        'messages_ready': row.counts.ready,
        'messages_unacknowledged': held,
        'consumers': row.workers,
    }


class BrokerPage(_Lengths, BaseHandler):
    """``/broker``"""

    @authenticated
    async def get(self) -> None:
        try:
            queues = await self.lengths()
        except Unavailable as error:  # as Flower has it: the page lives, its table is empty
            queues = []
            logger.error("Unable to get queues: '%s'", error)
        with self.application.capp.connection_for_write() as connection:
            url = connection.as_uri()
        self.render('broker.html', broker_url=url, queues=queues)


class QueueLengths(_Lengths, BaseApiHandler):
    """``/api/queues/length``"""

    @authenticated
    async def get(self) -> None:
        try:
            self.write({'active_queues': await self.lengths()})
        except Unavailable as error:
            self.set_status(503)
            self.write(f'The server does not answer: {error}')
