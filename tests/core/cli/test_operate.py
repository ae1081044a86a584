"""`converge tasks cancel`, `retry` and `explain`: what operators do to tasks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge.cli import COMMANDS, TEXTS, _app

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

STORE = ("--store", "file:state.db")
GONE = "0192f3c4-0000-7000-8000-000000000000"


@pytest.fixture
def pool(converge: Converge) -> Converge:
    """The command, with a pool `docs` on the store."""
    assert converge("run", "counting:WordCounter", "--pool", "docs", "--drain", *STORE).code == 0
    return converge


def submitted(converge: Converge, *arguments: str) -> str:
    """Submit a task to `docs`; return its id."""
    answer = converge("submit", "--pool", "docs", *arguments, *STORE)
    assert answer.code == 0
    return str(answer.out.strip())


def records(answer: Any) -> list[dict[str, Any]]:
    """The JSON lines of an answer; each says its version."""
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert all(one.pop("v") == 1 for one in found)
    return found


def failed_task(converge: Converge, folder: Path) -> str:
    """Run a task that fails for good; return its id."""
    (folder / "tasks.jsonl").write_text(
        '{"inputs": {"text": "bad"}, "max_attempts": 1, "dedup_key": "k", "trace": {"a": "b"}}'
    )
    answer = converge("run", "counting:Picky", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", "--json", *STORE)
    assert answer.code == 1
    return str(records(answer)[0]["id"])


def test_pending_tasks_are_cancelled_once_and_their_history_says_why(pool: Converge) -> None:
    ids = [submitted(pool), submitted(pool)]
    answer = pool("tasks", "cancel", *ids, ids[0], "--why", "not needed", "--json", *STORE)
    assert answer.code == 0
    assert records(answer) == [{"id": id_, "is_cancelled": True, "state": "CANCELLED"} for id_ in ids]
    (shown,) = records(pool("tasks", "show", ids[0], "--json", *STORE))
    assert [(one["what"], one["by"], one["why"]) for one in shown["history"]] == [
        ("cancelled", "operator", "not needed")
    ]
    again = pool("tasks", "cancel", ids[0], *STORE)
    assert (again.code, again.out.splitlines()[1].split()[1:]) == (0, ["cancelled", "before"])


def test_a_lone_dash_is_standard_input_only_where_a_file_is_meant(pool: Converge) -> None:
    assert pool("submit", "--pool", "docs", "--type", "-", *STORE).code == 0
    (task,) = [json.loads(line) for line in pool("tasks", "list", "--json", *STORE).out.splitlines()]
    assert task["type"] == "-"
    assert pool("tasks", "cancel", task["id"], "--why", "-", *STORE).code == 0
    (task,) = [json.loads(line) for line in pool("tasks", "list", "--json", *STORE).out.splitlines()]
    assert task["history"][-1]["why"] == "-"


def test_a_dash_for_an_argument_is_itself_or_refused(pool: Converge) -> None:
    assert pool("submit", "--pool", "docs", "--ordering-key", "-", *STORE).code == 0
    task = json.loads(pool("tasks", "list", "--json", *STORE).out)
    assert task["ordering_key"] == "-"
    refused = pool("tasks", "signal", task["id"], "-", *STORE)
    assert (refused.code, refused.err.count("\n")) == (2, 1) and "write -- and it" in refused.err
    sent = pool("tasks", "signal", task["id"], "--key", "-", "--json", *STORE, "--", "-")
    assert json.loads(sent.out)["name"] == "-"


def test_each_flag_with_a_text_takes_a_dash() -> None:
    app, taking = _app(), set[str]()
    for words, _, _ in COMMANDS:
        command = app
        for word in words.split():
            command = command[word]
        for argument in command.assemble_argument_collection() if command.default_command is not None else ():
            if argument.name.startswith("-") and argument.hint in (str, list[str], str | None, list[str] | None):
                taking.add(argument.name)
    assert taking == TEXTS


def test_cancelling_a_task_that_ended_otherwise_exits_with_one_and_changes_nothing(
    pool: Converge, folder: Path
) -> None:
    id_ = failed_task(pool, folder)
    answer = pool("tasks", "cancel", id_, "--json", *STORE)
    assert (answer.code, records(answer)) == (1, [{"id": id_, "is_cancelled": False, "state": "FAILED"}])


def test_nothing_is_cancelled_if_one_id_names_no_task_and_all_such_ids_are_told(pool: Converge) -> None:
    id_ = submitted(pool)
    answer = pool("tasks", "cancel", id_, GONE, "nonsense", *STORE)
    assert (answer.code, answer.out) == (2, "")
    assert GONE in answer.err and "nonsense" in answer.err
    assert records(pool("tasks", "show", id_, "--json", *STORE))[0]["state"] == "PENDING"
    assert pool("tasks", "cancel", *STORE).code == 2


def test_a_failed_task_is_retried_as_one_linked_copy_without_its_dedup_key(pool: Converge, folder: Path) -> None:
    id_ = failed_task(pool, folder)
    ((first,), (again,)) = (records(pool("tasks", "retry", id_, "--json", *STORE)) for _ in range(2))
    assert (first["id"], first["state"], again) == (id_, "PENDING", first)
    (copy,) = records(pool("tasks", "show", first["retry_id"], "--json", *STORE))
    assert (copy["inputs"], copy["max_attempts"], copy["dedup_key"], copy["trace"]) == (
        {"text": "bad"},
        1,
        None,
        {"a": "b", "retry_of": id_},
    )
    assert [one["state"] for one in records(pool("tasks", "list", "--json", *STORE))] == ["PENDING", "FAILED"]
    plain = pool("tasks", "retry", id_, *STORE).out.splitlines()
    assert plain[1].split() == [id_, first["retry_id"], "pending"]


def test_nothing_is_retried_if_one_of_the_tasks_has_not_failed(pool: Converge, folder: Path) -> None:
    failed, pending = failed_task(pool, folder), submitted(pool)
    answer = pool("tasks", "retry", failed, pending, *STORE)
    assert (answer.code, answer.out) == (2, "")
    assert f"task {pending} is PENDING; only one that is FAILED or CANCELLED is retried" in answer.err
    assert len(records(pool("tasks", "list", "--json", *STORE))) == 2


def test_a_task_that_no_agent_may_claim_is_explained(pool: Converge, start: Start) -> None:
    id_ = submitted(pool, "--capability", "fly")
    (alone,) = records(pool("tasks", "explain", id_, "--json", *STORE))
    assert (alone["place"], alone["is_claimable"], alone["agents"]) == ("ready", False, [])
    assert alone["reasons"] == ['no agent that is listed is in pool "docs"']
    process = start("run", "counting:WordCounter", "--agents", "2", "--pool", "docs", *STORE)
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    (explained,) = records(pool("tasks", "explain", id_, "--json", *STORE))
    assert explained["reasons"] == ['none of the agents listed in pool "docs" may take it']
    assert explained["agents"] == [
        {
            "name": "WordCounter",
            "count": 2,
            "capabilities": ["count-words"],
            "topics": [],
            "why_not": "it lacks the capabilities fly",
        }
    ]
    plain = [line.split(None, 2) for line in pool("tasks", "explain", id_, *STORE).out.splitlines()]
    assert ["WordCounter", "2", "it lacks the capabilities fly"] in plain and ["place", "ready"] in plain
    assert pool("tasks", "explain", GONE, *STORE).code == 2
