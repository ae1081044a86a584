"""What was not run is told at the end of a run, with its reason and how often, also by several test processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_closing_lines_name_what_was_not_run() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "2"]
    done = subprocess.run(
        [*command, "tests/repo/cases/two_not_run.py"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, second, third, last = done.stdout.splitlines()
    assert second == "not applicable: 1 tests (the options have no colour)"
    assert third == "not run: 3 tests (needs Debian's nginx)"
    assert last.startswith("1 passed, ")
    assert "3 not run" in last
    assert "1 not applicable" in last
    assert "skipped" not in done.stdout
