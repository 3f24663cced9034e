"""Makes kombu know the transport by name.

kombu reads no entry point for transports, but it loads those of ``kombu.serializers`` while it
imports its serialization, which every producer and every worker does.  One of them points
here.  An error in this module would break kombu for everybody, so it imports nothing but the
table of aliases.
"""

from __future__ import annotations

__all__ = ('register', 'serializer')


def register() -> None:
    """Registers ``reliable`` and every ``reliable+x``; harmless when repeated."""
    from kombu.transport import TRANSPORT_ALIASES

    from kombu_reliable.urls import ALIASES

    for alias in ALIASES:
        TRANSPORT_ALIASES[alias] = 'kombu_reliable.transport:Transport'


#: What the entry point yields: a serializer without encoder and decoder, which changes nothing.
serializer = (None, None, 'application/x-kombu-reliable', 'utf-8')

register()
