"""URLs: what they mean, how they are printed, and what is wrong with the others."""

from __future__ import annotations

import pytest
from kombu import Connection

from kombu_reliable import InvalidURL, parse_url
from kombu_reliable.urls import SCHEMES


@pytest.mark.parametrize(
    ('url', 'expected'),
    [
        ('reliable://', 'reliable+redis://localhost:6379/0'),
        ('reliable://h:7000/3', 'reliable+redis://h:7000/3'),
        ('reliable+redis://h/2?lease=3', 'reliable+redis://h:6379/2?lease=3'),
        ('redis://h/2', 'reliable+redis://h:6379/2'),
        ('reliable+rediss://u:p@h/1', 'reliable+rediss://u:**@h:6379/1'),
        ('reliable+valkey://:p%40ss@[::1]:7/0', 'reliable+valkey://:**@[::1]:7/0'),
        ('reliable+valkeys://h', 'reliable+valkeys://h:6379/0'),
        ('reliable+unix:///tmp/a.sock?db=4', 'reliable+unix:///tmp/a.sock?db=4'),
        ('reliable+embedded:///var/data/', 'reliable+embedded:///var/data'),
        ('reliable+embedded://', 'reliable+embedded://'),
        ('reliable+fakeredis://mine', 'reliable+fakeredis://mine'),
        ('reliable://h/0?password=x', 'reliable+redis://:**@h:6379/0'),
        ('reliable://h?username=u&password=x&lease=3', 'reliable+redis://u:**@h:6379/0?lease=3'),
        ('reliable://h?ssl_password=x', 'reliable+redis://h:6379/0?ssl_password=**'),
    ],
)
def test_a_url_is_printed_in_full_and_masked(url: str, expected: str) -> None:
    parsed = parse_url(url)
    assert str(parsed) == expected
    assert 'p%40ss' not in repr(parsed) and 'p@ss' not in repr(parsed)
    if '**' not in expected:
        assert str(parse_url(expected)) == expected


def test_the_password_is_decoded() -> None:
    parsed = parse_url('reliable://user:p%40%2Fss@h/1')
    assert (parsed.username, parsed.password, parsed.db) == ('user', 'p@/ss', 1)


@pytest.mark.parametrize(
    ('url', 'words'),
    [
        ('reliable+amqp://h', "'amqp' is no scheme of this transport"),
        ('nonsense', 'no scheme of this transport'),
        ('user:secret@host', 'no scheme of this transport'),
        ('reliable+redis://h:port/0', 'a port from 1 to 65535'),
        ('reliable+redis://:secret@h:70000/0', 'a port from 1 to 65535'),
        ('reliable+redis://h:0/0', 'a port from 1 to 65535'),
        ('reliable+redis://h:-1/0', 'a port from 1 to 65535'),
        ('reliable+redis://[::1/0', 'broken redis URL'),
        ('reliable+redis://h h/0', 'broken redis URL'),
        ('reliable+redis://{h}/0', 'broken redis URL'),
        ('reliable+redis://h/0#secret', '# is %23'),
        ('reliable+redis://:sec#ret@h/0', '# is %23'),
        ('reliable+redis://:sec/ret@h/0', '/ is %2F'),
        ('reliable+redis://sec/ret@h/0', '/ is %2F'),
        ('reliable+redis://:sec?ret@h/0', r'\? is %3F'),
        ('reliable+redis://u:sec[ret@h/0', 'percent-encoded'),
        ('reliable+redis://:secret@h1,h2/0', "separate the URLs with ';'"),
        ('reliable+rediss://:secret@h1:1,h2:2/0', "separate the URLs with ';'"),
        ('reliable+redis://h/first', "'first', not a number"),
        ('reliable+redis://h/-1', "'-1', not a number"),
        ('reliable+redis://h/0/1', "'0/1', not a number"),
        ('reliable+redis://h/99999999999999999999', 'not a number'),
        ('reliable+redis://h/1?db=2', 'two databases'),
        ('reliable+unix://', 'names its socket'),
        ('reliable+unix:///s?db=x', "'x', not a number"),
        ('reliable+sentinel://h/0?master=m', 'not supported yet'),
        ('reliable+cluster://h', 'not supported yet'),
    ],
)
def test_a_bad_url_is_one_clear_error(url: str, words: str) -> None:
    with pytest.raises(InvalidURL, match=words) as error:
        parse_url(url)
    for part in ('secret', 'sec', 'ret@'):
        assert part not in str(error.value)


@pytest.mark.parametrize(
    'url', ['reliable+redis://', 'reliable+redis:///0', 'reliable+redis://:6379/0', 'redis://h:/']
)
def test_what_a_url_leaves_out_has_its_default(url: str) -> None:
    parsed = parse_url(url)
    assert (parsed.host in ('localhost', 'h'), parsed.port, parsed.db) == (True, 6379, 0)


def test_a_bad_alternate_is_an_error_at_once() -> None:
    connection = Connection('reliable+redis://h;reliable+redis://:secret@h2:port')
    with pytest.raises(InvalidURL, match='a port') as error:
        connection.connect()
    assert 'secret' not in str(error.value)


@pytest.mark.parametrize('scheme', [s for s in SCHEMES if s not in ('sentinel', 'cluster')])
def test_kombu_knows_every_scheme_and_prints_it_masked(scheme: str) -> None:
    host = '' if scheme in ('unix', 'embedded') else 'h'
    path = '/tmp/x' if scheme in ('unix', 'embedded') else ''
    connection = Connection(f'reliable+{scheme}://:secret@{host}{path}')
    assert connection.as_uri().startswith(f'reliable+{scheme}://:**@')
    assert 'secret' in connection.as_uri(include_password=True)
    assert 'secret' not in repr(connection)
    info = connection.info()
    assert info.pop('password') == 'secret'
    assert 'secret' not in str(info)
    assert connection.clone().info()['password'] == 'secret'


def test_alternates_survive_a_switch_with_their_query() -> None:
    connection = Connection(
        'reliable+redis://a/1?lease=4;reliable+rediss://:pw@b:7/2?lease=5;'
        'reliable+unix:///tmp/c.sock?db=3&lease=6'
    )
    assert connection.as_uri() == 'reliable+redis://a:6379/1?lease=4'
    connection.maybe_switch_next()
    assert connection.as_uri() == 'reliable+rediss://:**@b:7/2?lease=5'
    connection.maybe_switch_next()
    assert connection.as_uri() == 'reliable+unix:///tmp/c.sock?lease=6&db=3'
    connection.maybe_switch_next()
    assert connection.as_uri() == 'reliable+redis://a:6379/1?lease=4'
