"""`converge store`: what it tells of a store, and that processes go on after `accept`."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from converge.codec import FORMAT

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

STORE = ("--store", "file:state.db")


def record(answer: Any) -> dict[str, Any]:
    """The one JSON object of an answer that went well."""
    assert answer.code == 0, answer.err
    (line,) = answer.out.splitlines()
    found: dict[str, Any] = json.loads(line)
    assert found.pop("v") == 1
    return found


def copy(source: Path, target: Path) -> None:
    """Copy a database as an operator's backup does, into the file that is there."""
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


@pytest.fixture
def running(start: Start, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that counts words in the pool `docs`, and polls often."""
    (folder / "fast.toml").write_text("poll_sec = 0.1")
    process = start("run", "counting:WordCounter", "-c", "fast.toml", "--agents", "2", "--pool", "docs", *STORE)
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    yield process


def test_a_store_is_shown_with_its_settings_its_clock_and_who_uses_it(
    converge: Converge, running: subprocess.Popen[str], folder: Path
) -> None:
    shown = record(converge("store", "info", "--json", *STORE))
    assert (shown["backend"], shown["durability"], shown["contract"], shown["store"]) == (
        "file",
        "D2",
        2,
        "file:state.db",
    )
    assert shown["settings"]["path"] == str(folder / "state.db")
    assert (shown["settings"]["journal_mode"], shown["settings"]["synchronous"]) == ("wal", "full")
    assert shown["settings"]["free_bytes"] > 0 and shown["settings"]["file_bytes"] > 0
    assert abs(shown["skew_sec"]) < 60 and len(shown["epoch"]) == 32 and shown["accepted_at"] == ""
    assert (shown["keys"]["pool"], shown["keys"]["lease"], set(shown["versions"])) == (1, 1, {"1"})
    (lease,) = shown["leases"]
    assert (lease["held"], lease["remaining_sec"] > 0, lease["agents"] >= 2) == (0, True, True)
    assert (lease["host"], lease["pid"] > 0, lease["release"]) == (gethostname(), True, version("converge-core"))
    assert 0 < time.time() - lease["started"] / 1_000_000 < 3_600
    assert shown["pools"] == {
        "docs": {
            "ready": 0,
            "later": 0,
            "parked": 0,
            "waiting": 0,
            "held": 0,
            "completed": 0,
            "failed": 0,
            "cancelled": 0,
            "done": 0,
        }
    }
    plain = [line.split() for line in converge("store", "info", *STORE).out.splitlines()]
    assert ["synchronous", "full"] in plain and ["docs", *"000000"] in plain


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["info", "--store", "file:gone.db"], 4, "there is no store at"),
        (["accept", "--yes", "--store", "file:gone.db"], 4, "there is no store at"),
        (["accept", *STORE], 2, "--yes is missing"),
        (["info"], 3, "is seen by this process only"),
        (["info", "--store", "file:."], 4, "is a folder"),
        (["info", "--store", "file:counting.py"], 4, "not a SQLite database"),
    ],
)
def test_what_is_no_store_is_refused_and_none_is_made(
    converge: Converge, folder: Path, arguments: list[str], code: int, text: str
) -> None:
    answer = converge("store", *arguments)
    assert (answer.code, answer.out) == (code, "") and text in answer.err
    assert not (folder / "gone.db").exists()


@pytest.mark.parametrize("what", ["restored", "flushed"])
def test_a_process_that_met_another_history_goes_on_once_it_was_accepted(
    converge: Converge, running: subprocess.Popen[str], folder: Path, what: str
) -> None:
    copy(folder / "state.db", folder / "backup.db")
    assert (
        converge(
            "submit",
            "--pool",
            "docs",
            "--capability",
            "count-words",
            "--input",
            "text=a b",
            "--wait",
            "--timeout",
            "20",
            *STORE,
        ).code
        == 0
    )
    if what == "restored":
        copy(folder / "backup.db", folder / "state.db")
    else:
        with closing(sqlite3.connect(folder / "state.db")) as database, database:
            for (table,) in database.execute(
                "select name from sqlite_master where type = 'table' and name like 'f!_%' escape '!'"
            ).fetchall():
                if table != "f_pool":  # whoever flushes a store makes its pools again
                    database.execute(f"delete from {table}")
    ask = ("submit", "--pool", "docs", "--capability", "count-words", "--input", "text=a b c", *STORE)
    assert running.stderr is not None
    assert converge(*ask, "--wait", "--timeout", "2").code == 5, "nobody may claim before it was accepted"
    assert any("converge store accept" in line for line in running.stderr), "it ended before it told"
    accepted = record(converge("store", "accept", "--yes", "--json", *STORE))
    assert accepted["epoch"] != accepted["before"]
    answer = converge(*ask, "--wait", "--timeout", "20", "--json")
    assert record(answer)["result"] == {"words": 3}
    waiting = ("tasks", "list", "--state", "pending", "--json", *STORE)
    assert any(converge(*waiting).out == "" for _ in range(500)), "what was submitted meanwhile is done too"
    assert running.poll() is None


def test_a_store_that_has_all_is_left_as_it_is_by_migrate_and_none_is_made(converge: Converge, folder: Path) -> None:
    assert converge("pools", "create", "docs", *STORE).code == 0
    for dry_run in ([], ["--dry-run"]):
        found = record(converge("store", "migrate", "--json", *dry_run, *STORE))
        assert (found["missing"], found["is_dry_run"]) == ([], bool(dry_run))
    assert "nothing is missing" in converge("store", "migrate", *STORE).out
    refused = converge("store", "migrate", "--dry-run", "--store", "file:other.db")
    assert refused.code == 4 and "there is no store at" in refused.err
    assert not (folder / "other.db").exists()


@pytest.mark.parametrize("server", ["postgres_url", "mariadb_url"])
def test_migrate_makes_a_network_of_which_nothing_is_there_for_roles_that_may_not(
    server: str, request: pytest.FixtureRequest, converge: Converge, folder: Path, namespace: str
) -> None:
    at = ("--store", str(request.getfixturevalue(server)), "--network", namespace)
    told = f'the tables of a new network "{namespace}"\n'
    assert converge("store", "migrate", "--dry-run", *at).out == f"missing: {told}"
    assert converge("store", "migrate", *at).out == f"added: {told}"
    assert "nothing is missing" in converge("store", "migrate", *at).out
    assert converge("pools", "list", *at).code == 0


def test_the_table_of_a_kind_of_records_that_is_missing_is_named_then_added(converge: Converge, folder: Path) -> None:
    assert converge("pools", "create", "docs", *STORE).code == 0
    with closing(sqlite3.connect(folder / "state.db")) as connection:
        connection.execute("drop table f_active")
    assert converge("store", "migrate", "--dry-run", *STORE).out == "missing: the table f_active\n"
    assert converge("store", "migrate", *STORE).out == "added: the table f_active\n"
    assert "nothing is missing" in converge("store", "migrate", *STORE).out


def test_the_format_of_a_store_is_shown_and_raised_by_the_first_task_that_needs_it(
    converge: Converge, folder: Path
) -> None:
    (folder / "tasks.jsonl").write_text('{"ordering_key": "k"}')
    assert converge("pools", "create", "docs", *STORE).code == 0
    shown = record(converge("store", "info", "--json", *STORE))
    assert (shown["format"], shown["newest_format"]) == (1, FORMAT)
    assert converge("submit", "tasks.jsonl", "--pool", "docs", *STORE).code == 0
    assert record(converge("store", "info", "--json", *STORE))["format"] == 2
    assert f"format 2 is used in the store; this release knows {FORMAT}" in converge("doctor", *STORE).out
