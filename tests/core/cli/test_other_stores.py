"""Operators' commands on stores of other packages: what they show and do does not depend on where the tasks are."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]


FILES = {"file": "file:state.db", "sqlite": "sqlite:///state.db"}


# The others with FULL_TESTS=1: what differs is the backend, whose kit runs each time.
STORES: tuple[str, ...] = ("file", "redis_url", "postgres_url")
if os.environ.get("FULL_TESTS") == "1":
    STORES += ("sqlite", "mariadb_url")


@pytest.fixture(scope="module", params=STORES)
def url(request: pytest.FixtureRequest) -> str:
    """The store's URL; its server starts before the test, so that the leak check knows it."""
    return FILES.get(request.param) or str(request.getfixturevalue(request.param))


@pytest.fixture
def store(url: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[str, ...]:
    """Flags that name a store of its own, on a real server or in a file; its URL may have a password, so it comes from
    the environment.
    """
    monkeypatch.setenv("CONVERGE_STORE", url)
    return () if url in FILES.values() else ("--network", f"n{uuid.uuid4().hex[:12]}")


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
    of_server = {"durability", "memory"}
    assert {code for code, level in levels.items() if level != "ok"} <= {"dead-letters", "unclaimable", *of_server}
    assert levels["dead-letters"] == levels["unclaimable"] == "warning"
    (accepted,) = records(converge("store", "accept", "--yes", "--json", *store))
    assert accepted["before"].startswith(facts["epoch"])
    removed = records(converge("tasks", "purge", "--all-pools", "--yes", "--json", *store))
    assert {one["state"]: one["count"] for one in removed} == {"COMPLETED": 1, "FAILED": 1}
    assert len(records(converge("tasks", "list", "--json", *store))) == 1


def test_who_looks_at_a_place_where_nothing_was_stored_is_told_so_and_makes_nothing(
    converge: Converge, folder: Path, store: tuple[str, ...], url: str
) -> None:
    looks = [("tasks", "list"), ("pools", "list"), ("agents", "list"), ("ps",), ("store", "info")]
    if not url.startswith(("postgresql", "mysql")):  # there it makes the tables
        looks.append(("store", "migrate"))
    for look in looks:
        answer = converge(*look, *store)
        assert (answer.code, answer.out) == (4, "") and "there is no " in answer.err, look
    doctor = converge("doctor", "--json", *store)
    levels = {one["code"]: one["level"] for one in map(json.loads, doctor.out.splitlines())}
    if url in FILES.values():
        assert (doctor.code, levels["store"]) == (4, "error") and list(folder.glob("state*")) == []
    else:
        assert (doctor.code, levels["store"], levels["server"]) == (0, "warning", "ok") and "durability" in levels
        assert converge("store", "info", *store).code == 4


def test_every_command_that_works_on_a_store_works_on_this_one(
    converge: Converge, folder: Path, store: tuple[str, ...]
) -> None:
    def call(*arguments: str, code: int = 0) -> list[dict[str, Any]]:
        answer = converge(*arguments, "--json", *store)
        assert answer.code == code, (arguments, answer.err)
        return [json.loads(line) for line in answer.out.splitlines()]

    (folder / "tasks.jsonl").write_text('{"inputs": {"text": "bad"}, "max_attempts": 1}')
    assert len(call("pools", "create", "docs")) == 1
    (cancelled,) = call("submit", "--pool", "docs", "--capability", "fly")
    call("tasks", "explain", cancelled["id"])
    call("tasks", "cancel", cancelled["id"], "--why", "no need")
    call("pools", "pause", "docs")
    call("pools", "resume", "docs")
    (failed,) = call("submit", "tasks.jsonl", "--pool", "docs")
    assert converge("run", "counting:Picky", "--pool", "docs", "--drain", *store).code == 1
    assert call("tasks", "show", failed["id"])[0]["state"] == "FAILED"
    assert len(call("tasks", "retry", failed["id"])) == 1
    assert {one["state"] for one in call("tasks", "list")} == {"CANCELLED", "FAILED", "PENDING"}
    call("tasks", "purge", "--all-pools", "--yes")
    assert [one["id"] for one in call("pools", "list")] == ["docs"]
    assert call("pools", "show", "docs")[0]["id"] == "docs"
    assert call("agents", "list") == []
    call("agents", "show", "nobody", code=2)
    assert call("store", "info")[0]["pools"]["docs"]["ready"] == 1
    call("store", "migrate", "--dry-run")
    call("store", "migrate")
    call("store", "accept", "--yes")
    assert {one["level"] for one in call("doctor")} <= {"ok", "warning", "error"}


@pytest.mark.parametrize(
    ("address", "driver", "extra"),
    [
        ("postgresql://u@127.0.0.1:1/db", "asyncpg", "converge-store-sql[postgresql]"),
        ("mysql://u@127.0.0.1:1/db", "asyncmy", "converge-store-sql[mysql]"),
    ],
)
def test_a_driver_that_is_missing_is_one_line_with_the_command_that_brings_it(
    converge: Converge, monkeypatch: pytest.MonkeyPatch, address: str, driver: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    for command in (("tasks", "list"), ("store", "info"), ("run", "counting:Picky", "--pool", "p", "--drain")):
        answer = converge(*command, "--store", address, "--plugin", "sql")
        lines = [line for line in answer.err.splitlines() if "loaded plugin" not in line]
        assert (answer.code, answer.out, len(lines)) == (3, "", 1), answer.err
        assert f"pip install {extra}" in lines[0]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("mariadb://h", "the database is missing"),
        ("sqlite:state.db", "sqlite:///PATH"),
        ("sqlite://", "sqlite:///PATH"),
        ("mysql://h/db?sslmode=require", "ssl_ca"),
    ],
)
def test_a_url_that_names_no_database_is_refused_with_its_form(converge: Converge, address: str, words: str) -> None:
    answer = converge("tasks", "list", "--store", address)
    assert (answer.code, answer.out) == (2, "") and words in answer.err
