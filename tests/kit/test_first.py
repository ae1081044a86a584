"""What the kit says first: a store before tasks on it, and which of two contracts an author mends first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BROKEN = """
from contextlib import asynccontextmanager

import attrs

from converge.testing import StoreContract, TaskContract
from converge_store_toy.plugin import TOY
from converge_store_toy.store import ToyStore


class Refuses(ToyStore):
    async def time(self):
        raise OSError("the driver")


class TestTasks(TaskContract):
    backend = attrs.evolve(TOY, open=Refuses.open)


class TestStore(StoreContract):
    backend = attrs.evolve(TOY, open=Refuses.open)
"""


def test_a_failure_of_tasks_on_a_broken_store_says_what_to_mend_first(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["converge.testing.fixtures"]\n')
    (tmp_path / "test_refuses.py").write_text(BROKEN)
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\n")
    command = [sys.executable, "-m", "pytest", "-v", "--quick", "-p", "no:xdist", "-p", "no:randomly", "--tb=line"]
    done = subprocess.run(
        [*command, "-k", "time_is or test_a_retry_waits"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        timeout=110,
    )
    lines = done.stdout.splitlines()
    ran = [line for line in lines if "test_refuses.py::" in line and "FAILED" in line and "%]" in line]
    assert ["TestTasks" in line for line in ran] == sorted("TestTasks" in line for line in ran) and ran, done.stdout
    assert "let out an error of its driver, which callers do not know: builtins.OSError: the driver" in done.stdout
    assert any("run StoreContract first" in line for line in lines), done.stdout[-2_000:]
