"""The small process that shuts the embedded server down once nobody uses it any more.

One watcher runs per data directory; :mod:`kombu_reliable.embedded` starts it.  It only imports
the standard library, so that it starts fast and stays small.  The lock files of a directory
are defined here, because both sides need them.  All are taken with ``flock``, which the kernel
releases when the last process that inherited the file ends, however it ends:

``start.lock``
    held while somebody joins, and by the watcher while it shuts the server down;
``users.lock``
    shared by all users: whoever gets it exclusively knows that there are none;
``server.lock``, ``watcher.lock``
    inherited by the server and the watcher: a free lock means that the process is gone.

No process is ever signalled by its pid, which could be somebody else's by now: the watcher
keeps a connection to the server and sends ``SHUTDOWN`` over it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

START, USERS, SERVER, WATCHER = 'start.lock', 'users.lock', 'server.lock', 'watcher.lock'
GRACE_VARIABLE = 'KOMBU_RELIABLE_EMBEDDED_GRACE'

#: Seconds without users before the server is shut down.
DEFAULT_GRACE = 5.0
#: Seconds between two looks at the users.
POLL_INTERVAL = 0.5
#: Seconds that the server gets to shut down before the watcher lets go and tries again later.
STOP_TIMEOUT = 10.0


def open_lock(directory: str, name: str) -> int:
    """Open a lock file of the directory and return its descriptor (not inherited by exec).

    Raises:
        OSError: The file cannot be opened or created.

    Example:
        >>> users = open_lock('/data', USERS)
    """
    return os.open(os.path.join(directory, name), os.O_RDWR | os.O_CREAT, 0o600)


def try_lock(descriptor: int, operation: int = fcntl.LOCK_EX) -> bool:
    """Take a lock if that is possible at once; tell whether it was.

    Raises:
        OSError: The file system has no locks.

    Example:
        >>> try_lock(users, fcntl.LOCK_SH)
        True
    """
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def lock_if_free(directory: str, name: str) -> Iterator[int | None]:
    """Hold a lock for the block; yields its descriptor, or None if somebody else has the lock.

    A process started inside the block that inherits the descriptor keeps the lock afterwards.

    Raises:
        OSError: The lock file cannot be opened.

    Example:
        >>> with lock_if_free('/data', SERVER) as lock:
        ...     print('running' if lock is None else 'gone')
    """
    descriptor = open_lock(directory, name)
    try:
        yield descriptor if try_lock(descriptor) else None
    finally:
        os.close(descriptor)


def is_current(descriptor: int, directory: str, name: str) -> bool:
    """Tell whether an open lock file is still the one that the directory has under that name.

    It is not after somebody removed the directory, or closed the descriptor behind our back.

    Example:
        >>> is_current(users, '/data', USERS)
        True
    """
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(os.path.join(directory, name)))
    except OSError:
        return False


def socket_address(directory: str) -> str:
    """Return the path where the server of this directory listens.

    Example:
        >>> socket_address('/data')
        '/data/valkey.sock'
    """
    path = os.path.join(directory, 'valkey.sock')
    try:
        return os.readlink(path)  # the directory's path was too long for a socket
    except OSError:
        return path


class Watcher:
    """Watches the users of one directory and shuts its server down when they are gone.

    Args:
        directory: The data directory, without symbolic links.
        lock: The descriptor of the directory's ``watcher.lock``, locked.
        grace: Seconds without users before the server is shut down.

    Raises:
        OSError: The lock files cannot be opened.

    Example:
        >>> Watcher('/data', lock, grace=5.0).run()
    """

    def __init__(self, directory: str, lock: int, grace: float) -> None:
        self.directory = directory
        self.lock = lock
        self.grace = grace
        self.users = open_lock(directory, USERS)
        self.server = open_lock(directory, SERVER)
        self.connection: socket.socket | None = None

    def run(self) -> None:
        """Watch until there is nothing left to watch.  The caller then ends the process."""
        due: float | None = None  # when the grace period ends
        while is_current(self.lock, self.directory, WATCHER):
            self.check_connection()
            now = time.monotonic()
            if self.has_users():
                due = None
            elif due is None:
                due = now + self.grace
            if due is not None and now >= due:
                if self.finish():
                    return
                due = None
            time.sleep(POLL_INTERVAL if due is None else min(POLL_INTERVAL, max(due - now, 0.0)))
        # Somebody removed the directory.  A new one may have a server of its own already; the
        # connection still leads to the old server, which nobody else can reach any more.
        self.stop()

    def has_users(self) -> bool:
        """Tell whether a process uses the directory."""
        if not try_lock(self.users):
            return True
        fcntl.flock(self.users, fcntl.LOCK_UN)
        return False

    def finish(self) -> bool:
        """Shut the server down unless somebody uses it or joins; tell whether it is down.

        Takes at most `STOP_TIMEOUT` seconds.
        """
        try:
            with lock_if_free(self.directory, START) as start:
                if start is None or self.has_users() or not self.stop():
                    return False
                # Before start.lock: who joins next must see that there is no watcher any more.
                os.close(self.lock)
                return True
        except FileNotFoundError:  # the directory was removed this instant
            return False

    def stop(self) -> bool:
        """Ask the server to write its data and end; tell whether it did, within the timeout."""
        deadline = time.monotonic() + STOP_TIMEOUT
        asked: socket.socket | None = None
        while not try_lock(self.server):
            if time.monotonic() > deadline:
                return False
            self.connect()
            if self.connection is not asked:
                self.ask_to_end()
                asked = self.connection
            time.sleep(0.02)
        fcntl.flock(self.server, fcntl.LOCK_UN)
        return True

    def check_connection(self) -> None:
        """Connect if necessary, and make way for a new server if this one became unreachable."""
        self.connect()
        if self.connection is not None and not os.path.exists(socket_address(self.directory)):
            self.ask_to_end()  # the first user who reconnects starts a reachable one

    def connect(self) -> None:
        """Make sure that the connection is open, if a server listens."""
        if self.connection is not None and not self.is_closed(self.connection):
            return
        self.connection = None
        if not is_current(self.lock, self.directory, WATCHER):
            return  # what listens there now is not ours
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(1.0)
        try:
            connection.connect(socket_address(self.directory))
        except OSError:
            connection.close()
        else:
            connection.setblocking(False)  # nobody waits for an answer
            self.connection = connection

    def is_closed(self, connection: socket.socket) -> bool:
        """Tell whether the server closed the connection, and drop what it said otherwise."""
        try:
            if connection.recv(4096):
                return False
        except BlockingIOError:
            return False
        except OSError:
            pass
        connection.close()
        return True

    def ask_to_end(self) -> None:
        """Tell the server that the watcher is connected to, and no other, to shut down."""
        try:
            if self.connection is not None:
                # To "save" would be to write a snapshot; the AOF is synced in any case.
                self.connection.sendall(b'SHUTDOWN NOSAVE\r\n')
        except OSError:
            pass  # it is gone already


def grace_period() -> float:
    """Return the grace period in seconds, from ``KOMBU_RELIABLE_EMBEDDED_GRACE`` or the default.

    Example:
        >>> grace_period()
        5.0
    """
    try:
        return float(os.environ[GRACE_VARIABLE])
    except KeyError:
        return DEFAULT_GRACE
    except ValueError:
        print(f'{GRACE_VARIABLE} is not a number, using {DEFAULT_GRACE} s', file=sys.stderr)
        return DEFAULT_GRACE


def main() -> None:
    """Run ``embedded_watcher DIRECTORY [DESCRIPTOR]``; ends at once if another watcher runs.

    ``DESCRIPTOR`` is the number of an inherited descriptor of ``watcher.lock``, already locked.
    """
    directory = os.path.realpath(sys.argv[1])
    lock = int(sys.argv[2]) if len(sys.argv) > 2 else open_lock(directory, WATCHER)
    if not try_lock(lock):
        return
    os.ftruncate(lock, 0)
    os.write(lock, b'%d\n' % os.getpid())  # for people who look for the process
    Watcher(directory, lock, grace_period()).run()


if __name__ == '__main__':
    main()
