"""Every exception that this package raises on purpose.

Two families matter to kombu: errors that waiting can mend (they derive from
:class:`ConnectionError`, so kombu and Celery reconnect) and errors that it
cannot (a bad option, data of an unknown layout): those stop the program with
one clear message.
"""

from __future__ import annotations

__all__ = (
    'AccessRefused',
    'ConnectionLost',
    'DependencyCycle',
    'EmbeddedServerError',
    'Fenced',
    'InvalidMessage',
    'InvalidOption',
    'InvalidURL',
    'LayoutError',
    'ReliableError',
    'ServerFull',
    'UnsupportedServer',
)


class ReliableError(Exception):
    """Base class of all errors of this package."""


class InvalidURL(ReliableError, ValueError):
    """A broker or result URL that cannot be understood."""


class InvalidOption(ReliableError, ValueError):
    """A transport option that is unknown or has an impossible value."""


class InvalidMessage(ReliableError, ValueError):
    """A message that cannot be published: its priority, eta, delay or what it
    depends on makes no sense."""


class DependencyCycle(ReliableError, ValueError):
    """A job would wait for itself, directly or by way of others.  Nothing was stored."""


class LayoutError(ReliableError):
    """The data in Redis was written in a layout that this version does not know."""


class AccessRefused(ReliableError):
    """The server refuses the user or its password, or forbids a command that is needed."""


class UnsupportedServer(ReliableError):
    """The server is too old for this package."""


class ServerFull(ReliableError):
    """The server has reached its ``maxmemory`` and refused a publish.  Nothing was stored."""


class Fenced(ReliableError):
    """The next run of a job was refused, because the job was taken from this owner: its lease
    ended and another worker has it, or has finished it."""


class EmbeddedServerError(ReliableError):
    """The embedded server cannot be started: no binary, no permission, a broken data directory."""


class ConnectionLost(ReliableError, ConnectionError):
    """The connection to the server broke or went silent; reconnecting may help."""
