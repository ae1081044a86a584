"""A test that hangs ends, whatever becomes of the error that its limit raises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_swallows_its_limit_ends_its_worker_and_is_named() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "1", "--max-worker-restart", "0"]
    done = subprocess.run(
        [*command, "tests/repo/cases/swallows_its_limit.py"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout (0:00:02" in done.stderr
    assert "in test_that_swallows_its_limit" in done.stderr
    assert "crashed while running 'tests/repo/cases/swallows_its_limit.py" in done.stdout
