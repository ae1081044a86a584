"""How long a task that failed waits before it is tried again."""

from __future__ import annotations

RETRY_GREATEST_SEC = 300.0
"""No retry waits longer: an operator who has mended the cause should not wait for an hour."""

RETRY_AFTER_GREATEST_SEC = 86_400.0
"""No failure puts its retry off for longer: a longer wait counts as this one."""


def wait_sec(failures: int, retry_delay_sec: float, jitter: float, after_sec: float | None) -> float:
    """Return the wait after so many failures: as asked for, or twice as long each time."""
    if after_sec is not None:
        return min(RETRY_AFTER_GREATEST_SEC, after_sec)
    return min(RETRY_GREATEST_SEC, retry_delay_sec * 2.0 ** min(failures - 1, 30)) * jitter
