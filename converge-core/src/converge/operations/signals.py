"""Signals: the first SIGTERM, SIGINT or SIGHUP asks the process to stop, a second SIGTERM or SIGINT ends it at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from math import inf
from types import FrameType
from typing import Any, NoReturn

import anyio

from converge import forks
from converge.foreign import CTRL_C

log = logging.getLogger("converge.node")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""The terminal was closed: by the system and by its shell, each of which says so. Windows has none."""

THREADS_SEC = 0.5
"""How long threads that are about to end have for it, when all else is done."""


class StopAsked:
    """What `stop_asked` gives: wait for the first signal."""

    def __init__(self, reading: socket.socket) -> None:
        self._reading = reading
        self.number = 0
        """The first signal's number, or 0 as long as there was none."""
        self.loop_fd = -1
        """What wakes the event loop after a signal, as long as it is ours to tell it."""

    async def wait(self) -> None:
        """Return once a signal has come; for one task at a time."""
        await anyio.wait_readable(self._reading)
        again = "SIGTERM ends it" if self.number == HANG_UP else "once more to end"
        log.info("%s: stopping; %s at once", signal.Signals(self.number).name, again)


@contextlib.contextmanager
def stop_asked(within_sec: float, at_once: Callable[[], None] = lambda: None) -> Iterator[StopAsked]:
    """Handle the signals until left; must be entered in the main thread, with the event loop running. `within_sec`
    after the first the process ends. `at_once` is called in a thread before it ends without a clean-up.

    A thread hears them, not a handler: a second signal must end a process whose main thread is blocked, too, and the
        system may deliver a signal to
    any thread, so that nothing would run the handlers then. It wakes the loop through a socket, which is what any loop
    can wait for.
    """
    (loops, to_loop), (threads, to_thread) = socket.socketpair(), socket.socketpair()
    for one in (loops, to_loop, to_thread):
        one.setblocking(False)
    asked = StopAsked(loops)

    def handle(number: int, _frame: FrameType | None) -> None:
        # Python's own part has told the thread already, unless somebody has taken its place meanwhile, such as a loop's
        # `add_signal_handler`.
        now = signal.set_wakeup_fd(to_thread.fileno(), warn_on_full_buffer=False)
        if now != to_thread.fileno():
            signal.set_wakeup_fd(now, warn_on_full_buffer=False)
            asked.loop_fd = -1  # the loop was entered again, and has closed it
            to_thread.send(bytes([number]))

    before = {number: signal.signal(number, handle) for number in _heard()}
    CTRL_C.is_raised = False
    asked.loop_fd = signal.set_wakeup_fd(to_thread.fileno(), warn_on_full_buffer=False)
    # A process inherits its parent's mask, a thread its starter's. By the third signal a loop hears of a child's end.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*before, signal.SIGCHLD))
    heard = partial(_hear, threads, to_loop, asked, before.keys(), within_sec, at_once)
    thread = threading.Thread(target=heard, name="converge-signals", daemon=True)
    thread.start()
    forks.watch(asked, lambda _: _lay_down(before))
    try:
        yield asked
    finally:
        now = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(asked.loop_fd if now == to_thread.fileno() else now)
        CTRL_C.is_raised = True
        for number, handler in before.items():
            signal.signal(number, handler)
        to_thread.close()
        thread.join()
        for one in (loops, to_loop, threads):
            one.close()


def _lay_down(before: Mapping[signal.Signals, Any]) -> None:
    """Hear signals in a forked child as a new process does; the socket is the parent's, which would stop for it."""
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def _heard() -> tuple[signal.Signals, ...]:
    """Return what asks the process to stop. Where SIGHUP is ignored, as by nohup, or handled, that stays so."""
    is_free = HANG_UP is not None and signal.getsignal(HANG_UP) is signal.SIG_DFL
    return (*SIGNALS, HANG_UP) if HANG_UP is not None and is_free else SIGNALS


def _hear(
    threads: socket.socket,
    to_loop: socket.socket,
    asked: StopAsked,
    heard: Collection[int],
    within_sec: float,
    at_once: Callable[[], None],
) -> None:
    """Read signals until the other end is closed; end the process at the second, or if the first has no effect."""
    until = inf
    while True:
        try:
            threads.settimeout(max(0.001, until - time.monotonic()) if until < inf else None)
            numbers = threads.recv(64)
        except TimeoutError:
            at_once()
            _leave_late(128 + asked.number, within_sec)
        if not numbers:
            return
        if asked.loop_fd != -1:
            with contextlib.suppress(OSError):  # it is full: then the loop is being woken anyway
                os.write(asked.loop_fd, numbers)
        for number in numbers:
            if number in SIGNALS and asked.number:
                at_once()
                leave_at_once(128 + number)
            elif number in heard and not asked.number:
                asked.number = number
                until = time.monotonic() + within_sec
                to_loop.send(b"\0")


def _leave_late(code: int, within_sec: float) -> NoReturn:
    """End a process whose event loop a handler blocks: it cannot be cancelled, and nothing else can run."""
    last = threading.Timer(THREADS_SEC, leave_at_once, [code])  # what blocks the loop may hold a lock of the log's
    last.daemon = True
    last.start()
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
    log.error(
        "the process did not stop within %.0f s, something blocks its event loop; it ends now",
        within_sec,
        extra={"detail": stack},
    )
    leave_at_once(code)


def leave_past_threads(code: int) -> None:
    """End the process now if a thread is left that Python would wait for: of a handler that was abandoned."""
    until = time.monotonic() + THREADS_SEC
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                log.warning("a plain handler did not return (%s); the process ends without it", thread.name)
                leave_at_once(code)


def leave_at_once(code: int) -> NoReturn:
    """End the process now, past all clean-up: what it held goes back with its lease."""
    flushing = threading.Thread(target=_flush, daemon=True)  # a stream may be locked by what is blocked
    flushing.start()
    flushing.join(THREADS_SEC)
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # A broken pipe, or a stream that is closed: nothing more can be done for it.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            stream.flush()
