"""Signals: the first SIGTERM or SIGINT asks the process to stop, the second ends it at once."""

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
from collections.abc import Iterator
from functools import partial
from types import FrameType

import anyio

log = logging.getLogger("converge.node")

SIGNALS = (signal.SIGTERM, signal.SIGINT)

THREADS_SEC = 0.5
"""How long threads that are about to end have for it, when all else is done."""


class StopAsked:
    """What `stop_asked` gives: wait for the first signal."""

    def __init__(self, reading: socket.socket) -> None:
        self._reading = reading
        self.number = 0
        """The first signal's number, or 0 as long as there was none."""

    async def wait(self) -> None:
        """Return once a signal has come; for one task at a time."""
        await anyio.wait_readable(self._reading)
        log.info("%s: stopping; once more to end at once", signal.Signals(self.number).name)


@contextlib.contextmanager
def stop_asked(within_sec: float) -> Iterator[StopAsked]:
    """Handle the signals until left; must be entered in the main thread. `within_sec` after the first the process ends, whatever keeps it.

    Plain handlers, not the event loop's: the second signal must end a process whose loop is blocked, too. They wake the loop through a socket, which
    is what any loop can wait for.
    """
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    asked = StopAsked(reading)

    def handle(number: int, _frame: FrameType | None) -> None:
        if asked.number:
            leave_at_once(128 + number)
        asked.number = number
        writing.send(b"\0")
        limit.function = partial(_leave_late, 128 + number, within_sec)
        limit.start()

    limit = threading.Timer(within_sec, lambda: None)
    limit.daemon = True
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield asked
    finally:
        limit.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        reading.close()
        writing.close()


def _leave_late(code: int, within_sec: float) -> None:
    """End a process whose event loop a handler blocks: it cannot be cancelled, and nothing else can run."""
    last = threading.Timer(THREADS_SEC, leave_at_once, [code])  # what blocks the loop may hold a lock of the log's
    last.daemon = True
    last.start()
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
    log.error("the process did not stop within %.0f s, something blocks its event loop; it ends now", within_sec, extra={"detail": stack})
    leave_at_once(code)


def leave_past_threads(code: int) -> None:
    """End the process now if a thread is left that Python would wait for without end: of a plain handler that never returned, and was abandoned."""
    until = time.monotonic() + THREADS_SEC
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                log.warning("a plain handler did not return (%s); the process ends without it", thread.name)
                leave_at_once(code)


def leave_at_once(code: int) -> None:
    """End the process now, past all clean-up: what it held goes back with its lease."""
    for stream in (sys.stdout, sys.stderr):
        # A broken pipe, or a write that was interrupted: nothing more can be done for it.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            stream.flush()
    os._exit(code)
