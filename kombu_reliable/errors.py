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
    'DuplicateJob',
    'EmbeddedServerError',
    'Fenced',
    'HasDependents',
    'InvalidArgument',
    'InvalidMessage',
    'InvalidOption',
    'InvalidURL',
    'LayoutError',
    'NotConfirmed',
    'ReliableError',
    'ServerFull',
    'UnknownJob',
    'UnknownQueue',
    'UnsupportedServer',
    'WrongState',
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


class DuplicateJob(ReliableError):
    """Another job has the unique key of a message, which was not stored.

    Args:
        message: what is wrong.
        id: of the task that has the key.
    """

    def __init__(self, message: str, id: str = '') -> None:
        super().__init__(message)
        self.id = id

    def __reduce__(self) -> tuple[type[DuplicateJob], tuple[str, str]]:
        return type(self), (str(self), self.id)


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


class InvalidArgument(ReliableError, ValueError):
    """A priority, a time, a state or a page that makes no sense.  Nothing was changed."""


class UnknownJob(ReliableError, LookupError):
    """No job lives under this id: it has ended, or there never was one.  Nothing was changed."""


class UnknownQueue(ReliableError, LookupError):
    """The queue was deleted, and what is sent there goes with it.  Nothing was changed."""


class WrongState(ReliableError):
    """What was asked makes no sense for a job in this state.  Nothing was changed.

    Args:
        message: what is wrong, and what to do.
        state: the state of the job.
    """

    def __init__(self, message: str, state: str = '') -> None:
        super().__init__(message)
        self.state = state

    def __reduce__(self) -> tuple[type[WrongState], tuple[str, str]]:
        return type(self), (str(self), self.state)


class HasDependents(ReliableError):
    """Other jobs wait for this one, and would fail with it.  Nothing was changed."""


class EmbeddedServerError(ReliableError):
    """The embedded server cannot be started: no binary, no permission, a broken data directory."""


class ConnectionLost(ReliableError, ConnectionError):
    """The connection to the server broke or went silent; reconnecting may help."""


class NotConfirmed(ConnectionLost):
    """A message was stored, but too few replicas, or not the disk, have confirmed it in time.

    It may be lost if the server is.  Publishing the same message again, as kombu does by itself,
    stores nothing twice, and waits once more.
    """
