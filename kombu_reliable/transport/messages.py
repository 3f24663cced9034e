"""From a kombu message to what the store keeps, and back to what a consumer gets."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from kombu_reliable.envelope import CorruptEnvelope, due_of, pack_id, seal, unseal, with_due
from kombu_reliable.errors import InvalidMessage
from kombu_reliable.options import Options
from kombu_reliable.store.info import JobInfo
from kombu_reliable.transport.dependencies import take_dependencies
from kombu_reliable.transport.marks import take_marks
from kombu_reliable.transport.throttles import take_lane
from kombu_reliable.transport.unique import take_unique
from kombu_reliable.types import Delivery, Origin, Outgoing

__all__ = ('NONCE', 'TOKEN_HEADER', 'envelope', 'open_envelope', 'open_job', 'outgoing', 'payload')

#: Where a publish keeps its nonce between kombu's attempts.
NONCE = 'x-nonce'

#: Tells a task's process by which delivery it runs: '<token>', or '<token> <key>' if the job is
#: not kept under its own id.  What it publishes under the same id is the job's next run.
TOKEN_HEADER = 'x-lease-token'

#: What the head of a record can say, see lua/lib/record.lua.
LONGEST_QUEUE_NAME = 9_999

#: Headers that speak to the transport or to one run: they end here, or a retry, which copies
#: the headers of its run, would wait or count again.
_CONSUMED = ('x-delay', 'x-delivery-count', TOKEN_HEADER)

#: A task that silently does not wait would be worse than an error.
_EXTENSION_OPTIONS = ('depends_on', 'throttles', 'fair_by')

#: Properties that kombu sets anew at each end.
_TRANSIENT = ('delivery_tag', 'body_encoding', 'delivery_info', NONCE)


def outgoing(
    message: Mapping[str, Any], queue: str, exchange: str, routing_key: str, options: Options
) -> Outgoing:
    """Prepares a message for one queue.

    Raises:
        InvalidMessage: its id, queue, priority, eta, ``x-delay``, what it depends on, its throttles
            or its unique key makes no sense.
    """
    headers = dict(message['headers'])
    for option in _EXTENSION_OPTIONS:
        if option in message['properties']:
            raise InvalidMessage(
                f'{option} is an option of celery_ext: call celery_ext.install(app)'
            )
    identity = _identity(headers)
    try:
        length = len(queue.encode())
        identity.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(
            'half a character in the id of a task or the name of a queue'
        ) from None
    if length > LONGEST_QUEUE_NAME:
        raise InvalidMessage(f'the name of a queue has at most {LONGEST_QUEUE_NAME} bytes')
    job = pack_id(identity)
    due = _take_due(headers)
    depends = take_dependencies(headers, job)
    lane = take_lane(headers)
    unique = take_unique(headers)
    marks = take_marks(headers, options)
    sealed = envelope(message, headers, queue, exchange, routing_key)
    return Outgoing(
        id=job,
        run=_run(headers.get(TOKEN_HEADER), job),
        queue=queue,
        rank=options.rank(_priority(message['properties'].get('priority'))),
        due=due,
        depends=depends,
        lane=lane,
        unique=unique,
        marks=marks,
        envelope=sealed if due == '0' else with_due(sealed, due),
    )


def _identity(headers: Mapping[str, Any]) -> str:
    """Celery's task id; a message that is no task gets an id of its own."""
    task_id = headers.get('id')
    if 'task' in headers and isinstance(task_id, str) and task_id:
        return task_id
    return str(uuid.uuid4())


def _run(token: Any, job: str) -> tuple[str, str] | None:
    """Whose next run a message is.  Somebody may hand the headers of his run on to another task,
    which is no run of his."""
    if not isinstance(token, str):
        return None
    token, _, key = token.partition(' ')
    key = key or job
    return (token, key) if key == job or key.endswith(f'~{job}') else None


def _priority(value: Any) -> int:
    if value is None:
        return 0
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidMessage(f'priority {value!r} is not a number from 0 to 255') from None


def _take_due(headers: dict[str, Any]) -> str:
    """When the message is due; what was understood is taken out of the headers.

    A time without a zone stays: only Celery knows in which zone the app lives, and its worker
    waits for that time itself.
    """
    delay = headers.pop('x-delay', None)
    if delay is not None:
        headers['eta'] = None
        return _relative(delay)
    eta = headers.get('eta')
    if eta is None:
        return '0'
    moment = _moment(eta)
    if moment.tzinfo is None:
        return '0'
    headers['eta'] = None
    return f'{moment.timestamp() * 1000:.0f}'


def _relative(delay: Any) -> str:
    try:
        milliseconds = round(float(delay))
    except (TypeError, ValueError, OverflowError):
        milliseconds = -1
    if milliseconds < 0 or milliseconds > 2**52:
        raise InvalidMessage(f'x-delay {delay!r} is not a number of milliseconds, 0 or more')
    return f'+{milliseconds}' if milliseconds else '0'


def _moment(eta: Any) -> datetime:
    if isinstance(eta, datetime):
        return eta
    try:
        return datetime.fromisoformat(eta)
    except (TypeError, ValueError):
        raise InvalidMessage(f'eta {eta!r} is no date in ISO format') from None


def envelope(
    message: Mapping[str, Any],
    headers: Mapping[str, Any],
    queue: str,
    exchange: str,
    routing_key: str,
) -> bytes:
    """Packs a message; where it was sent is left out if its queue says it."""
    head = [
        message['content-type'],
        message['content-encoding'],
        _without(headers, _CONSUMED),
        _without(message['properties'], _TRANSIENT),
    ]
    if exchange or routing_key != queue:
        head.append([exchange, routing_key])
    body = message['body']
    return seal(head, body if isinstance(body, bytes) else str(body).encode())


def _without(fields: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    rest = dict(fields)
    for name in names:
        rest.pop(name, None)
    return rest


def open_envelope(sealed: bytes, queue: str, tag: str, deliveries: int) -> dict[str, Any]:
    """Unpacks an envelope into the dict from which kombu makes a message.

    Raises:
        CorruptEnvelope: these bytes are no envelope.
    """
    head, body = unseal(sealed)
    try:
        content_type, content_encoding, headers, properties, *address = head
        exchange, routing_key = address[0] if address else ('', queue)
        headers, properties = dict(headers), dict(properties)
    except (TypeError, ValueError) as error:
        raise CorruptEnvelope(f'not the head of a message: {error}') from error
    headers['x-delivery-count'] = deliveries
    properties['delivery_tag'] = tag
    properties['delivery_info'] = {
        'exchange': exchange,
        'routing_key': routing_key,
        'redelivered': deliveries > 1,
    }
    return {
        'body': body,
        'content-type': content_type,
        'content-encoding': content_encoding,
        'headers': headers,
        'properties': properties,
    }


def open_job(job: JobInfo) -> dict[str, Any]:
    """The message of a job that was looked up: a dict with ``body`` (bytes, as they were
    serialized), ``content-type``, ``content-encoding``, ``headers`` and ``properties``.

    Raises:
        CorruptEnvelope: it is no message of ours, or was damaged.
    """
    return open_envelope(job.envelope, job.queue, '', job.deliveries)


def payload(delivery: Delivery) -> dict[str, Any]:
    """What kombu makes a delivered message from."""
    raw = open_envelope(delivery.envelope, delivery.queue, delivery.token, delivery.deliveries)
    raw['headers'][TOKEN_HEADER] = (
        f'{delivery.token} {delivery.id}' if delivery.id.startswith('~') else delivery.token
    )
    raw['origin'] = Origin(delivery.queue, *_waits_since(delivery))
    return raw


def _waits_since(delivery: Delivery) -> tuple[float | None, bool]:
    """Since when a message waited, by the server's clock in seconds, and whether that was because
    its worker had lost it."""
    try:
        ready = int(delivery.published)
        if delivery.since:
            since, _, why = delivery.since.partition(' ')
            if int(since) >= ready:
                return int(since) / 1000, why == 'lost'
        if due := due_of(delivery.envelope):
            ready = max(ready, ready + int(due) if due[0] == '+' else int(due))
    except ValueError:
        return None, False  # damaged, or nothing that was stored
    return ready / 1000, False
