"""A secret of the configuration stands in nothing that a command writes, whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]

CANARY = "geheim-7391-wort"
# Nobody listens there: what is shown is what a driver says of a server that is down.
STORES = [
    f"redis://user:{CANARY}@127.0.0.1:1/0",
    f"postgresql://user:{CANARY}@127.0.0.1:1/db",
    f"postgresql://user@127.0.0.1:1/db?password={CANARY}",
]
COMMANDS = [
    ["run", "counting:WordCounter", "--pool", "p", "-v"],
    ["run", "counting:WordCounter", "--pool", "p", "--plugin", "no:redis", "--plugin", "no:sql"],
    ["tasks", "list", "-v"],
    ["pools", "list"],
    ["agents", "list"],
    ["config", "show", "--origin"],
    ["config", "check"],
]


@pytest.mark.parametrize("store", STORES, ids=["redis", "postgresql", "query"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_password_of_a_store_that_is_down_is_not_shown(
    converge: Converge, monkeypatch: pytest.MonkeyPatch, command: list[str], store: str
) -> None:
    monkeypatch.setenv("CONVERGE_STORE", store)
    answer = converge(*command)
    assert CANARY not in answer.out + answer.err
    assert "127.0.0.1" in answer.out + answer.err or answer.code == 3 or command[0] == "config", "it was tried"


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("is_in_environment", [False, True])
def test_a_secret_that_an_agent_itself_logs_is_masked(
    converge: Converge, folder: Path, log_format: str, is_in_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "careless.py").write_text(
        "from converge import Agent, Task\n\nclass Careless(Agent):\n    async def on_task(self, task: Task):\n       "
        f" self.log.warning('logging in with %s', '{CANARY}')\n        raise ValueError('refused: {CANARY}')\n"
    )
    options = "" if is_in_environment else f'[options.redis]\npassword = "{CANARY}"\n'
    (folder / "converge.toml").write_text(f'log_format = "{log_format}"\n{options}')
    if is_in_environment:
        monkeypatch.setenv("CONVERGE_REDIS_PASSWORD", CANARY)
    (folder / "tasks.jsonl").write_text(json.dumps({"pool_id": "p", "max_attempts": 1, "inputs": {}}) + "\n")
    answer = converge(
        "run", "careless:Careless", "--pool", "p", "-c", "converge.toml", "--submit", "tasks.jsonl", "--drain"
    )
    assert answer.code == 1
    assert "logging in with ***" in answer.err
    assert "refused: ***" in answer.err
    assert CANARY not in answer.err


def test_what_a_task_holds_is_in_no_line_of_the_log(converge: Converge, folder: Path) -> None:
    inputs = {"text": "bad", CANARY: [CANARY]}
    (folder / "tasks.jsonl").write_text(
        json.dumps({"max_attempts": 2, "retry_delay_sec": 0.01, "inputs": inputs}) + "\n"
    )
    answer = converge("run", "counting:Picky", "--pool", "p", "--submit", "tasks.jsonl", "--drain", "-v", "--json")
    assert (answer.code, "it is bad" in answer.err) == (1, True)
    assert CANARY not in answer.err
