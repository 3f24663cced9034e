"""What celery_ext raises and warns of.  Each error says what to do; nothing was changed."""

from __future__ import annotations

from kombu_reliable import ReliableError

__all__ = (
    'ForeignBroker',
    'InertWarning',
    'InvalidDependency',
    'InvalidSchedule',
    'InvalidTemplate',
    'UnknownSchedule',
)


class ForeignBroker(ReliableError):
    """What was asked for needs kombu_reliable, and the app's broker is another one."""


class InvalidDependency(ReliableError, ValueError):
    """Something in ``depends_on`` names no task, or the policy is unknown."""


class InvalidSchedule(ReliableError, ValueError):
    """A schedule that makes no sense, never fires, or cannot be kept as data."""


class UnknownSchedule(ReliableError, LookupError):
    """No schedule has this name."""


class InvalidTemplate(ReliableError, ValueError):
    """A name such as ``'tenant:{tenant_id}'`` is wrong, or names what the call does not have."""


class InertWarning(UserWarning):
    """An option of celery_ext does nothing here: the task runs eagerly, or on another broker."""
