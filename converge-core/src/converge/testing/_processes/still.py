"""A process that stands still, as one does whose host is suspended: it holds all it has, and answers nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

STANDS = "TtZX"
"""States of `/proc/PID/stat`: stopped, traced, ended."""

STAND_SEC = 60.0
"""How long it may take: a thread that waits for the disk stops afterwards."""


def stand_still(pid: int) -> None:
    """Stop a process, and return when it stands: until one of its threads meets the signal, all of them go on.

    Raises:
        ProcessLookupError: There is none.
        TimeoutError: It still runs after a minute.
    """
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + STAND_SEC
    while _state(pid) not in STANDS:
        if time.monotonic() > until:
            raise TimeoutError(f"process {pid} still runs {STAND_SEC:g} s after SIGSTOP")
        time.sleep(0.001)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
