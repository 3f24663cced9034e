"""Names that are filled in from a task's arguments: ``'tenant:{tenant_id}'``.

As in :meth:`str.format`, ``{order.id}`` and ``{order[id]}`` look into an argument.  Whatever
is found there is rendered by :func:`str`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any
from weakref import WeakKeyDictionary

from celery_ext.errors import InvalidTemplate

__all__ = ('check', 'fill')

#: By the class of a task: every task has its own.
_signatures: WeakKeyDictionary[type, inspect.Signature] = WeakKeyDictionary()


def check(template: Any) -> str:
    """A template, if it is one.

    Raises:
        InvalidTemplate: it is no text, or its braces make no sense.
    """
    if not isinstance(template, str) or not template:
        raise InvalidTemplate(f'{template!r} is no name: use a text such as "tenant:{{tenant_id}}"')
    _parsed(template)
    return template


@lru_cache(maxsize=1024)
def _parsed(template: str) -> tuple[tuple[str, str | None, str | None, str | None], ...]:
    try:
        parts = tuple(Formatter().parse(template))
    except ValueError as error:
        raise InvalidTemplate(
            f'the template {template!r} is wrong: {error} (write {{{{ and }}}} for braces)'
        ) from None
    for _, field, _, conversion in parts:
        named = field is None or _first(field).isidentifier()
        if not named or conversion not in (None, 'r', 's', 'a'):
            raise InvalidTemplate(f'the template {template!r} is wrong: {{{field}}} is no argument')
    return parts


def _first(field: str) -> str:
    return field.replace('[', '.').partition('.')[0]


def fill(template: str, task: Any, args: Sequence[Any] | None, kwargs: Any) -> str:
    """Fills a template from the arguments of a call.

    Args:
        template: the text; one without braces costs nothing.
        task: the task, or its name if it is not registered here: then only what is given by
            keyword has a name.
        args: its positional arguments.
        kwargs: its keyword arguments.

    Raises:
        InvalidTemplate: it names an argument that the call does not have.
    """
    if '{' in template or '}' in template:
        return _Filling(template, task, args or (), kwargs or {}).text()
    return template


class _Filling(Formatter):
    def __init__(self, template: str, task: Any, args: Sequence[Any], kwargs: Any) -> None:
        self._template = template
        self._task = task
        self._given = len(args)
        self._values = _by_name(template, task, args, kwargs)

    def text(self) -> str:
        _parsed(self._template)
        try:
            filled = self.vformat(self._template, (), self._values)
            filled.encode()
            return filled
        except InvalidTemplate:
            raise
        except UnicodeEncodeError:
            raise InvalidTemplate(
                f'task {_name(self._task)}: the template {self._template!r} cannot be filled: '
                f'half a character in an argument'
            ) from None
        except Exception as error:
            raise InvalidTemplate(
                f'task {_name(self._task)}: the template {self._template!r} cannot be filled: '
                f'{type(error).__name__}: {error}'
            ) from error

    def get_value(self, key: int | str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        if key in kwargs:
            return kwargs[str(key)]
        raise InvalidTemplate(
            f'task {_name(self._task)}: the template {self._template!r} names the argument '
            f'{key!r}, {self._why_not()}'
        )

    def _why_not(self) -> str:
        if not isinstance(self._task, str):
            return 'and this call does not have it'
        if self._given:
            return (
                'and this call does not give it by keyword: the task is not registered in this '
                'program, so its positional arguments have no names'
            )
        return 'and this call does not give it'

    def format_field(self, value: Any, format_spec: str) -> str:
        return format(value, format_spec) if format_spec else str(value)


def _by_name(template: str, task: Any, args: Sequence[Any], kwargs: Any) -> Mapping[str, Any]:
    if isinstance(task, str):
        return dict(kwargs)
    try:
        bound = _signature(task).bind_partial(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise InvalidTemplate(
            f'task {task.name}: the template {template!r} cannot be filled, because the '
            f'arguments do not fit the task: {error}'
        ) from None
    bound.apply_defaults()
    values = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            values = values.pop(name, {}) | values
    return values


def _signature(task: Any) -> inspect.Signature:
    known = _signatures.get(type(task))
    if known is None:
        known = _signatures[type(task)] = inspect.signature(task.run)
    return known


def _name(task: Any) -> str:
    return task if isinstance(task, str) else str(task.name)
