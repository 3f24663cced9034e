"""Runs those who wait on connections, inside kombu's event loop or without one."""

from __future__ import annotations

import contextlib
import selectors
import signal
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, Protocol

from kombu_reliable.transport.line import Line

__all__ = ('Participant', 'Reactor')

#: How often a server inside this process is asked, in seconds.
SIMULATED_PAUSE = 0.01

#: Pollers round up to whole milliseconds, so they are asked to return this much earlier, in
#: seconds, and the rest is slept.
COARSE = 0.001

#: Longest sleep without a look around, in seconds.
LONGEST_WAIT = 1.0


class Participant(Protocol):
    """Somebody who waits on connections."""

    def turn(self) -> None:
        """Does what can be done without waiting."""

    def receive(self, line: Line) -> None:
        """Handles what has arrived on one of its lines."""

    def lines(self) -> Iterable[Line]:
        """The lines that are open now."""

    def due_in(self) -> float | None:
        """Seconds until the next turn is needed, whatever arrives."""

    def hand_out(self) -> bool:
        """Gives messages to consumers for a short while; True if there were any."""

    def has_messages(self) -> bool:
        """Whether messages wait to be handed out."""


class Reactor:
    """Gives each participant its turns.

    Args:
        participants: who takes part; the list may change.
    """

    def __init__(self, participants: list[Participant]) -> None:
        self.participants = participants
        self._loop: Any = None
        self._watched: dict[int, Line] = {}
        self._timer: Any = None
        self._timer_at = float('inf')
        self._nudges: tuple[socket.socket, socket.socket] | None = None
        self._listens_to_signals = False

    # -- without an event loop ---------------------------------------------------

    def drain(self, timeout: float | None) -> None:
        """Waits until messages were handed out.

        Args:
            timeout: seconds to wait; None for ever, 0 for what is there already.

        Raises:
            socket.timeout: nothing came.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._turn()
            if self._hand_out():
                return
            remaining = LONGEST_WAIT if deadline is None else deadline - time.monotonic()
            if remaining <= 0 and deadline is not None:
                raise TimeoutError(f'no message within {timeout} s')
            self._wait(min(remaining, LONGEST_WAIT, self._due_in()))

    def _wait(self, timeout: float) -> None:
        owners = {line: who for who in self.participants for line in who.lines()}
        polled = {line: fd for line in owners if (fd := line.fileno()) is not None}
        if not polled:
            time.sleep(min(timeout, SIMULATED_PAUSE))
            return
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for line, fd in polled.items():
                selector.register(fd, selectors.EVENT_READ, line)
            ready = selector.select(max(0.0, timeout - COARSE))
        for key, _ in ready:
            owners[key.data].receive(key.data)
        if not ready:
            time.sleep(max(0.0, min(COARSE, end - time.monotonic())))

    def _turn(self) -> None:
        for who in self.participants:
            who.turn()

    def _hand_out(self) -> bool:
        return any([who.hand_out() for who in self.participants])

    def _due_in(self) -> float:
        waits = [wait for who in self.participants if (wait := who.due_in()) is not None]
        return max(0.0, min(waits, default=LONGEST_WAIT))

    # -- with kombu's event loop -------------------------------------------------

    def register(self, loop: Any) -> None:
        """Takes part in an event loop until :meth:`unregister`."""
        self.unregister()
        self._loop = loop
        reader, writer = self._nudges = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        loop.add_reader(reader, self._on_nudge)
        loop.on_tick.add(self._on_tick)
        self._listen_to_signals(writer)

    def unregister(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        loop.on_tick.discard(self._on_tick)
        for fd in list(self._watched):
            self._unwatch(loop, fd)
        self._cancel_timer()
        if self._listens_to_signals:
            signal.set_wakeup_fd(-1)
            self._listens_to_signals = False
        assert self._nudges is not None
        reader, writer = self._nudges
        with contextlib.suppress(Exception):
            loop.remove(reader)
        reader.close()
        writer.close()
        self._nudges = None

    def _listen_to_signals(self, writer: socket.socket) -> None:
        """A signal sets a flag that Celery reads once per turn: let the turn come at once."""
        if threading.current_thread() is not threading.main_thread():
            return
        previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if previous == -1:
            self._listens_to_signals = True
        else:
            signal.set_wakeup_fd(previous, warn_on_full_buffer=False)

    def nudge(self) -> None:
        """Makes the event loop turn at once; from any thread."""
        if self._nudges is not None:
            with contextlib.suppress(OSError):
                self._nudges[1].send(b'\0')

    def _on_nudge(self) -> None:
        assert self._nudges is not None
        with contextlib.suppress(BlockingIOError):
            self._nudges[0].recv(4096)
        self._after_messages()

    def _on_tick(self) -> None:
        self._turn()
        self._watch_lines()
        self._set_timer(self._due_in())
        if any(who.has_messages() for who in self.participants):
            self.nudge()

    def _on_readable(self, line: Line) -> None:
        for who in self.participants:
            if line in who.lines():
                who.receive(line)
        self._after_messages()

    def _after_messages(self) -> None:
        """What is left goes out in the next turn: Celery looks for a shutdown in between."""
        self._hand_out()
        if any(who.has_messages() for who in self.participants):
            self.nudge()

    def _watch_lines(self) -> None:
        wanted = {
            fd: line
            for who in self.participants
            for line in who.lines()
            if (fd := line.fileno()) is not None
        }
        if wanted == self._watched:
            return
        for fd, line in list(self._watched.items()):
            if wanted.get(fd) is not line:
                self._unwatch(self._loop, fd)
        for fd, line in wanted.items():
            if fd not in self._watched:
                self._loop.add_reader(fd, self._on_readable, line)
                self._watched[fd] = line

    def _unwatch(self, loop: Any, fd: int) -> None:
        self._watched.pop(fd, None)
        with contextlib.suppress(Exception):
            loop.remove(fd)

    def _set_timer(self, delay: float) -> None:
        """One timer of the loop stands for the nearest moment that is due."""
        at = time.monotonic() + delay
        if delay >= LONGEST_WAIT or (self._timer is not None and self._timer_at <= at):
            return
        self._cancel_timer()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, delay - COARSE), self._on_timer)

    def _on_timer(self) -> None:
        time.sleep(max(0.0, min(COARSE, self._timer_at - time.monotonic())))
        self._timer, self._timer_at = None, float('inf')
        self._turn()
        self._watch_lines()
        self._after_messages()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, float('inf')
