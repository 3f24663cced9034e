"""By which names a consumer is known."""

from __future__ import annotations

import os
import secrets
import socket

__all__ = ('new_identity',)

LONGEST_HOST = 64


def new_identity() -> tuple[str, str]:
    """A consumer's name, for people who ask who holds a job, and what its tokens begin with,
    for nobody to guess.

    Example:
        >>> new_identity()
        ('web3:4711:pW0x', 'i1Kcdw8T')
    """
    host = socket.gethostname()[:LONGEST_HOST].replace(';', '')
    return f'{host}:{os.getpid()}:{secrets.token_urlsafe(3)}', secrets.token_urlsafe(6)
