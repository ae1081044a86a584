"""Operators' commands on stores of other packages: what they show and do does not depend on where the tasks are."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]


@pytest.fixture(params=["redis", "postgres"])
def store(
    request: pytest.FixtureRequest, redis_url: str, postgres_url: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> tuple[str, ...]:
    """Flags that name a store of its own on a real server; its URL has a password, so it comes from the environment."""
    monkeypatch.setenv("CONVERGE_STORE", {"redis": redis_url, "postgres": postgres_url}[request.param])
    return ("--network", f"n{uuid.uuid4().hex[:12]}")


def records(answer: Any) -> list[dict[str, Any]]:
    """The JSON lines of an answer that went well."""
    assert answer.code == 0, answer.err
    return [json.loads(line) for line in answer.out.splitlines()]


def test_tasks_are_listed_purged_and_the_store_is_looked_at_and_accepted(
    converge: Converge, folder: Path, store: tuple[str, ...]
) -> None:
    (folder / "tasks.jsonl").write_text(
        '{"inputs": {"text": "a b"}, "type": "t"}\n{"inputs": {"text": "bad"}, "max_attempts": 1}'
    )
    assert converge("run", "counting:Picky", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", *store).code == 1
    assert converge("submit", "--pool", "docs", "--capability", "fly", *store).code == 0
    assert [
        one["inputs"] for one in records(converge("tasks", "list", "--type", "t", "--since", "1h", "--json", *store))
    ] == [{"text": "a b"}]
    assert len(records(converge("tasks", "list", "--dead-letters", "--json", *store))) == 1
    (facts,) = records(converge("store", "info", "--json", *store))
    assert (facts["pools"]["docs"]["ready"], facts["pools"]["docs"]["done"], facts["keys"]["done"]) == (1, 2, 2)
    assert abs(facts["skew_sec"]) < 5 and facts["epoch"] and facts["leases"] == []
    levels = {one["code"]: one["level"] for one in records(converge("doctor", "--json", *store))}
    assert {code for code, level in levels.items() if level != "ok"} <= {"dead-letters", "unclaimable", "durability"}
    assert levels["dead-letters"] == levels["unclaimable"] == "warning"
    (accepted,) = records(converge("store", "accept", "--yes", "--json", *store))
    assert accepted["before"].startswith(facts["epoch"])
    removed = records(converge("tasks", "purge", "--all-pools", "--yes", "--json", *store))
    assert {one["state"]: one["count"] for one in removed} == {"COMPLETED": 1, "FAILED": 1}
    assert len(records(converge("tasks", "list", "--json", *store))) == 1
