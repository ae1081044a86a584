"""`converge run` shows its results whatever user code did to standard output and standard error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import preloaded
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
    done = preloaded.run([*run, "--drain", "--json"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "internal error" not in done.stderr, done.stderr
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["state"] for one in ended] == ["FAILED", "FAILED"]


@pytest.mark.parametrize(("closed", "shown"), [(0, 1), (2, 1), (1, 2)])
def test_a_process_that_began_without_a_stream_works_on_its_tasks(folder: Path, closed: int, shown: int) -> None:
    """No socket gets the stream's number: uvloop would end the process when it closes it."""
    told = f"import os; return os.readlink('/proc/self/fd/{closed}')"
    (folder / "careless.py").write_text(AGENT.replace('raise ValueError("something to log")', told))
    (folder / "tasks.jsonl").write_text('{"inputs": {"how": ""}}\n')
    command = f"{sys.executable} -m converge run careless:Careless --pool p --submit tasks.jsonl --drain --json"
    done = subprocess.run(
        ["sh", "-c", f"exec {command} {closed}>&-"], check=False, capture_output=True, text=True, timeout=60
    )
    assert "/dev/null" in done.stdout if shown == 1 else "1 completed" in done.stderr, done
    assert "Traceback" not in done.stderr, done.stderr


LOUD = """
from converge import Agent
from converge.hookspecs import hookimpl

print("a plugin is imported")

class Hooks:
    @hookimpl
    def converge_node_started(self, node_id):
        print("a node has started")

hooks = Hooks()

class Loud(Agent):
    async def on_task(self, task):
        print("an agent works")
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plugins show loud:hooks --json", ["a plugin is imported"]),
        ("config schema --plugin loud:hooks", ["a plugin is imported"]),
        (
            "run loud:Loud --pool p --submit tasks.jsonl --drain --json --plugin loud:hooks",
            ["a plugin is imported", "a node has started", "an agent works"],
        ),
    ],
)
def test_what_is_for_programs_has_nothing_in_it_that_others_print(
    folder: Path, converge: Callable[..., Any], command: str, said: list[str]
) -> None:
    (folder / "loud.py").write_text(LOUD)
    (folder / "tasks.jsonl").write_text("{}\n")
    answer = converge(*command.split())
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)
    assert set(said) <= set(answer.err.splitlines())
