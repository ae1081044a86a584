"""The server's errors as the contract's, in one place. No text of a URL, and no password, gets through."""

from __future__ import annotations

import logging
import re
import ssl

from hiredis import HiredisError, ProtocolError, ReplyError

from converge.errors import (
    ConvergeError,
    NotApplied,
    OutcomeUnknown,
    StoreBusy,
    StoreFull,
    StoreRefused,
    StoreUnavailable,
)
from converge_store_redis.place import Address

log = logging.getLogger("converge.store.redis")

_LIMIT = 300
"""Characters of a server's message that an error repeats."""

_OF_KEY = "WRONGTYPE"
_OF_RIGHT = "NOPERM|ACL failure|The user executing the script can't"
"""The last is what Redis 6.2 says of a command within a script."""

# What a server says before a command, or a script's first write, has changed anything: in the order in which they are
# looked for, since a script's error has the words of the command that failed within its own.
_REFUSALS: tuple[tuple[str, type[NotApplied], str], ...] = (
    ("OOM", StoreFull, "has reached maxmemory: raise it, or shorten retention"),
    ("MISCONF", StoreFull, "refuses writes since it cannot save to disk"),
    ("READONLY", StoreUnavailable, "is a replica and takes no writes; name the primary"),
    ("LOADING", StoreUnavailable, "is still loading its data"),
    ("MASTERDOWN", StoreUnavailable, "is a replica that has lost its primary"),
    ("NOREPLICAS", StoreUnavailable, "has too few replicas for min-replicas-to-write"),
    ("CLUSTERDOWN", StoreUnavailable, "is a node of a cluster that has no owner for the slot now"),
    ("TRYAGAIN", StoreUnavailable, "is a node of a cluster that is moving the slot"),
    ("ASK", StoreUnavailable, "is a node of a cluster that is moving the slot"),
    ("MOVED", StoreRefused, "is a node of a cluster; write redis+cluster://HOST:PORT"),
    ("BUSY", StoreBusy, "is busy with a script of another client"),
    (_OF_KEY, StoreRefused, "has a key of another program under our prefix; choose another network, or remove it"),
    ("NOAUTH", StoreRefused, "asks for a password; set password_file or CONVERGE_REDIS_PASSWORD"),
    ("WRONGPASS", StoreRefused, "refuses the user or the password"),
    (
        _OF_RIGHT,
        StoreRefused,
        "does not give the user the rights that the store needs; the reference lists them",
    ),
    (
        "max number of clients reached",
        StoreBusy,
        "has no connection left; raise maxclients, or lower the option connections",
    ),
    ("DENIED", StoreRefused, "is in protected mode"),
    ("DB index is out of range", StoreRefused, "has no database of that number (its setting databases)"),
)

_HALF_WAY = (_OF_KEY, _OF_RIGHT)
"""Those that a script may also meet after its first write."""

_SCRIPT = "@user_script"
"""What an error of a command within a script has in it."""

_WHERE = re.compile(r"\.? script: [0-9a-f]+, on @user_script:\d+\.$")
"""The end of such an error: nobody who reads it knows scripts by their digests."""

_ELSEWHERE = re.compile(r"(^|[\s-])(READONLY|MASTERDOWN|CLUSTERDOWN)(\s|$)")
_MOVED = re.compile(r"MOVED \d+ (.*):(\d+)$")


def is_no_script(answer: ReplyError) -> bool:
    """Return whether the server does not know the script of an EVALSHA."""
    return str(answer).startswith("NOSCRIPT")


def is_elsewhere(answer: ReplyError) -> bool:
    """Return whether another server is the one to ask, now or soon."""
    return _ELSEWHERE.search(str(answer)) is not None


def moved_to(answer: ReplyError, asked: str) -> Address | None:
    """Return which node of a cluster the answer names, if it is of that kind; a node without a name is on the host that
    was asked.
    """
    found = _MOVED.match(str(answer))
    return Address(found[1] or asked.rpartition(":")[0], int(found[2])) if found else None


def of_connecting(error: BaseException, where: str) -> ConvergeError:
    """Return what a failed connect means: nothing was sent."""
    if isinstance(error, ReplyError):
        return of_answer(error, where, writes=False)
    if isinstance(error, ProtocolError):
        return StoreRefused(f"something else than redis answers at {where}: {_text(error)}")
    if isinstance(error, ssl.SSLError) and "CERTIFICATE" not in str(error):
        text = "is it its TLS port? without TLS the URL begins with redis://"
        return StoreUnavailable(f"redis at {where} does not speak TLS with us ({_text(error)}); {text}")
    if isinstance(error, TimeoutError):
        text = "no answer in time; is it redis, and TLS (rediss://) spoken on its TLS port alone?"
        return StoreUnavailable(f"redis at {where} cannot be reached: {text}")
    return StoreUnavailable(f"redis at {where} cannot be reached: {_text(error)}")


def of_call(error: BaseException, where: str, *, writes: bool) -> ConvergeError:
    """Return what an error after sending means: a write may have been applied."""
    if isinstance(error, ReplyError):
        return of_answer(error, where, writes=writes)
    if writes:
        return OutcomeUnknown(
            f"redis at {where} gave no answer ({_text(error)}); the call may have been applied, read before you repeat "
            "it"
        )
    return StoreUnavailable(f"redis at {where} gave no answer: {_text(error)}")


def of_answer(answer: HiredisError, where: str, *, writes: bool) -> ConvergeError:
    """Return what an error that the server answered means.

    A script's first write is one that the server refuses if it refuses any; an error that is none of those may have
    stopped it half-way.
    """
    text = _text(answer)
    for word, refusal, what in _REFUSALS:
        if re.search(rf"(^|[\s-])({word})(\s|$)", text):
            if writes and word in _HALF_WAY and _SCRIPT in str(answer):
                return OutcomeUnknown(f"redis at {where} {what} ({text}); part may be written, read before you repeat")
            return refusal(f"redis at {where} {what} ({text}); nothing was written")
    if writes and "script" in str(answer):
        return OutcomeUnknown(f"redis at {where} stopped a script: {text}; find out why before you repeat it")
    return StoreRefused(f"redis at {where} refuses: {text}")


def _text(error: BaseException) -> str:
    text = _WHERE.sub("", str(error).replace("\n", " ")) or type(error).__name__
    return text if len(text) <= _LIMIT else text[: _LIMIT - 3] + "..."
