"""Text that shows a mask wherever it is printed, logged or serialized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ('MASK', 'SECRETS', 'Masked', 'mask_secrets', 'unmask', 'unmask_secrets')

#: Settings whose values nobody may see.
SECRETS = frozenset({'password', 'ssl_password', 'sentinel_password'})

MASK = '**'


class Masked(str):
    """A text that hides another one.

    kombu and Celery print, log and send around what a connection is made of.  To them this is
    the harmless text; only :func:`unmask` yields the other.

    Args:
        shown: what everybody sees.
        hidden: what it stands for.

    Example:
        >>> password = Masked('**', 'secret')
        >>> print(password), unmask(password)
        **
        (None, 'secret')
    """

    hidden: str

    def __new__(cls, shown: str, hidden: str) -> Masked:
        made = super().__new__(cls, shown)
        made.hidden = hidden
        return made

    def __reduce__(self) -> tuple[type[Masked], tuple[str, str]]:
        return Masked, (str(self), self.hidden)


def unmask(text: Any) -> Any:
    """What ``text`` hides, or ``text`` itself."""
    return text.hidden if isinstance(text, Masked) else text


def mask_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``settings`` that can be shown."""
    return {
        name: Masked(MASK, value)
        if name in SECRETS and isinstance(value, str) and not isinstance(value, Masked)
        else value
        for name, value in settings.items()
    }


def unmask_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``settings`` that can be used."""
    return {name: unmask(value) for name, value in settings.items()}
