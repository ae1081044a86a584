"""`converge run` shows its results whatever user code did to standard output and standard error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = """
import sys

from converge import Agent


class Careless(Agent):
    async def on_task(self, task):
        for stream in ("stdout", "stderr"):
            match task.inputs["how"]:
                case "closed":
                    getattr(sys, stream).close()
                case "removed":
                    setattr(sys, stream, None)
                case "replaced":
                    setattr(sys, stream, 3)
        raise ValueError("something to log")
"""


@pytest.mark.parametrize("how", ["closed", "removed", "replaced"])
def test_results_are_shown_when_a_handler_has_closed_or_replaced_the_streams(folder: Path, how: str) -> None:
    (folder / "careless.py").write_text(AGENT)
    (folder / "tasks.jsonl").write_text(f'{{"inputs": {{"how": "{how}"}}, "max_attempts": 1}}\n' * 2)
    run = [sys.executable, "-m", "converge", "run", "careless:Careless", "--pool", "p", "--submit", "tasks.jsonl"]
    done = subprocess.run([*run, "--drain", "--json"], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "internal error" not in done.stderr, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["state"] for one in ended] == ["FAILED", "FAILED"]
