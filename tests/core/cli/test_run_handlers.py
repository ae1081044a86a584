"""Agents of every kind of handler under the `run` command, and what it says of a class that cannot be meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

AGENTS = """
from converge import Agent, Task
from converge.agents import Breaker, InvokeTool, ReportTask

class Deciding(Agent):
    tools = {"count": lambda text: len(text.split())}
    counted = None

    def decide(self, messages, tasks):
        if self.counted is None:
            return [InvokeTool(name="count", arguments={"text": task.inputs["text"]}) for task in tasks]
        return [ReportTask(task_id=task.id, result=self.counted) for task in tasks]

    def on_outcomes(self, outcomes):
        self.counted = outcomes[0].value

    tick_sec = 0.02

class Failing(Agent):
    breaker = Breaker(on=(RuntimeError,))

    async def on_task(self, task):
        raise RuntimeError("always")

class Mistyped(Agent):
    allowed_actions = ("send-mesage",)

    async def on_task(self, task):
        return None

class Timeless(Agent):
    def on_tick(self):
        return None

class Torn(Agent):
    def on_task(self, task):
        return None

    def decide(self, messages, tasks):
        return []

class Renamed(Agent):
    pools = ("docs",)

    def on_task(self, task):
        return None
"""


@pytest.fixture(autouse=True)
def agents(folder: Path) -> None:
    """The module that the tests name."""
    (folder / "handling.py").write_text(AGENTS)


def test_an_agent_with_the_whole_loop_is_drained(converge: Callable[..., Any], folder: Path) -> None:
    (folder / "tasks.jsonl").write_text(json.dumps({"inputs": {"text": "a b c"}}))
    answer = converge("run", "handling:Deciding", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", "--json")
    assert answer.code == 0, answer.err
    assert '"result":3' in answer.out.replace(" ", "")


def test_an_agent_whose_breaker_opens_is_told_once_and_its_tasks_end(
    converge: Callable[..., Any], folder: Path
) -> None:
    (folder / "tasks.jsonl").write_text("\n".join(json.dumps({"max_attempts": 1}) for _ in range(11)))
    answer = converge("run", "handling:Failing", "--pool", "docs", "--submit", "tasks.jsonl", "--drain")
    assert answer.code == 1
    assert answer.err.count("on_task failed 10 times in a row; the agent rests for") == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Mistyped", "Mistyped.allowed_actions: 'send-mesage' is not allowed; expected \"send-message\""),
        ("Timeless", "Timeless.tick_sec: None is not allowed; expected seconds: it has an on_tick"),
        ("Torn", "Torn.decide: 'decide beside on_task or on_message' is not allowed; expected decide alone"),
        ("Renamed", "Renamed.pools: ('docs',) is not allowed; expected another name: the node sets this one"),
    ],
)
def test_a_class_that_cannot_be_meant_is_one_line_and_exit_code_three(
    converge: Callable[..., Any], folder: Path, name: str, text: str
) -> None:
    answer = converge("run", f"handling:{name}", "--pool", "docs", "--store", "file:state.db")
    assert (answer.code, answer.out) == (3, "")
    assert f'agent "handling:{name}": {text}' in answer.err and answer.err.strip().count("\n") == 0
    assert converge("pools", "list", "--store", "file:state.db", "--json").out == ""


@pytest.mark.parametrize("name", ["Unmade", "Unstarted"])
def test_an_agent_that_does_not_start_is_told_as_its_own_fault_not_as_one_in_here(
    converge: Callable[..., Any], name: str
) -> None:
    Path("failing.py").write_text(
        "from converge import Agent\n\n"
        "class Unmade(Agent):\n    def __init__(self):\n        raise RuntimeError('no model file')\n\n"
        "class Unstarted(Agent):\n    def on_start(self):\n        raise RuntimeError('no model file')\n"
    )
    answer = converge("run", f"failing:{name}", "--pool", "docs", "--drain")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[-1] == f'converge: agent "failing:{name}" did not start: RuntimeError: no model file'
    assert "failing.py" in answer.err
    assert "internal error" not in answer.err


def test_an_agent_that_exits_before_it_has_started_is_named(converge: Callable[..., Any]) -> None:
    Path("leaving.py").write_text(
        "from converge import Agent\n\n"
        "class Leaving(Agent):\n    async def on_start(self):\n        raise SystemExit(0)\n"
    )
    answer = converge("run", "leaving:Leaving", "--pool", "docs", "--drain")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.splitlines()[-1] == 'converge: agent "leaving:Leaving" did not start: SystemExit: 0'


@pytest.mark.parametrize(("name", "is_told"), [("on_tasks", True), ("onTask", True), ("on_task", False)])
def test_a_class_whose_handler_is_mistyped_is_told_of(
    folder: Path, converge: Callable[..., Any], name: str, is_told: bool
) -> None:
    (folder / "mistyped.py").write_text(
        f"from converge import Agent\n\nclass Quiet(Agent):\n    def {name}(self, task): ...\n"
    )
    answer = converge("run", "mistyped:Quiet", "--pool", "p", "--drain")
    assert answer.code == 0, answer.err
    told = f'Quiet has no on_task, so it works on nothing in pool p; is its "{name}" meant to be on_task?'
    assert (told in answer.err) == is_told
