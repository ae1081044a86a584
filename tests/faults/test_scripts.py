"""The scripts of reported faults: each prints ok or the fault, and exits with 0 or 1.

They stand here as they were reported: their imports follow the code, and one waits for longer than it did. The names
that they import are checked in every run; with `FULL_TESTS=1` those whose fault is mended are run. What a script showed
is also a test, named after what should happen, beside the part that it is about.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

FOLDER = Path(__file__).parent / "scripts"
SCRIPTS = sorted(str(file.relative_to(FOLDER)) for file in FOLDER.glob("*/*.py"))
MENDED = (
    *(f"core/{file.name}" for file in sorted((FOLDER / "core").glob("*.py")) if "redis" not in file.name),
    "tasks/01-multiprocessing-pool.py",
    "tasks/02-error-text-lone-surrogate.py",
    "tasks/03-exception-str-fails.py",
    "tasks/04-orphan-holds-file-lock.py",
    "tasks/06-dates-at-the-end-of-time.py",
    "tasks/07-same-submit-again.py",
    "tasks/09-redis-maxmemory.py",
    "tasks/10-half-open-connections.py",
    "tasks/15-asyncio-run-in-plain-handler.py",
    "tasks/17-wall-clock-wrong-at-first-open.py",
    "net/01-both-ways-backpressure.py",
    "net/02-send-in-on-start.py",
    "net/03-send-while-stopping.py",
    "net/05-cancelled-inside.py",
    "net/07-restarted-peer-behind-dead-link.py",
    "net/10-burst-of-first-asks.py",
    "net/11-ghost-after-kill.py",
    "net/12-store-away-and-strangers.py",
    "net/13-newcomers-stall-the-link.py",
    "net/17-first-address-is-a-black-hole.py",
    "net/18-large-descriptor.py",
    "net/21-one-side-loses-the-store.py",
    "net/28-short-timeouts-far-away.py",
    "attack/fan_out.py",
    "attack/fan_out_route.py",
    "attack/forged_answer.py",
    "attack/hello_budget.py",
    "attack/inbox_bytes.py",
    "attack/max_connections.py",
    "attack/slow_source.py",
    "attack/told_flood.py",
    "attack/unread_answers.py",
    "attack/store_lease_junk.py",
    "attack/rogue_descriptor.py",
    "attack/secrets_shown.py",
)
"""Those whose fault is gone; the others wait for what they are about (links, Redis, PostgreSQL)."""

RUN_SEC = 110
IS_FULL = os.environ.get("FULL_TESTS") == "1"


def imported(source: str) -> list[tuple[str, str]]:
    """Return the modules of Converge that a source imports, each with the name that it wants of it."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "converge"
        for alias in node.names
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_imports_exists(script: str) -> None:
    wanted = imported((FOLDER / script).read_text())
    missing = [
        f"{module}.{name}"
        for module, name in wanted
        if name != "*" and not hasattr(import_module(module), name) and find_spec(f"{module}.{name}") is None
    ]
    assert missing == []


def test_every_script_of_the_list_is_there() -> None:
    assert set(MENDED) <= set(SCRIPTS)


if IS_FULL:

    @pytest.mark.parametrize("script", MENDED)
    def test_the_fault_of_a_script_is_gone(script: str, tmp_path: Path) -> None:
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # scripts leave what they made there
            Path(folder).chmod(0o711)  # a database server has a user of its own
            ran = subprocess.run(
                [sys.executable, str(FOLDER / script)],
                cwd=tmp_path,
                env={**os.environ, "TMPDIR": folder},
                capture_output=True,
                text=True,
                timeout=RUN_SEC,
                check=False,
            )
        assert ran.returncode == 0, f"{ran.stdout[-2_000:]}\n{ran.stderr[-2_000:]}"
