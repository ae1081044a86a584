"""Standard output and error as the command had them, whatever user code did to `sys.stdout` and `sys.stderr`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TextIO


@contextmanager
def kept() -> Iterator[None]:
    """Put both streams back when left: those that were replaced, and, opened anew, those that were closed."""
    with ExitStack() as stack:
        for name in ("stdout", "stderr"):
            stack.callback(_put_back, name, getattr(sys, name), _spare(getattr(sys, name)))
        yield


_results: TextIO | None = None


@contextmanager
def results_apart() -> Iterator[None]:
    """Leave standard output to the results: what anybody else prints goes to standard error."""
    global _results  # of the process, as its streams are
    before, _results = _results, sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


def results() -> TextIO:
    """Return where results are written."""
    return sys.stdout if _results is None else _results


def complete() -> None:
    """Give a process that was started without a stream one that leads nowhere: the next file or socket would have its
    number, which programs that it starts would write into, and uvloop ends a process that closes such a socket.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            os.set_inheritable(nowhere := os.open(os.devnull, os.O_RDWR), True)
            # As Python's own, it keeps its number when it is closed.
            setattr(sys, name, open(nowhere, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  # to the process's end


def drop(stream: TextIO) -> None:
    """Discard what the stream still holds: it cannot be written, and Python must not try again on exit."""
    with suppress(OSError):  # io.UnsupportedOperation is one: it is in memory
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _spare(stream: TextIO) -> int | None:
    """Return another descriptor of what the stream writes to; None: it is one in memory."""
    try:
        return os.dup(stream.fileno())
    except OSError:  # io.UnsupportedOperation is one
        return None


def _put_back(name: str, stream: TextIO, spare: int | None) -> None:
    if spare is None:
        setattr(sys, name, stream)
    elif stream.closed:
        setattr(sys, name, open(spare, "w", encoding=stream.encoding, errors=stream.errors))  # noqa: SIM115  # to the end
    else:
        setattr(sys, name, stream)
        os.close(spare)
