"""Whether somebody may change things: what Flower says of its own buttons holds for ours."""

from __future__ import annotations

import os
from typing import Any

from flower.utils import strtobool

__all__ = ('READ_ONLY', 'refusal')

READ_ONLY = 'Flower is in read-only mode'

NO_AUTHENTICATION = (
    'Flower has no authentication, so it lets nobody change anything: start it with --basic-auth '
    'or --auth, or set FLOWER_UNAUTHENTICATED_API=true'
)


def refusal(handler: Any) -> str:
    """Why nobody can change anything here; ``''`` if those who may see the page can."""
    options = handler.application.options
    if getattr(options, 'read_only', False):  # which older versions do not have
        return READ_ONLY
    if options.basic_auth or options.auth:
        return ''
    allowed = strtobool(os.environ.get('FLOWER_UNAUTHENTICATED_API') or 'false')
    return '' if allowed else NO_AUTHENTICATION
