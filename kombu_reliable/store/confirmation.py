"""Waits until what was published would survive a failover or a crash of the server."""

from __future__ import annotations

from typing import Any

import redis.exceptions

from kombu_reliable.errors import InvalidOption, NotConfirmed
from kombu_reliable.options import Options
from kombu_reliable.wire import pack

__all__ = ('commands', 'judge')


def commands(options: Options, meta: str) -> list[bytes]:
    """What is asked of the server after a publish, if the options ask for it.

    The server waits for what *this connection* has written, and a publish that is repeated writes
    nothing.  So a write of our own goes ahead: what came before it, from wherever, is included.
    """
    milliseconds = round(options.confirm_timeout * 1000)
    question = (
        ('WAITAOF', 1, options.confirm_replicas, milliseconds)
        if options.confirm_fsync
        else ('WAIT', options.confirm_replicas, milliseconds)
    )
    return [pack(('HSET', meta, 'confirmed', 1)), pack(question)]


def judge(options: Options, reply: Any) -> None:
    """Reads the answer.

    Raises:
        NotConfirmed: too few have it.
        InvalidOption: the server cannot tell.
    """
    if isinstance(reply, redis.exceptions.ResponseError):
        raise InvalidOption(
            'confirm_fsync and confirm_replicas ask for what the server cannot confirm '
            f'(WAITAOF needs Redis 7.2 or Valkey, and appendonly yes): {reply}'
        )
    disks, replicas = reply if isinstance(reply, list) else (0, reply)
    if disks < options.confirm_fsync or replicas < options.confirm_replicas:
        raise NotConfirmed(
            f'the message is stored, but within {options.confirm_timeout:g} s '
            f'{replicas} of {options.confirm_replicas} replicas'
            f'{" and not the disk" if disks < options.confirm_fsync else ""} have confirmed it'
        )
