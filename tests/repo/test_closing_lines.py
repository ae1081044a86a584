"""What was not run is told at the end of a run, with its reason and how often, also by several test processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


CASES = "tests/repo/cases/two_not_run.py"


def closing_lines(*options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if name not in ("EVERY_LOOP", "FULL_TESTS")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout
    return done.stdout.splitlines()


def test_the_closing_lines_name_what_was_not_run() -> None:
    *_, loops, applies, runs, last = closing_lines("-n", "2", "-o", f"testpaths={CASES}")
    assert loops == "not run: each coroutine test on a second event loop (with EVERY_LOOP=1 only)"
    assert applies == "not applicable: 1 tests (the options have no colour)"
    assert runs == "not run: 3 tests (needs Debian's nginx)"
    assert last.startswith("2 passed, ")
    assert "3 not run" in last
    assert "1 not applicable" in last


def test_a_named_coroutine_test_runs_on_both_event_loops() -> None:
    assert closing_lines("-n", "0", CASES)[-1].startswith("3 passed, ")
