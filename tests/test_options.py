"""Transport options: parsed in one place, wrong ones named."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any

import pytest
from kombu import Connection
from kombu.transport import redis as redis_transport

from kombu_reliable import InvalidOption, Options
from kombu_reliable.options import STOCK_OPTIONS


def test_defaults_are_those_of_the_readme() -> None:
    options = Options.parse({})
    assert (options.lease, options.delivery_limit) == (30.0, 20)
    assert options.failed_retention == 7 * 24 * 3600
    assert options.priority_order == 'highest-first'


def test_what_a_url_says_as_text_is_converted() -> None:
    options = Options.parse(
        {'lease': '45', 'delivery_limit': '3', 'socket_keepalive': 'false', 'ssl_ca_certs': '/ca'}
    )
    assert options.lease == 45.0
    assert options.delivery_limit == 3
    assert options.socket_keepalive is False
    assert options.ssl == {'ssl_ca_certs': '/ca'}


@pytest.mark.parametrize(
    ('given', 'words'),
    [
        ({'leese': 3}, "did you mean 'lease'"),
        ({'delivery_limits': 3}, "did you mean 'delivery_limit'"),
        ({'xyzzy': 3}, 'known are lease'),
        ({'lease': 'long'}, 'is not a float'),
        ({'lease': 0}, 'at least 0.5'),
        ({'lease': -1}, 'at least 0.5'),
        ({'delivery_limit': 'many'}, 'is not a int'),
        ({'delivery_limit': -1}, '0 or more'),
        ({'priority_order': 'up'}, 'highest-first'),
        ({'queue_order_strategy': 'random'}, 'round_robin'),
        ({'global_keyprefix': 'a{b}'}, 'without braces'),
        ({'socket_keepalive': 'perhaps'}, 'is not a bool'),
        ({'socket_timeout': 0}, 'greater than 0'),
        ({'socket_timeout': None}, 'is not a float'),
        ({'lease': 'nan'}, 'at least 0.5'),
        ({'lease': 'inf'}, 'at most'),
        ({'failed_retention': 1e300}, 'at most'),
        ({'failed_limit': float('inf')}, 'is not a int'),
        ({'ssl': 'x'}, 'is not a Mapping'),
        ({3: 4}, "unknown transport option '3'"),
        ({'passwort': 'geheim'}, "did you mean 'password'"),
        ({'fanout_replay': 0}, 'greater than 0'),
    ],
)
def test_a_wrong_option_is_named(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidOption, match=words):
        Options.parse(given)


def test_a_wrong_option_stops_the_connection() -> None:
    connection = Connection('reliable://localhost', transport_options={'leese': 1})
    with pytest.raises(InvalidOption, match='lease'):
        connection.connect()


def test_a_password_is_never_part_of_an_error() -> None:
    with pytest.raises(InvalidOption) as error:
        Options.parse({'password': 5})
    assert '5' not in str(error.value)
    assert 'geheim' not in repr(Options.parse({'password': 'geheim'}))


def test_stock_options_are_ignored_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    given = {'visibility_timeout': 60, 'unacked_key': 'u', 'fanout_prefix': True}
    with caplog.at_level(logging.WARNING):
        Options.parse(given)
        Options.parse(given)
    [record] = caplog.records
    assert 'fanout_prefix, unacked_key, visibility_timeout' in record.message


@pytest.mark.parametrize('channel', [redis_transport.Channel, redis_transport.SentinelChannel])
def test_each_option_of_the_stock_transport_works_or_is_ignored_with_a_warning(
    channel: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails when kombu has a new option, so that somebody decides what becomes of it."""
    works = {entry.name for entry in dataclasses.fields(Options)}
    # Not in kombu's table, but in its documentation or read by its transport all the same.
    others = {'polling_interval', 'brpop_timeout', 'reauth_check_interval'}
    for name in {*channel.from_transport_options, *others} - works:
        monkeypatch.setattr('kombu_reliable.options._warned', set())
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            Options.parse({name: 'anything'})
        [record] = caplog.records
        assert name in record.message


def test_each_documented_option_of_the_stock_transport_is_accepted() -> None:
    documented = set(re.findall(r'^\* ``(\w+)``', redis_transport.__doc__, re.MULTILINE))
    assert {'visibility_timeout', 'socket_timeout', 'queue_order_strategy'} <= documented
    known = {entry.name for entry in dataclasses.fields(Options)} | STOCK_OPTIONS
    assert documented <= known


def test_each_option_in_the_documentation_of_celery_is_accepted() -> None:
    """Of its page about Redis; those of the result backend are read by Celery itself."""
    Options.parse(
        {
            'visibility_timeout': 3600, 'fanout_prefix': True, 'fanout_patterns': True,
            'global_keyprefix': 'app_', 'master_name': 'cluster1',
            'sentinel_kwargs': {'password': 'secret'}, 'queue_order_strategy': 'priority',
            'priority_steps': list(range(10)), 'sep': ':', 'socket_timeout': 30,
            'socket_connect_timeout': 10, 'socket_keepalive': True, 'health_check_interval': 10,
            'retry_on_timeout': True, 'max_connections': 20, 'client_name': 'worker',
            'unacked_restore_interval': 5, 'unacked_restore_limit': 1, 'confirm_publish': True,
        }
    )  # fmt: skip


def test_what_kombu_itself_writes_into_the_options_passes() -> None:
    Options.parse({'max_retries': 3, 'interval_start': 0, 'interval_step': 1, 'interval_max': 2})


@pytest.mark.parametrize(
    ('order', 'ranks'), [('highest-first', [0, 7, 255]), ('lowest-first', [255, 248, 0])]
)
def test_ranks(order: str, ranks: list[int]) -> None:
    options = Options(priority_order=order)
    assert [options.rank(priority) for priority in (0, 7, 255)] == ranks
