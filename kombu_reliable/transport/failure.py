"""Why a delivery failed, as its dead letter keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping

__all__ = ('detail_of',)

#: Characters that are kept of each field.  Of a traceback the end says most.
LONGEST = {'reason': 200, 'type': 200, 'message': 2_000, 'group': 500}
LONGEST_TRACEBACK = 8_000


def detail_of(told: Mapping[str, str] | str) -> str:
    """What a settlement says of a failure: a reason, or a JSON object.

    Args:
        told: a reason, or some of ``reason``, ``type``, ``message``, ``traceback`` and
            ``group``, by which dead letters are found together.

    Example:
        >>> detail_of({'reason': 'failed', 'type': 'ValueError'})
        '{"reason": "failed", "type": "ValueError"}'
    """
    if isinstance(told, str):
        return told[: LONGEST['reason']]
    fields = {
        name: str(told[name])[:longest] for name, longest in LONGEST.items() if told.get(name)
    }
    if traceback := told.get('traceback'):
        fields['traceback'] = str(traceback)[-LONGEST_TRACEBACK:]
    return json.dumps(fields)
