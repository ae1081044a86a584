"""What happens to a task whose handler raised: retried, retried after a wait, failed for good, handed back."""

from __future__ import annotations

from typing import Any, cast

from converge.errors import (
    AttemptEnd,
    CalledOff,
    ChildFailed,
    InputError,
    InvalidValue,
    NoRetry,
    Release,
    RetryAfter,
    StepFailed,
    StepUncertain,
    ValueTooLarge,
    WaitTimeout,
)  # fmt: skip
from converge.foreign import Raised, guarded, is_a, leaves, text_of
from converge.machines.events import Failed, Released

OF_ITS_DATA = (InputError, InvalidValue, ValueTooLarge, StepFailed, StepUncertain, WaitTimeout, ChildFailed, CalledOff)
"""Errors, of exactly these classes, that say that what a handler was given, or returned, cannot be used, or what a
task has recorded: the next attempt would end the same way. Other input errors, such as `NoSuchPool`, may pass.
"""

STRICTEST = (NoRetry, RetryAfter, Release)
"""Which word counts where tasks of one handler raised several."""


def outcome_of(error: BaseException | None, text: str, by: str, jitter: float) -> Failed | Released:
    """Return how an attempt ended that raised `error`; `text` describes it. None: it failed, and is tried again."""
    word = None if error is None else word_of(error)
    if word is None:
        return Failed(text, by, not is_of_its_data(error), jitter)
    said = guarded(_said, word)
    why, after_sec = ("", None) if type(said) is Raised else said
    if is_a(word, Release):
        return Released(by, why or text)
    return Failed(why or text, by, not is_a(word, NoRetry), jitter, after_sec)


def _said(word: AttemptEnd) -> tuple[str, float | None]:
    """Return why, and after how long: nothing of what a subclass does not set, or sets to something else."""
    kept = vars(word)
    sec: Any = kept.get("sec")
    return text_of(kept.get("why", "")), max(0.0, float(sec)) if type(sec) in (int, float) else None


def is_of_its_data(error: BaseException | None) -> bool:
    """Return whether the error is caused by the task or message, not by the agent."""
    return any(type(error) is kind for kind in OF_ITS_DATA)  # its metaclass may compare as it likes


def word_of(error: BaseException) -> AttemptEnd | None:
    """Return the `AttemptEnd` that a handler raised; in a group, the strictest, if it holds nothing else."""
    found = list(leaves(error))
    for kind in STRICTEST if all(is_a(one, AttemptEnd) for one in found) else ():
        for one in found:
            if is_a(one, kind):
                return cast(AttemptEnd, one)
    return None


RETRY_GREATEST_SEC = 300.0
"""No retry waits longer: an operator who has mended the cause should not wait for an hour."""

RETRY_AFTER_GREATEST_SEC = 86_400.0
"""No failure puts its retry off for longer: a longer wait counts as this one."""


def wait_sec(failures: int, retry_delay_sec: float, jitter: float, after_sec: float | None) -> float:
    """Return the wait after so many failures: as asked for, or twice as long each time."""
    if after_sec is not None:
        return min(RETRY_AFTER_GREATEST_SEC, after_sec)
    return min(RETRY_GREATEST_SEC, retry_delay_sec * 2.0 ** min(failures - 1, 30)) * jitter
