"""The kombu side: transport, channel, and what keeps their messages."""

from __future__ import annotations

from kombu_reliable.transport.channel import Channel
from kombu_reliable.transport.transport import Transport

__all__ = ('Channel', 'Transport')
