"""Runs those who wait on connections, inside kombu's event loop or without one."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

from kombu_reliable.transport.line import Line

__all__ = ('Participant', 'Reactor')

#: How often a server inside this process is asked, in seconds.
SIMULATED_PAUSE = 0.01

#: Messages are handed out for so long before the event loop gets its turn, in seconds.
SLICE = 0.005

#: Pollers round up to whole milliseconds, so they are asked to return this much earlier, in
#: seconds, and the rest is slept.
COARSE = 0.001

#: How long a settlement waits for a claim to travel with, in seconds.
FLUSH_PAUSE = 0.004

#: Longest sleep without a look around, in seconds.
LONGEST_WAIT = 1.0


class Participant(Protocol):
    """Somebody who waits on connections."""

    def turn(self) -> None:
        """Does what can be done without waiting."""

    def flush(self) -> None:
        """Sends what may wait for a while but not for long."""

    def receive(self, line: Line) -> None:
        """Handles what has arrived on one of its lines."""

    def lines(self) -> Iterable[Line]:
        """The lines that are open now."""

    def due_in(self) -> float | None:
        """Seconds until the next turn is needed, whatever arrives."""

    def has_messages(self) -> bool:
        """Whether messages wait to be handed out."""

    def hand_out_one(self) -> None:
        """Gives the next message to its consumer."""


def _nothing() -> None:
    pass


class Reactor:
    """Gives each participant its turns.

    Args:
        participants: who takes part; the list may change.
    """

    def __init__(self, participants: list[Participant]) -> None:
        self.participants = participants
        self._loop: Any = None
        self._watched: set[int] = set()
        self._timer: Any = None
        self._flush_timer: Any = None
        self._flush_wanted = False
        self._timer_at = float('inf')
        self._nudges: tuple[socket.socket, socket.socket] | None = None
        self._listens_to_signals = False
        self._thread = 0
        self._pid = 0
        self._waiting = False
        #: No message was handed out in this turn of the event loop.
        self._fresh = True
        self._timer_handed_out = False

    # -- without an event loop ---------------------------------------------------

    def drain(
        self, timeout: float | None, stopping: Callable[[], bool | None] = lambda: None
    ) -> None:
        """Waits until messages were handed out.

        Args:
            timeout: seconds to wait; None for ever, 0 for what is there already.
            stopping: whether the program is about to end, which a signal may have told it; None
                if nobody knows.

        Raises:
            socket.timeout: nothing came, or the program is about to end.
        """
        if stopping() is None:
            self._drain(timeout, stopping)
            return
        self._listen_to_signals(self._open_nudges()[1])
        try:
            self._drain(timeout, stopping)
        finally:
            self._ignore_signals()

    def _drain(self, timeout: float | None, stopping: Callable[[], bool | None]) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        self._thread = threading.get_ident()
        looked = False
        while True:
            self._turn()
            self._flush()
            if self._hand_out():
                return
            remaining = LONGEST_WAIT if deadline is None else deadline - time.monotonic()
            if looked and remaining <= 0:
                raise TimeoutError(f'no message within {timeout} s')
            if stopping():
                raise TimeoutError('no message before the program was told to stop')
            due_in = self._due_in()
            self._wait(max(0.0, min(remaining, LONGEST_WAIT if due_in is None else due_in)))
            looked = True

    def _wait(self, timeout: float) -> None:
        polled = {line: line.fileno() for line in self._lines()}
        if None in polled.values():
            time.sleep(min(timeout, SIMULATED_PAUSE))
            return
        end = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for line, fd in polled.items():
                assert fd is not None
                selector.register(fd, selectors.EVENT_READ, line)
            selector.register(self._open_nudges()[0], selectors.EVENT_READ)
            self._waiting = True
            ready = selector.select(max(0.0, timeout - COARSE))
            self._waiting = False
        for key, _ in ready:
            if key.data is None:
                self._swallow_nudges()
            else:
                self._receive(key.data)
        if not ready:
            time.sleep(max(0.0, min(COARSE, end - time.monotonic())))

    def _lines(self) -> list[Line]:
        return [line for who in self.participants for line in who.lines()]

    def _receive(self, line: Line) -> None:
        """What was closed meanwhile belongs to nobody any more."""
        for who in self.participants:
            if line in who.lines():
                who.receive(line)

    def _turn(self) -> None:
        for who in self.participants:
            who.turn()

    def _flush(self) -> None:
        for who in self.participants:
            who.flush()

    def _hand_out(self) -> bool:
        """Gives messages to consumers for a short while; True if there were any."""
        end = time.monotonic() + SLICE
        handed_out = False
        for who in self.participants:
            while who.has_messages():
                who.hand_out_one()
                handed_out = True
                if time.monotonic() >= end:
                    return True
        return handed_out

    def _due_in(self) -> float | None:
        waits = [wait for who in self.participants if (wait := who.due_in()) is not None]
        return max(0.0, min(waits)) if waits else None

    # -- with kombu's event loop -------------------------------------------------

    def register(self, loop: Any) -> None:
        """Takes part in an event loop until :meth:`unregister`."""
        self.unregister()
        self._loop = loop
        self._thread = threading.get_ident()
        self._pid = os.getpid()
        reader, writer = self._open_nudges()
        loop.add_reader(reader, self._on_nudge)
        loop.on_tick.add(self._on_tick)
        self._listen_to_signals(writer)

    @property
    def in_loop(self) -> bool:
        return self._loop is not None

    def unregister(self) -> None:
        loop, self._loop = self._loop, None
        if loop is None or os.getpid() != self._pid:
            # A forked child shares the loop's poller with its parent, whose loop it is.
            return
        loop.on_tick.discard(self._on_tick)
        for line in self._lines():
            line.on_close = _nothing
        for fd in self._watched:
            with contextlib.suppress(Exception):
                loop.remove(fd)
        self._watched.clear()
        self._cancel_timer()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        self._ignore_signals()
        reader, _ = self._open_nudges()
        with contextlib.suppress(Exception):
            loop.remove(reader)

    def close(self) -> None:
        """Leaves the event loop and closes what it was nudged with."""
        self.unregister()
        nudges, self._nudges = self._nudges, None
        for end in nudges or ():
            end.close()

    def _listen_to_signals(self, writer: socket.socket) -> None:
        """A signal sets a flag that Celery reads once per turn: let the turn come at once."""
        try:
            previous = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        except ValueError:  # this is not the main thread
            return
        if previous == -1:
            self._listens_to_signals = True
        else:
            signal.set_wakeup_fd(previous, warn_on_full_buffer=False)

    def _ignore_signals(self) -> None:
        if self._listens_to_signals:
            signal.set_wakeup_fd(-1)
            self._listens_to_signals = False

    # -- nudges ------------------------------------------------------------------

    def _open_nudges(self) -> tuple[socket.socket, socket.socket]:
        if self._nudges is None:
            self._nudges = socket.socketpair()
            for end in self._nudges:
                end.setblocking(False)
        return self._nudges

    def nudge(self) -> None:
        """Ends a wait, or makes the event loop turn at once; from any thread."""
        nudges = self._nudges  # another thread may be closing it
        if nudges is not None:
            with contextlib.suppress(OSError):
                nudges[1].send(b'\0')

    def flush_soon(self) -> None:
        """Something waits for :meth:`Participant.flush`; from any thread."""
        if self._waiting or threading.get_ident() != self._thread:
            self._flush_wanted = True
            self.nudge()
        elif self._loop is not None and self._flush_timer is None:
            self._flush_timer = self._loop.call_later(FLUSH_PAUSE, self._on_flush_timer)

    def _on_flush_timer(self) -> None:
        self._flush_timer = None
        self._flush()

    def _swallow_nudges(self) -> None:
        with contextlib.suppress(OSError):
            self._open_nudges()[0].recv(4096)

    def _on_nudge(self) -> None:
        self._swallow_nudges()
        if self._flush_wanted:
            self._flush_wanted = False
            self.flush_soon()
        self._after_messages()

    def _on_tick(self) -> None:
        self._fresh = not self._timer_handed_out
        self._timer_handed_out = False
        self._turn()
        self._watch_lines()
        # The loop has decided already how long it will wait in this turn.
        if self._set_timer() or self._has_messages():
            self.nudge()

    def _has_messages(self) -> bool:
        return any(who.has_messages() for who in self.participants)

    def _on_readable(self, line: Line) -> None:
        self._receive(line)
        self._after_messages()

    def _after_messages(self) -> None:
        """Once a turn; what is left goes out in the next.

        In between Celery settles what has ended, and looks for a shutdown.
        """
        if self._fresh:
            self._fresh = not self._hand_out()
        self._set_timer()
        if self._has_messages():
            self.nudge()

    def _watch_lines(self) -> None:
        for line in self._lines():
            fd = line.fileno()
            if fd is not None and fd not in self._watched:
                self._loop.add_reader(fd, self._on_readable, line)
                self._watched.add(fd)
                line.on_close = partial(self._unwatch, fd)

    def _unwatch(self, fd: int) -> None:
        """Runs while ``fd`` is still open.  Later it could be somebody else's, and a copy in a
        forked child would keep the event loop busy with a connection that has ended."""
        self._watched.discard(fd)
        if self._loop is not None and os.getpid() == self._pid:
            with contextlib.suppress(Exception):
                self._loop.remove(fd)

    def _set_timer(self) -> bool:
        """One timer of the loop stands for the nearest moment that is due; True if it is new."""
        delay = self._due_in()
        if delay is None or self._loop is None:
            return False
        at = time.monotonic() + delay
        if self._timer is not None and self._timer_at <= at:
            return False
        self._cancel_timer()
        self._timer_at = at
        self._timer = self._loop.call_later(max(0.0, delay - COARSE), self._on_timer)
        return True

    def _on_timer(self) -> None:
        time.sleep(max(0.0, min(COARSE, self._timer_at - time.monotonic())))
        self._timer, self._timer_at = None, float('inf')
        self._turn()
        self._watch_lines()
        self._fresh = True
        self._after_messages()
        self._timer_handed_out = not self._fresh

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, float('inf')
