"""Queues that take keys in turn: one customer with many jobs does not make the others wait.

    ext.queues['reports'].fair_by = '{customer_id}'

Jobs with the same key keep their order; whose turn it is goes round among the keys.  The key of
a job is one header; a task, or a call, can say it as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from celery_ext import features
from celery_ext.broker import is_ours
from celery_ext.decorators import declare
from celery_ext.errors import InvalidTemplate
from celery_ext.templates import check, fill
from kombu_reliable import TOKEN_HEADER

__all__ = ('Turns', 'fair_by')

T = TypeVar('T')

HEADER = 'x-fair-key'

#: The key of jobs in a fair queue that lack the argument: together they are one more customer.
NOBODY = '-'


def fair_by(key: str) -> Callable[[T], T]:
    """Has the jobs of a task take turns with others of their queue, by a key.

    Args:
        key: a text in which ``{argument}`` stands for an argument of the call.

    Example:
        >>> @app.task
        ... @fair_by('{customer_id}')
        ... def report(customer_id, month): ...
    """
    template = check(key)
    return lambda target: declare(target, 'fair_by', template)


def _headers(call: features.Call) -> dict[str, Any]:
    template = call.options.get('fair_by') or call.declared[0]
    return {HEADER: call.fill(template)}


features.feature('fair_by', headers=(HEADER,), build=_headers, options={'fair_by': check})


class Turns:
    """The queues of an app that take keys in turn, and by which key."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._templates: dict[str, str] = {}

    def get(self, queue: str) -> str | None:
        return self._templates.get(queue)

    def set(self, queue: str, template: str | None) -> None:
        """
        Raises:
            InvalidTemplate: it makes no sense.
        """
        if template is None:
            self._templates.pop(queue, None)
        else:
            self._templates[queue] = check(template)

    def apply(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
        """Gives a call the key that its queue asks for, unless it has one."""
        headers = options.get('headers') or {}
        if not self._templates or HEADER in headers or TOKEN_HEADER in headers:
            return  # a retry copies the headers of its run, and keeps its key
        queue = self._queue(name, args, kwargs, options)
        template = self._templates.get(queue)
        if template is None or not is_ours(self._app):
            return
        task = features.task_of(self._app, name, options)
        try:
            key = fill(template, task or name, args, kwargs)
        except InvalidTemplate:
            # Other tasks share the queue, some of them Celery's own.
            key = NOBODY
        options['headers'] = {**headers, HEADER: key}

    def _queue(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> str:
        """Where a call goes; empty if that is not one queue."""
        if options.get('exchange'):
            return ''
        router = options.get('router') or self._app.amqp.router
        asked = {'queue': options['queue']} if options.get('queue') else {}
        route = router.route(asked, name, args, kwargs, options.get('task_type'))
        if route.get('exchange'):
            return ''
        # Celery asks once more; somebody's own router may answer something else then.
        options['queue'] = route['queue']
        return str(route['queue'].name)
