"""The circuit breaker of one handler: after failures of the agent itself, it rests."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs
from attrs import validators

from converge.errors import InvalidValue
from converge.foreign import is_a, leaves

RESTS_FROM = 3
"""Failures in a row before the first rest: one or two may be chance."""

BACKOFF_LEAST_SEC, BACKOFF_GREATEST_SEC = 0.05, 2.0
"""Rests between failures while the breaker is closed: twice as long each time."""

REST_GREATEST_SEC = 365 * 86_400.0
"""No rest is longer, however long a breaker's are: no clock and no record has an infinite time."""


def plain_number(record: object, field: attrs.Attribute[Any], value: object) -> None:
    """Validate a field of what users make: other numbers, such as `Decimal`, fail where they meet a float of ours."""
    if not isinstance(value, int | float):
        raise InvalidValue(f"{type(record).__name__}.{field.name}", value, "an int or a float")


@attrs.frozen(kw_only=True)
class Breaker:
    """When an agent's circuit breaker opens, and for how long.

    By default it never does: a task that fails says nothing about the agent, and must not slow down good ones.

    Attributes:
        on: The classes of errors that say that the agent itself is ill, such as `(ConnectionError,)`; a handler that
            runs into its timeout counts as a `TimeoutError`. Any other failure is counted and shown, and costs no rest.
        failures: Failures in a row of one handler, each of a class in `on`, that open it.
        rest_sec: How long the handler gets nothing then, give or take a quarter; twice as long after each trial that
            fails.
        rest_greatest_sec: The longest rest after such trials.
    """

    on: tuple[type[BaseException], ...] = ()
    failures: int = attrs.field(default=10, validator=[plain_number, validators.ge(1)])
    rest_sec: float = attrs.field(default=5.0, validator=[plain_number, validators.gt(0)])
    rest_greatest_sec: float = attrs.field(default=30.0, validator=[plain_number, validators.gt(0)])

    def __attrs_post_init__(self) -> None:
        on: object = self.on
        if not isinstance(on, tuple) or not all(isinstance(one, type) and issubclass(one, BaseException) for one in on):
            raise InvalidValue("Breaker.on", self.on, "a tuple of classes of errors, such as (ConnectionError,)")

    def is_on(self, error: BaseException) -> bool:
        """Return whether the error, or one of those that it groups, says that the agent itself is ill."""
        return bool(self.on) and any(is_a(one, *self.on) for one in leaves(error))


class CircuitState(StrEnum):
    """The states of a circuit breaker."""

    CLOSED = "closed"
    """The handler works, or has failed less often in a row than would open it."""
    OPEN = "open"
    """It has failed too often, and gets nothing for a while."""
    HALF_OPEN = "half-open"
    """Its rest is over: it gets one thing, on trial."""


class Circuit:
    """The failures of one handler of one agent. Pure: the time is an argument."""

    __slots__ = (
        "_breaker",
        "_opened",
        "failures",
        "ill_in_a_row",
        "in_a_row",
        "is_open",
        "last_error",
        "opened_at",
        "rests_until",
    )

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._opened = 0
        self.failures = self.in_a_row = self.ill_in_a_row = 0
        self.is_open = False
        self.opened_at = 0.0
        self.rests_until = float("-inf")
        self.last_error = ""

    def state(self, now: float) -> CircuitState:
        """Return the breaker's state."""
        if not self.is_open:
            return CircuitState.CLOSED
        return CircuitState.OPEN if now < self.rests_until else CircuitState.HALF_OPEN

    def failed(self, error: str, now: float, jitter: float, *, is_ill: bool = True) -> float:
        """Count a failure; return the seconds for which the handler gets nothing. `jitter`: from 0 to 1. `is_ill`: the
        breaker counts such errors. Others say nothing about the agent.
        """
        self.failures += 1
        self.in_a_row += 1
        self.last_error = error
        if not is_ill:
            return 0.0
        self.ill_in_a_row += 1
        if self.is_open and now < self.rests_until:
            return self.rests_until - now  # what was under way when the breaker opened is no trial
        if self.is_open or self.ill_in_a_row >= self._breaker.failures:
            self.opened_at = self.opened_at if self.is_open else now
            self.is_open = True
            greatest_sec = max(self._breaker.rest_sec, self._breaker.rest_greatest_sec)
            rest_sec = min(self._breaker.rest_sec * 2**self._opened, greatest_sec, REST_GREATEST_SEC)
            rest_sec *= 0.75 + jitter / 2
            self._opened = min(self._opened + 1, 30)
        elif self.ill_in_a_row >= RESTS_FROM:
            rest_sec = min(BACKOFF_LEAST_SEC * 2 ** (self.ill_in_a_row - RESTS_FROM), BACKOFF_GREATEST_SEC) * (
                0.5 + jitter / 2
            )
        else:
            return 0.0
        self.rests_until = max(self.rests_until, now + rest_sec)
        return self.rests_until - now

    def succeeded(self, now: float) -> bool:
        """Count a success; return whether it closed the breaker. What began before it opened does not."""
        if self.is_open and now < self.rests_until:
            return False
        was_open, self.is_open = self.is_open, False
        self.in_a_row = self.ill_in_a_row = self._opened = 0
        return was_open


WELL_SEC = 10.0
"""A process that has run for so long had started well: its end begins a new count."""

LEAST_SEC, GREATEST_SEC = 0.5, 30.0
"""Waits before another start: twice as long after each quick end, less up to a half."""

QUICK_ENDS = 5
"""Quick ends in a row that are a crash loop."""


class Restarts:
    """The starts of one process. Pure: the times are arguments."""

    __slots__ = ("quick_ends",)

    def __init__(self) -> None:
        self.quick_ends = 0

    def ended(self, ran_sec: float, jitter: float) -> float | None:
        """Return how long to wait before the next start (seconds), or None in a crash loop. `jitter`: from 0 to 1."""
        self.quick_ends = self.quick_ends + 1 if ran_sec < WELL_SEC else 0
        if self.quick_ends >= QUICK_ENDS:
            return None
        return float(min(LEAST_SEC * 2 ** max(0, self.quick_ends - 1), GREATEST_SEC) * (0.5 + jitter / 2))
