"""Why an action on a job was refused, and what to do instead."""

from __future__ import annotations

from kombu_reliable.envelope import unpack_id
from kombu_reliable.errors import DuplicateJob, UnknownJob, WrongState
from kombu_reliable.store.info import JobInfo

__all__ = ('TAKEN', 'Target', 'duplicate', 'name', 'unknown', 'wrong_state')

#: An id means the newest job under it that fits, what was looked up means exactly that job.
Target = str | JobInfo

#: What the server answers, in front of the job that has a unique key.
TAKEN = 'duplicate '


def name(target: Target) -> str:
    return repr(target.id if isinstance(target, JobInfo) else target)


def unknown(target: Target) -> UnknownJob:
    return UnknownJob(f'no job lives under {name(target)}: it has ended, or there never was one')


def duplicate(target: Target, holder: str) -> DuplicateJob:
    other = unpack_id(holder)
    return DuplicateJob(
        f'replay of {name(target)}: task {other} has its unique key by now; wait until that has '
        f'ended, or cancel it',
        other,
    )


_ADVICE = {
    'leased': {
        '': 'a worker holds it; cancel it, or wait until it has ended',
        'replay': 'a worker holds it; cancel it first if it is to start again',
        'discard': 'a worker holds it; cancel it instead',
    },
    'failed': {
        '': 'it is a dead letter; replay it first',
        'cancel': 'it is a dead letter and will not run; discard it instead',
    },
    'completed': {
        '': 'it has succeeded and is kept to be looked at; publish it again if it is to run again',
    },
    '': {
        'replay': 'it has not failed and will run by itself',
        'discard': 'it has not failed; cancel it instead',
    },
}


def wrong_state(target: Target, state: str, action: str) -> WrongState:
    advice = _ADVICE.get(state, _ADVICE[''])
    said = advice.get(action) or advice.get('') or _ADVICE['']['replay']
    return WrongState(f'{action} of {name(target)}, which is {state}: {said}', state)
