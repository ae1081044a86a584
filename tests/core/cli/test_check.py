"""`converge plugins check`: the whole kit on a plugin that nobody wrote a test file for, and its report card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Converge = Callable[..., Any]


def test_a_card_says_what_was_tried_and_show_has_the_last_one(converge: Converge, folder: Path) -> None:
    answer = converge("plugins", "check", "static", "--quick", "--json", "--report", "card.jsonl")
    assert answer.code == 0, answer.out + answer.err
    (card,) = map(json.loads, answer.out.splitlines())
    assert (card["v"], card["kind"], card["backend"], card["broken"]) == (1, "discovery", "static", [])
    assert card["passed"]["D-1"] > 0 and card["tried"].startswith("D-1")
    assert json.loads((folder / "card.jsonl").read_text()) == card
    assert card["tried"] in converge("plugins", "show", "static").out


def test_a_broken_backend_fails_on_its_clause(converge: Converge, folder: Path) -> None:
    (folder / "forgetful.py").write_text(
        "from contextlib import asynccontextmanager\n\n"
        "import attrs\n\n"
        "from converge.builtin.store_discovery.plugin import STORE_DISCOVERY\n"
        "from converge.services.discovery.sightings import StoreSightings\n"
        "from converge.services.store.handle import StoreHandle\n\n"
        "class Forgetful(StoreSightings):\n"
        "    async def snapshot(self):\n"
        "        return (await super().snapshot())[:1]\n\n"
        "@asynccontextmanager\n"
        "async def opened(options, *, store, poll_sec):\n"
        "    yield Forgetful(StoreHandle.of(store), poll_sec)\n\n"
        "BACKEND = attrs.evolve(STORE_DISCOVERY, name='forgetful', open=opened)\n"
    )
    answer = converge("plugins", "check", "forgetful:BACKEND", "--quick")
    assert answer.code == 1, answer.out[-2_000:]
    assert "broken D-1 in test_" in answer.out


def test_a_plugin_that_is_not_there_is_told_as_run_does(converge: Converge) -> None:
    answer = converge("plugins", "check", "reddis")
    assert (answer.code, 'did you mean "redis"?' in answer.err) == (3, True), answer.err
