"""The driver's errors as the contract's, in one place. No text of a URL, and no password, gets through."""

from __future__ import annotations

import re

from redis import exceptions as driver

from converge.errors import (
    ConvergeError,
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)

_LIMIT = 300
"""Characters of a server's message that an error repeats."""

# What a server says before a command, or a script's first write, has changed anything: in the order in which they are
# looked for, since a script's error has the words of the command that failed within its own.
_REFUSALS: tuple[tuple[str, type[NotApplied], str], ...] = (
    ("OOM", StoreFull, "has reached maxmemory: raise it, or shorten retention"),
    ("MISCONF", StoreFull, "refuses writes since it cannot save to disk"),
    ("READONLY", StoreUnavailable, "is a replica and takes no writes; name the primary"),
    ("LOADING", StoreUnavailable, "is still loading its data"),
    ("MASTERDOWN", StoreUnavailable, "is a replica that has lost its primary"),
    ("NOREPLICAS", StoreUnavailable, "has too few replicas for min-replicas-to-write"),
    ("BUSY", StoreBusy, "is busy with a script of another client"),
    ("NOAUTH", StoreRefused, "asks for a password; set password_file or CONVERGE_REDIS_PASSWORD"),
    ("WRONGPASS", StoreRefused, "refuses the user or the password"),
    (
        "max number of clients reached",
        StoreBusy,
        "has no connection left; raise maxclients, or lower the option connections",
    ),
    ("DENIED", StoreRefused, "is in protected mode"),
)


def is_answer(error: BaseException) -> bool:
    """Return whether the server has spoken; the driver counts some of its answers among the broken connections."""
    return isinstance(error, driver.ResponseError) or _code(error) is not None


def of_connecting(error: BaseException, where: str) -> ConvergeError:
    """Return what a failed connect means: nothing was sent."""
    if is_answer(error):
        return _of_answer(error, where, writes=False)
    return StoreUnavailable(f"redis at {where} cannot be reached: {_text(error)}")


def of_call(error: BaseException, where: str, *, writes: bool) -> ConvergeError:
    """Return what an error after sending means: a write may have been applied."""
    if is_answer(error):
        return _of_answer(error, where, writes=writes)
    if writes:
        return OutcomeUnknown(
            f"redis at {where} gave no answer ({_text(error)}); the call may have been applied, read before you repeat "
            "it"
        )
    return StoreUnavailable(f"redis at {where} gave no answer: {_text(error)}")


def _of_answer(error: BaseException, where: str, *, writes: bool) -> ConvergeError:
    """Return what an error that the server answered means.

    A script's first write is one that the server refuses if it refuses any; an error that is none of those may have
    stopped it half-way.
    """
    code, text = _code(error), _text(error)
    for word, refusal, what in _REFUSALS:
        if word == code or re.search(rf"(^|[\s-]){word}(\s|$)", text):
            return refusal(f"redis at {where} {what} ({text}); nothing was written")
    if writes and "script" in text:
        return OutcomeUnknown(f"redis at {where} stopped a script: {text}; find out why before you repeat it")
    return StoreRefused(f"redis at {where} refuses: {text}")


def _code(error: BaseException) -> str | None:
    """Return the first word of an answer, where the driver has taken it out of the text."""
    found = getattr(error, "status_code", None)
    return found if isinstance(found, str) else None


def _text(error: BaseException) -> str:
    text = str(error).replace("\n", " ") or type(error).__name__
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."
