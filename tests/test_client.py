"""From URLs and settings to connections: which class, with which security."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from celery import Celery
from kombu import Connection
from redis.connection import Connection as PlainConnection
from redis.connection import SSLConnection, UnixDomainSocketConnection

from kombu_reliable import InvalidURL, Options, parse_url
from kombu_reliable.client import connection_factory, connection_kwargs

NO_CHECK = {'ssl_cert_reqs': ssl.CERT_NONE}


@pytest.mark.parametrize(
    ('url', 'options', 'expected'),
    [
        ('reliable+redis://h', {}, PlainConnection),
        ('reliable+rediss://h', {}, SSLConnection),
        ('reliable+valkeys://h', {}, SSLConnection),
        ('reliable+redis://h', {'ssl': {}}, SSLConnection),
        ('reliable+redis://h', {'ssl_ca_certs': '/ca'}, SSLConnection),
        ('reliable+unix:///s', {}, UnixDomainSocketConnection),
    ],
)
def test_tls_is_used_where_anything_asks_for_it(
    url: str, options: dict[str, Any], expected: type
) -> None:
    parsed = Options.parse(options)
    assert connection_factory(parse_url(url), parsed) is expected
    expected(**connection_kwargs(parse_url(url), parsed))


@pytest.mark.parametrize('use_ssl', [True, {'ssl_cert_reqs': 'required'}])
def test_broker_use_ssl_is_never_ignored(use_ssl: Any) -> None:
    connection = Connection('reliable+redis://h', ssl=use_ssl)
    endpoint = connection.transport.endpoint
    assert connection_factory(endpoint.url, endpoint.options) is SSLConnection


def test_certificates_are_checked_unless_told_otherwise() -> None:
    url = parse_url('reliable+rediss://h')
    strict = connection_kwargs(url, Options())
    assert strict['ssl_cert_reqs'] is ssl.CERT_REQUIRED
    loose = connection_kwargs(url, Options.parse({'ssl_cert_reqs': 'none'}))
    assert (loose['ssl_cert_reqs'], loose['ssl_check_hostname']) == (ssl.CERT_NONE, False)
    with pytest.raises(InvalidURL, match='required, optional or none'):
        connection_kwargs(url, Options.parse({'ssl_cert_reqs': 'maybe'}))


@pytest.mark.parametrize('scheme', ['redis', 'rediss'])
def test_results_honour_redis_backend_use_ssl(scheme: str) -> None:
    app = Celery(backend=f'reliable+{scheme}://u:pw@h:7/3')
    app.conf.redis_backend_use_ssl = NO_CHECK
    params = app.backend.connparams
    assert params['connection_class'] is SSLConnection
    assert params['ssl_cert_reqs'] is ssl.CERT_NONE
    assert (params['host'], params['port'], params['db']) == ('h', 7, 3)
    assert (params['username'], params['password']) == ('u', 'pw')
    app.backend.client.connection_pool.make_connection()


@pytest.mark.parametrize('where', ['redis://h', 'rediss://h', 'unix:///tmp/x.sock?db=2'])
def test_the_result_backend_can_make_its_connections(where: str) -> None:
    app = Celery(backend=f'reliable+{where}')
    app.backend.client.connection_pool.make_connection()
