"""`--quick` tries every clause that a whole run tries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def listed(*options: str) -> set[str]:
    """The names of the memory store's tests of the kit, without their event loops."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        *options,
        "tests/core/builtin/test_memory_store.py",
    ]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {re.sub(r"(asyncio|trio)-?", "", line) for line in printed.splitlines() if "::" in line}


def test_a_quick_run_has_every_test_of_a_whole_one() -> None:
    whole = listed()
    assert len(whole) > 100
    assert listed("--quick") == whole
