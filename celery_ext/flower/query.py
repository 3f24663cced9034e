"""What a request asks for.

Not Tornado's ``get_argument``: it strips spaces and control characters, and Flower's escapes what
HTML would read, so a queue with such a name would never be found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kombu_reliable import InvalidArgument

__all__ = ('Query',)

#: Longer texts name nothing.
LONGEST = 20_000


class Query:
    """The arguments of a request, from its URL or its form.

    Args:
        arguments: name -> values, as Tornado reads them.

    Example:
        >>> Query({'queue': [b'mail'], 'offset': [b'50']}).number('offset')
        50
    """

    def __init__(self, arguments: Mapping[str, Sequence[bytes]]) -> None:
        self._arguments = arguments

    def text(self, name: str, default: str = '') -> str:
        """The last value of an argument.

        Raises:
            InvalidArgument: it is no text.
        """
        values = self._arguments.get(name)
        if not values:
            return default
        try:
            text = values[-1].decode()
        except UnicodeDecodeError:
            raise InvalidArgument(f'{name} is no UTF-8') from None
        if len(text) > LONGEST:
            raise InvalidArgument(f'{name} has more than {LONGEST} characters')
        return text

    def needed(self, name: str) -> str:
        """The same, of one that must not be empty."""
        text = self.text(name)
        if not text:
            raise InvalidArgument(f'{name} is missing')
        return text

    def words(self, name: str) -> list[str]:
        """Words that were separated by commas or spaces."""
        return list(dict.fromkeys(self.text(name).replace(',', ' ').split()))

    def number(self, name: str, default: int = 0, least: int = 0, most: int = 2**40) -> int:
        """A whole number from ``least`` to ``most``."""
        text = self.text(name).strip()
        if not text:
            return default
        try:
            number = int(text) if text.isascii() and len(text) < 20 else None
        except ValueError:
            number = None
        if number is None or not least <= number <= most:
            raise InvalidArgument(
                f'{name} {text!r:.50} is not a whole number from {least} to {most}'
            )
        return number

    def optional(self, name: str) -> int | None:
        """A whole number, or None if nothing was entered."""
        return self.number(name) if self.text(name).strip() else None

    def flag(self, name: str) -> bool:
        return self.text(name) in ('1', 'on', 'true')

    def shown(self) -> dict[str, str]:
        """For the log: all but what nobody need know."""
        return {name: text[:100] for name, text in self.raw().items() if name != '_xsrf'}

    def raw(self) -> dict[str, str]:
        """All of them, for a URL that asks for the same."""
        return {name: self.text(name) for name in self._arguments}
