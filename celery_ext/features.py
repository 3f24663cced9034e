"""The features whose wishes travel with a message, each in a file of its own.

A feature says here which options of a call are its own, and what of them, and of what a
decorator has noted, is written into the headers of a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import current_task

from celery_ext.broker import is_ours, speaks_ours, warn_inert
from celery_ext.decorators import any_declared, declared
from celery_ext.templates import fill
from kombu_reliable import TOKEN_HEADER

__all__ = ('Call', 'feature', 'inert_options', 'normalize_options', 'translate')


class Call:
    """One call that publishes a task, as a feature sees it.

    Args:
        app: the Celery app.
        name: of the task.
        task: the task; None if it is not registered in this program.
        args: its positional arguments.
        kwargs: its keyword arguments.
        declared: what the task's decorators have noted for this feature.
        options: what this call says by the feature's options, as plain data; without those that
            are None.
    """

    __slots__ = ('app', 'args', 'declared', 'kwargs', 'name', 'options', 'task')

    def __init__(
        self,
        app: Any,
        name: str,
        task: Any,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        declared: tuple[Any, ...],
        options: Mapping[str, Any],
    ) -> None:
        self.app = app
        self.name = name
        self.task = task
        self.args = args
        self.kwargs = kwargs
        self.declared = declared
        self.options = options

    def fill(self, template: str) -> str:
        """Fills a template from the call's arguments; see :func:`.templates.fill`."""
        return fill(template, self.task or self.name, self.args, self.kwargs)


@dataclass(frozen=True)
class _Feature:
    name: str
    headers: tuple[str, ...]
    build: Callable[[Call], Mapping[str, Any]]
    options: Mapping[str, Callable[[Any], Any]]
    cleared: Mapping[str, Any]


_features: dict[str, _Feature] = {}
#: The feature of each option of a call.
_owners: dict[str, _Feature] = {}


def feature(
    name: str,
    *,
    headers: Sequence[str],
    build: Callable[[Call], Mapping[str, Any]],
    options: Mapping[str, Callable[[Any], Any]] | None = None,
    cleared: Mapping[str, Any] | None = None,
) -> None:
    """Registers a feature.

    Args:
        name: as :func:`.decorators.declare` is told it.
        headers: all headers that it may write.
        build: the headers of one call and their values; None leaves one out.  Asked for a task
            that has declared something, or a call that has one of the options.
        options: the options of a call, each with what checks its value and makes it one that
            can be serialized; that is applied more than once, as signatures travel.
        cleared: headers that take the feature away from a job that goes on as another task, if
            that one does not want it; without them the job keeps it.

    Example:
        >>> feature('tags', headers=('x-tags',), build=_headers, options={'tags': _texts})
    """
    made = _Feature(name, tuple(headers), build, options or {}, cleared or {})
    _features[name] = made
    _owners.update(dict.fromkeys(made.options, made))


def normalize_options(options: dict[str, Any]) -> None:
    """Checks the options of features among those of a signature, and makes them plain data."""
    for option in _owners.keys() & options.keys():
        if options[option] is not None:
            options[option] = _owners[option].options[option](options[option])


def take_options(options: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of features out of those of a call; those that are None are dropped."""
    taken = {option: options.pop(option) for option in _owners.keys() & options.keys()}
    return {option: value for option, value in taken.items() if value is not None}


def declared_by(app: Any, name: str, options: Mapping[str, Any]) -> Mapping[str, tuple[Any, ...]]:
    """What the task that a call publishes has declared; empty if it is not registered here."""
    task = task_of(app, name, options) if any_declared() else None
    return {} if task is None else declared(task)


def task_of(app: Any, name: str, options: Mapping[str, Any]) -> Any:
    """The task that a call publishes, if it is registered in this program."""
    task = options.get('task_type')
    if task is None:
        tasks = app.tasks if app.finalized or app.autofinalize else app._tasks
        task = tasks.get(name)
    return task


def translate(app: Any, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
    """Writes what the features want for a call into its headers."""
    wanted = declared_by(app, name, options)
    goes_on = options.get('task_id') and _goes_on(options)
    if not wanted and not goes_on and _owners.keys().isdisjoint(options):
        return
    given = take_options(options)
    headers = dict(options.get('headers') or {})
    if goes_on and TOKEN_HEADER in headers:
        wanted, goes_on = {}, False  # a retry, and the job keeps what it has
    chosen = [
        one
        for one in _features.values()
        if one.name in wanted
        or not given.keys().isdisjoint(one.options)
        or (goes_on and one.cleared)
    ]
    if not chosen or not _travels(app, chosen, options):
        return
    task = task_of(app, name, options)
    for one in chosen:
        own = {key: check(given[key]) for key, check in one.options.items() if key in given}
        if not own and not headers.keys().isdisjoint(one.headers):
            continue  # somebody has written them by hand
        if own or one.name in wanted:
            values = tuple(wanted.get(one.name, ()))
            built = one.build(Call(app, name, task, args or (), kwargs or {}, values, own))
        else:
            built = one.cleared
        headers.update({header: v for header, v in built.items() if v is not None})
    options['headers'] = headers


def _goes_on(options: Mapping[str, Any]) -> bool:
    """Whether a call is the next run of the task that makes it: a retry, or a replacement.

    Only for a retry does Celery copy the headers of the run.
    """
    return bool(current_task) and options['task_id'] == current_task.request.id


def _travels(app: Any, features: Sequence[_Feature], options: Mapping[str, Any]) -> bool:
    """Whether the broker understands our headers."""
    producer = options.get('producer') or options.get('publisher')
    connection = getattr(producer, 'connection', None) or options.get('connection')
    if is_ours(app) if connection is None else speaks_ours(connection):
        return True
    what = ' and '.join(one.name for one in features)
    warn_inert(app, 'on a broker that is not kombu_reliable', what)
    return False


def inert_options(task: Any, options: dict[str, Any]) -> list[str]:
    """What does nothing if a task runs eagerly; options of ours are taken out."""
    given = take_options(options)
    return [*given, *(name for name in declared(task) if name in _features and name not in given)]
