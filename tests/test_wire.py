"""What is spoken with the server: commands out, replies in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import Any

import pytest
import redis.exceptions
from hypothesis import given
from hypothesis import strategies as st

from kombu_reliable.wire import NOTHING, Replies, exchange, pack

Reply = Any


def encoded(value: Reply) -> bytes:
    """As a server writes it."""
    if value is None:
        return b'$-1\r\n'
    if isinstance(value, int):
        return b':%d\r\n' % value
    if isinstance(value, bytes):
        return b'$%d\r\n%b\r\n' % (len(value), value)
    return b'*%d\r\n%b' % (len(value), b''.join(map(encoded, value)))


def all_of(replies: Replies) -> list[Reply]:
    taken = []
    while (reply := replies.take()) is not NOTHING:
        taken.append(reply)
    return taken


values = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=20,
)


def pieces(sent: list[Reply], cuts: list[int]) -> Iterator[bytes]:
    stream, lengths = b''.join(map(encoded, sent)), cycle(cuts)
    while stream:
        length = next(lengths)
        yield stream[:length]
        stream = stream[length:]


class Answering:
    """A connection whose server answers in pieces, and then hangs up."""

    def __init__(self, arriving: Iterable[bytes]) -> None:
        self._arriving = iter(arriving)
        self._sock = self
        self.sent: list[bytes] = []

    def send_packed_command(self, packed: list[bytes], check_health: bool) -> None:
        self.sent += packed

    def recv(self, most: int) -> bytes:
        return next(self._arriving, b'')


some = st.lists(values, max_size=6)
cuts = st.lists(st.integers(1, 30), min_size=1)


@given(some, cuts)
def test_replies_arrive_whole_however_they_are_cut(sent: list[Reply], cuts: list[int]) -> None:
    replies, received = Replies(), []
    for piece in pieces(sent, cuts):
        replies.feed(piece)
        received += all_of(replies)
    assert received == sent
    assert replies.take() is NOTHING


@given(some.filter(bool), cuts)
def test_an_exchange_waits_for_whole_replies(sent: list[Reply], cuts: list[int]) -> None:
    connection: Any = Answering(pieces(sent, cuts))
    assert exchange(connection, b'asked', len(sent)) == sent
    assert connection.sent == [b'asked']
    connection = Answering([*pieces(sent, cuts)][:-1])
    with pytest.raises(redis.exceptions.ConnectionError):
        exchange(connection, b'asked', len(sent))


def test_the_forms_that_values_do_not_show() -> None:
    replies = Replies()
    replies.feed(b'+OK\r\n*-1\r\n$0\r\n\r\n*0\r\n')
    assert all_of(replies) == [b'OK', None, b'', []]


@pytest.mark.parametrize(
    ('line', 'kind'),
    [
        (b'-ERR no', redis.exceptions.ResponseError),
        (b'-NOSCRIPT No matching script', redis.exceptions.NoScriptError),
        (b'-OOM command not allowed', redis.exceptions.OutOfMemoryError),
        (b'-READONLY You cannot write', redis.exceptions.ReadOnlyError),
        (b'-LOADING the dataset', redis.exceptions.BusyLoadingError),
        (b'-NOPERM not you', redis.exceptions.NoPermissionError),
    ],
)
def test_errors_have_the_names_of_redis_py(line: bytes, kind: type[Exception]) -> None:
    replies = Replies()
    replies.feed(line + b'\r\n')
    assert type(replies.take()) is kind


def test_what_is_no_reply_is_refused() -> None:
    replies = Replies()
    replies.feed(b'HTTP/1.1 400 Bad Request\r\n')
    with pytest.raises(redis.exceptions.InvalidResponse, match="'H'"):
        replies.take()


@given(st.lists(st.text(max_size=20) | st.binary(max_size=20) | st.integers(), min_size=1))
def test_a_command_is_an_array_of_its_words(words: list[str | bytes | int]) -> None:
    replies = Replies()
    replies.feed(pack(words))
    expected = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    assert replies.take() == expected
