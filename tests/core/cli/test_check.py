"""`converge plugins check`: the whole kit on a plugin that nobody wrote a test file for, and its report card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where report cards are kept."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def test_a_card_says_what_was_tried_and_show_has_the_last_one(converge: Converge, folder: Path) -> None:
    answer = converge("plugins", "check", "static", "--quick", "--json", "--report", "card.jsonl")
    assert answer.code == 0, answer.out + answer.err
    (card,) = map(json.loads, answer.out.splitlines())
    assert (card["v"], card["kind"], card["backend"], card["broken"]) == (1, "discovery", "static", [])
    assert card["passed"]["D-1"] > 0 and card["tried"].startswith("D-1")
    assert json.loads((folder / "card.jsonl").read_text()) == card
    assert card["tried"] in converge("plugins", "show", "static").out


@pytest.mark.timeout(300)
def test_a_broken_backend_fails_on_its_clause(converge: Converge, folder: Path) -> None:
    (folder / "forgetful.py").write_text(
        "from converge.contracts.store import StoreBackend\n"
        "from converge.builtin.memory.plugin import MEMORY\n"
        "from converge.builtin.memory.store import MemoryStore\n"
        "import attrs\n\n"
        "class Forgetful(MemoryStore):\n"
        "    async def scan(self, ranges):\n"
        "        return [page[:1] for page in await super().scan(ranges)]\n\n"
        "BACKEND = attrs.evolve(MEMORY, name='forgetful', schemes=('forgetful',), open=Forgetful.open)\n"
    )
    answer = converge("plugins", "check", "forgetful:BACKEND", "--quick")
    assert answer.code == 1, answer.out[-2_000:]
    assert "broken S-2 in test_" in answer.out


def test_a_plugin_that_is_not_there_is_told_as_run_does(converge: Converge) -> None:
    answer = converge("plugins", "check", "reddis")
    assert (answer.code, 'did you mean "redis"?' in answer.err) == (3, True), answer.err
