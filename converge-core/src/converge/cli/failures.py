"""Exceptions as messages on standard error and fixed exit codes."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterator

import cyclopts

from converge.cli.streams import drop
from converge.cli.wording import tell
from converge.errors import (
    ChannelError,
    ConfigError,
    ConvergeError,
    DeliveryTimeout,
    InputError,
    MessageError,
    NoSuchPool,
    PluginBroken,
    ResultTimeout,
    StoreError,
    TornRecord,
)
from converge.foreign import describe
from converge.plugins.blame import BrokenContract, check_command, owner_of, suspects
from converge.plugins.found import Found, title

DONE = 0
FAILED = 1
USAGE = 2
CONFIGURATION = 3
UNREACHABLE = 4
TIMED_OUT = 5
INTERRUPTED = 130

NUMBER = "CONVERGE_PROCESS"
"""The variable that tells a process of `converge run` that a supervisor has started it, and its number."""

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (KeyboardInterrupt, INTERRUPTED),
    (cyclopts.CycloptsError, USAGE),
    (NoSuchPool, CONFIGURATION),  # a pool is named by configuration, `pool_id`, also where a flag says it
    (InputError, USAGE),
    (ConfigError, CONFIGURATION),
    (ResultTimeout, TIMED_OUT),
    (DeliveryTimeout, TIMED_OUT),
    (TornRecord, FAILED),
    (StoreError, UNREACHABLE),  # unavailable, or unusable as it is: fix it, or this installation, and try again
    (ChannelError, UNREACHABLE),
    (MessageError, UNREACHABLE),
)


_SHORT_OF = {
    errno.ENOSPC: "no space is left where the output, or a file, was to be written",
    errno.EDQUOT: "the quota of this user is used up where the output, or a file, was to be written",
    errno.EMFILE: "this process may open no more files and sockets; raise its limit (`ulimit -n`, LimitNOFILE=)",
    errno.ENFILE: "this system has no more room for open files; raise fs.file-max, or end what holds them",
    errno.ENOMEM: "this system gives no more memory",
    errno.EAGAIN: "this system starts no more threads or processes; raise its limit (`ulimit -u`, TasksMax=, pids.max)",
}
"""What the system ran short of, which is no fault of anybody's code."""


def failed(error: BaseException) -> int:
    """Write what went wrong to standard error; return the exit code."""
    causes = list(_causes(error))
    if any(isinstance(cause, BrokenPipeError) for cause in causes):
        drop(sys.stdout)  # whoever read it has gone
        return FAILED
    for system_error in (behind for cause in causes for behind in _behind(cause)):
        if why := _outside(system_error):
            if system_error.errno == errno.ENOSPC:
                drop(sys.stdout)  # most likely that is what found no room; Python would try it again at its end
            told(f"{why} ({system_error})")
            return FAILED
    if any(not isinstance(cause, ConvergeError | cyclopts.CycloptsError | KeyboardInterrupt) for cause in causes):
        traceback.print_exception(error)
    told(*dict.fromkeys(_text(cause) for cause in causes))
    return min(code_of(cause) for cause in causes)


def _behind(error: BaseException | None) -> Iterator[OSError]:
    """Yield the errors of the system that led to one which says no more itself: nobody's, or a plugin's as such."""
    while error is not None and (isinstance(error, PluginBroken) or not isinstance(error, ConvergeError)):
        if isinstance(error, OSError):
            yield error
        error = error.__cause__ if error.__suppress_context__ else error.__context__


def _outside(error: OSError) -> str:
    """Return what is wrong with the system or the place where this command runs, or an empty text."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except FileNotFoundError:
            return "the folder in which this command runs was removed; change to another one"
    return _SHORT_OF.get(error.errno or 0, "")


def told(*texts: str) -> None:
    """Write to standard error what went wrong, a line each."""
    for text in texts:
        tell(f"converge: {text}")


def code_of(error: BaseException) -> int:
    """Return the exit code of one exception; 1 for an unexpected one."""
    found = next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
    return CONFIGURATION if found == FAILED and _culprit(error) else found


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in the groups that task groups make of them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


def _text(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if (
        isinstance(error, cyclopts.UnknownCommandError)
        and error.unused_tokens
        and error.unused_tokens[0].startswith("-")
    ):
        return _unknown_flag(error.unused_tokens[0])
    if isinstance(error, cyclopts.UnknownCommandError) and error.unused_tokens:
        return re.sub(r"Available commands: .*", "--help lists them.", str(error))
    if isinstance(error, cyclopts.UnusedCliTokensError) and error.unused_tokens:
        return f'"{error.unused_tokens[0]}" is one argument more than this command takes; its --help lists them'
    if isinstance(error, ConvergeError | cyclopts.CycloptsError):
        return " ".join(str(error).split(" ")) or type(error).__name__
    if found := _culprit(error):
        way = f"{check_command(found)} tells what is wrong with it, or report it to its authors"
        return (
            f"{error}; {way}"
            if isinstance(error, BrokenContract)
            else f"{title(found)} failed: {describe(error)}; {way}"
        )
    return f"internal error: {type(error).__name__}: {error}{suspects()}"


def _culprit(error: BaseException) -> Found | None:
    """Return the plugin that raised an error which nobody foresaw."""
    return None if isinstance(error, ConvergeError | cyclopts.CycloptsError) else owner_of(error)


def _unknown_flag(flag: str) -> str:
    """Return the message for a flag of a group of commands; the library would take others for commands."""
    near = difflib.get_close_matches(flag, ("--help", "--version"), n=1)
    return f"Unknown option: {flag}. " + (
        f"Did you mean {near[0]}?" if near else "It belongs behind a command; --help lists them."
    )
