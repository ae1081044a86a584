"""What becomes of a task whose handler raised: tried again, tried again after a wait, failed for good, handed back."""

from __future__ import annotations

from typing import cast

from converge.errors import AttemptEnd, InputError, InvalidValue, NoRetry, Release, RetryAfter, ValueTooLarge
from converge.foreign import is_a, leaves
from converge.machines.task import Failed, Released

OF_ITS_DATA = (InputError, InvalidValue, ValueTooLarge)
"""Errors, of exactly these classes, that say that what a handler was given, or what it returned, cannot be used: the
next attempt would end the same way. Other input errors, such as `NoSuchPool`, may pass.
"""

STRICTEST = (NoRetry, RetryAfter, Release)
"""Which word counts where tasks of one handler raised several."""


def outcome_of(error: BaseException | None, text: str, by: str, jitter: float) -> Failed | Released:
    """Return how an attempt ended that raised `error`; `text` describes it. None: it failed, and is tried again."""
    word = None if error is None else word_of(error)
    if word is None:
        return Failed(text, by, not is_of_its_data(error), jitter)
    kind, kept = type(word), vars(word)
    why = kept.get("why") or text  # none, if a subclass does not call `__init__`
    if issubclass(kind, Release):
        return Released(by, why)
    return Failed(why, by, not issubclass(kind, NoRetry), jitter, kept.get("sec"))


def is_of_its_data(error: BaseException | None) -> bool:
    """Return whether the error is the fault of the task or message, not of the agent."""
    return any(type(error) is kind for kind in OF_ITS_DATA)  # its metaclass may compare as it likes


def word_of(error: BaseException) -> AttemptEnd | None:
    """Return the `AttemptEnd` that a handler raised; in a group, the strictest, if it holds nothing else."""
    found = list(leaves(error))
    for kind in STRICTEST if all(is_a(one, AttemptEnd) for one in found) else ():
        for one in found:
            if is_a(one, kind):
                return cast(AttemptEnd, one)
    return None
