"""Calling the command, in this process or as a real one, in a folder with an agent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import preloaded
import pytest

from converge.cli import main

AGENTS = """
import threading
from converge import Agent, Task

class WordCounter(Agent):
    capabilities = ("count-words",)

    async def on_task(self, task: Task):
        return {"words": len(task.inputs["text"].split())}

class Picky(Agent):
    async def on_task(self, task: Task):
        if task.inputs.get("text") == "bad":
            raise ValueError("it is bad")
        return "fine"

class Stuck(Agent):
    async def on_task(self, task: Task):
        print("stuck", flush=True)
        threading.Event().wait()

class NoAgent:
    pass
"""


@attrs.frozen
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str


Converge = Callable[..., Answer]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: it holds `counting.py` with some agents; the environment sets nothing."""
    (tmp_path / "counting.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))  # where the last report cards are
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in os.environ if name.startswith("CONVERGE_")]:
        monkeypatch.delenv(name)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def converge(folder: Path, as_a_process: None, capsys: pytest.CaptureFixture[str]) -> Converge:
    """`converge("tasks", "list", ...)` runs the command in this process."""

    def call(*arguments: str) -> Answer:
        code = main(arguments)
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return call


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`start("run", ...)` starts the command as a process of its own; what still runs is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def call(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "converge", *arguments]
        started.append(
            preloaded.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.communicate()
