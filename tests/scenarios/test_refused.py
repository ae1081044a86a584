"""What this release does not have is refused with an error that says so and what to use instead, before anything is
started; never half done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from converge import Agent, Capability, Message, Node, Task
from converge.cli import main
from converge.errors import ConvergeError

AGENTS = """
from converge import Agent

class Plain(Agent):
    def on_task(self, task):
        return None
"""


class Listener(Agent):
    """Takes messages and tasks."""

    def on_message(self, message: Message) -> None:
        raise AssertionError("what was refused was delivered")

    def on_task(self, task: Task) -> None:
        raise AssertionError("what was refused was started")


@pytest.fixture
def folder(tmp_path: Path, as_a_process: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module `mine`."""
    (tmp_path / "mine.py").write_text(AGENTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mine", None)


PLAIN = ("mine:Plain", "--pool", "p")


@pytest.mark.parametrize(
    ("arguments", "config", "texts"),
    [
        ((*PLAIN, "--plugin", "ws", "--transport", "wss://127.0.0.1:0/x"), "", ["wss://", "certificate and key"]),
        ((*PLAIN, "--plugin", "tcp", "--transport", "tcps://127.0.0.1:0"), "", ["tcps"]),
        ((*PLAIN, "--plugin", "tcp", "--transport", "tls://127.0.0.1:0"), "", ["tls", "certificate and key"]),
        ((*PLAIN, "--store", "postgresql+psycopg://h/d"), "", ["postgresql+psycopg", "asyncpg", "postgresql://"]),
        ((*PLAIN, "--store", "mysql+aiomysql://h/d"), "", ["mysql+aiomysql", "asyncmy", "mysql://"]),
        ((*PLAIN, "--health", "0.0.0.0"), "", ["--health", "expected HOST:PORT"]),
        (PLAIN, 'health = "127.0.0.1:80800"', ["health", "expected HOST:PORT"]),
        (PLAIN, "tls = true", ["tls: unknown key; known are", "require_tls"]),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, tuple) else None,
)
def test_a_run_that_needs_what_is_missing_is_refused_at_start(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], config: str, texts: list[str]
) -> None:
    (folder / "converge.toml").write_text(config)
    code = main(["run", *arguments, "-c", "converge.toml", "--drain"])
    out, err = capsys.readouterr()
    assert (code, out) == (3, ""), err
    assert [text for text in texts if text not in err] == [], err
    assert "Traceback" not in err and "internal error" not in err
    assert sorted(path.name for path in folder.iterdir() if path.name != "__pycache__") == [
        "converge.toml",
        "mine.py",
    ], "something was begun"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["top"], 'Unknown command "top"'),
        (["plugins", "bisect"], 'Unknown command "bisect"'),
    ],
)
def test_a_command_of_a_later_release_is_unknown(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    code = main(words)
    assert (code, text in capsys.readouterr().err) == (2, True)


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"ack": "read"}, "ack: 'read' is not allowed"),
        ({"ack": "stored"}, "ack: 'stored' is not allowed"),
        ({"proof": "sealed"}, "proof: 'sealed' is not allowed"),
        ({"to": Capability("x")}, 'no agent that is known here has the capability "x"'),
        ({"timeout": 121.0}, "timeout: 121.0 is not allowed"),
    ],
    ids=str,
)
async def test_a_send_that_asks_for_what_there_is_not_delivers_nothing(how: dict[str, Any], text: str) -> None:
    async with Node() as node:
        (agent,) = await node.spawn(Listener)
        how = {"to": agent.id, **how}
        with pytest.raises(ConvergeError, match=text):
            await agent.send(how.pop("to"), "x", **how)


@pytest.mark.parametrize("setting", ["require_tls", "trust", "tls"])
def test_a_node_takes_no_setting_that_it_would_ignore(setting: str) -> None:
    with pytest.raises((TypeError, ConvergeError), match=setting):
        Node(**{setting: "x"})  # type: ignore[arg-type]  # any of them, which is the point
