"""The options of one call: ``apply_async(depends_on=..., dependency_policy=...)``.

They become headers of the message, which any producer could set by hand; those of a feature
(tags, throttles ...) are its own business, see :mod:`celery_ext.features`.  All of Celery's ways to
publish a task end in ``app.send_task``, so that is where it is done: ``delay``, ``apply_async``,
signatures, all canvas, callbacks, and custom task classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from typing import Any

from celery.app.task import Task
from celery.canvas import Signature, _chain, _chord, group

from celery_ext import features
from celery_ext.broker import require, warn_inert
from celery_ext.dependencies import normalize, normalize_policy
from celery_ext.features import feature, inert_options, normalize_options

__all__ = ('DEPENDS_ON', 'OPTIONS', 'POLICY', 'connect', 'feature', 'watch_app')

#: The headers, as the transport knows them.
DEPENDS_ON = 'x-depends-on'
POLICY = 'x-dependency-policy'

#: The names of the options that are no feature's.
OPTIONS = ('depends_on', 'dependency_policy')

#: Where a task's options hold further signatures.
_NESTED = ('chain', 'chord', 'link', 'link_error')


def watch_app(app: Any) -> None:
    """Makes what this app publishes carry our headers; idempotent."""
    send_task = app.send_task
    if getattr(send_task, 'translates_options', False):
        return

    @wraps(send_task)
    def send(name: str, args: Any = None, kwargs: Any = None, *rest: Any, **options: Any) -> Any:
        if 'depends_on' in options or 'dependency_policy' in options:
            _translate_dependencies(app, name, options)
        app.celery_ext.turns.apply(name, args, kwargs, options)
        features.translate(app, name, args, kwargs, options)
        for field in _NESTED:
            if options.get(field):
                _prepare_nested(options[field], _done(options) if field == 'chord' else ())
        if name.startswith('celery.') and args:
            # Celery's own tasks carry signatures as arguments.
            _prepare_nested(args)
        return send_task(name, args, kwargs, *rest, **options)

    send.translates_options = True  # type: ignore[attr-defined]
    app.send_task = send


def _translate_dependencies(app: Any, name: str, options: dict[str, Any]) -> None:
    """Moves what is waited for to the headers."""
    wanted = normalize(options.pop('depends_on', None))
    policy = options.pop('dependency_policy', None)
    if policy is not None:
        policy = normalize_policy(policy)
    if not wanted:
        return
    producer = options.get('producer') or options.get('publisher')
    connection = getattr(producer, 'connection', None) or options.get('connection')
    require(app, f'depends_on of task {name}', connection)
    headers = dict(options.get('headers') or {})
    headers[DEPENDS_ON] = wanted
    if policy is not None:
        headers[POLICY] = policy
    options['headers'] = headers


def _id(dependency: str | Mapping[str, Any]) -> str:
    return dependency if isinstance(dependency, str) else str(dependency['id'])


def _done(options: Mapping[str, Any]) -> frozenset[str]:
    """What the body of a chord need not wait for, nor expect once more.

    It gets the options of the chord, as the header does, and the header has waited.
    """
    return frozenset(map(_id, (options.get('headers') or {}).get(DEPENDS_ON, ())))


def _prepare_nested(nested: Any, done: Collection[str] = ()) -> None:
    """What is published later travels as text: results become ids."""
    for signature in _signatures(nested):
        own = signature['options']
        normalize_options(own)
        if own.get('depends_on'):
            wanted = normalize(own['depends_on'])
            own['depends_on'] = [one for one in wanted if _id(one) not in done]


def _signatures(nested: Any) -> Iterable[Mapping[str, Any]]:
    """All signatures in what a message carries, those inside others included."""
    waiting = [nested]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            if 'options' not in one or 'task' not in one:
                continue
            yield one
            waiting += [one['options'].get(field) for field in _NESTED]
            kwargs = one.get('kwargs') or {}
            waiting += [kwargs.get(part) for part in ('tasks', 'header', 'body')]
        elif isinstance(one, list | tuple):
            waiting += one


# -- for all apps of this process ------------------------------------------------


def connect() -> None:
    """Teaches Celery's classes our options; idempotent.

    Tasks that run eagerly have no queue in which they could wait.  And signatures are copied in
    depth, often, so they had better hold ids than results with their backends.
    """
    if hasattr(Task.apply, 'knows_options'):
        return
    Task.apply = _inert(Task.apply)
    for canvas in (Signature, _chain, _chord, group):
        canvas.apply_async = _with_ids(canvas.apply_async)
    Signature.set = _with_ids(Signature.set)
    Signature.clone = _with_ids(Signature.clone)


def _inert(apply: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(apply)
    def run_eagerly(self: Any, *args: Any, **options: Any) -> Any:
        given = [name for name in OPTIONS if options.pop(name, None) is not None]
        given += inert_options(self, options)
        if given:
            warn_inert(self.app, 'on tasks that run eagerly', ' and '.join(given))
        return apply(self, *args, **options)

    run_eagerly.knows_options = True  # type: ignore[attr-defined]
    return run_eagerly


def _with_ids(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def called(self: Any, *args: Any, **options: Any) -> Any:
        if options.get('depends_on') is not None:
            options['depends_on'] = normalize(options['depends_on'])
        normalize_options(options)
        return method(self, *args, **options)

    return called
