"""The options of a message: how they are named, checked, and remembered."""

from __future__ import annotations

from functools import lru_cache
from typing import TypedDict, Unpack

import attrs

from converge.errors import InvalidValue
from converge.machines.stream import WINDOW_SEC
from converge.model.envelope import ACCEPTED, HANDED, HANDLED, NAME_CHARACTERS

LEVELS = {"accepted": ACCEPTED, "handled": HANDLED, None: HANDED}


class SendArguments(TypedDict, total=False):
    """The keywords of `SendOptions`, for signatures that pass them on."""

    ack: str | None
    timeout: float
    mailbox: bool
    proof: str
    task_id: str


@attrs.frozen(kw_only=True)
class SendOptions:
    """How a message is to be sent; `Node.send` says what each means."""

    ack: str | None = "accepted"
    timeout: float = 10.0
    mailbox: bool = False
    proof: str = "channel"
    task_id: str = ""


DEFAULTS = SendOptions()
"""Of a message that is sent without any option: known to be well."""


def options_of(arguments: SendArguments) -> SendOptions:
    """Return the options that keywords name; who sends one message in some way sends more, so they are remembered."""
    if not arguments:
        return DEFAULTS
    try:
        return _remembered(**arguments)
    except TypeError:  # a value that has no hash; or a keyword that there is not, which is told once more
        return SendOptions(**arguments)


@lru_cache(64, typed=True)  # True is no timeout, though it equals 1
def _remembered(**arguments: Unpack[SendArguments]) -> SendOptions:
    return SendOptions(**arguments)


def check_timeout(timeout: float) -> None:
    """Refuse a timeout that cannot be kept."""
    if type(timeout) is float and 0 < timeout <= WINDOW_SEC:
        return
    if not _is_number(timeout) or not 0 < timeout <= WINDOW_SEC:
        raise InvalidValue(
            "timeout", timeout, f"seconds, above 0, at most {WINDOW_SEC:g}: so long a repeated message is recognised"
        )


def level_of(options: SendOptions) -> str:
    """Return how far the sender waits for the message to get."""
    try:
        return LEVELS[options.ack]
    except (KeyError, TypeError):
        raise InvalidValue("ack", options.ack, '"accepted", "handled" or None') from None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_task_id(value: object) -> str:
    """Return the task's id, if it can be one."""
    if not isinstance(value, str) or len(value) > NAME_CHARACTERS:
        raise InvalidValue("task_id", value, f"the id of a task, at most {NAME_CHARACTERS} characters")
    return value
