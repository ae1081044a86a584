"""`converge tasks list` and `purge`: what is found, in pages, and what goes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]

STORE = ("--store", "file:state.db")


def records(answer: Any) -> list[dict[str, Any]]:
    """The JSON lines of an answer that went well; each says its version."""
    assert answer.code == 0, answer.err
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert all(one.pop("v") == 1 for one in found)
    return found


@pytest.fixture
def filled(converge: Converge, folder: Path) -> Converge:
    """The command, with a pool `docs` that holds four completed tasks, one that failed, and one that waits; and a pool
    `empty`.
    """
    lines: list[dict[str, object]] = [
        {"inputs": {"text": str(at)}, "type": f"t{at % 2}", "topic": f"about-{at}"} for at in range(4)
    ]
    lines.append({"inputs": {"text": "bad"}, "max_attempts": 1, "dedup_key": "k", "topic": "sad"})
    (folder / "tasks.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert converge("run", "counting:Picky", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", *STORE).code == 1
    assert converge("submit", "--pool", "docs", "--capability", "fly", *STORE).code == 0
    assert converge("pools", "create", "empty", *STORE).code == 0
    return converge


def listed(converge: Converge, *arguments: str) -> list[str]:
    """What the tasks of a list are about."""
    return sorted(
        str(one["inputs"].get("text", "-")) for one in records(converge("tasks", "list", "--json", *arguments, *STORE))
    )


def test_tasks_are_found_by_state_pool_type_topic_and_age(filled: Converge) -> None:
    assert listed(filled) == ["-", "0", "1", "2", "3", "bad"]
    assert listed(filled, "--state", "failed") == listed(filled, "--dead-letters") == ["bad"]
    assert listed(filled, "--type", "t1") == ["1", "3"]
    assert listed(filled, "--type", "t1", "--topic", "about-1", "--topic", "sad") == ["1"]
    assert listed(filled, "--pool", "empty") == []
    assert listed(filled, "--since", "1h", "--state", "pending") == ["-"]
    assert listed(filled, "--since", "2999-01-01") == []


def test_a_list_goes_on_where_the_last_page_ended(filled: Converge) -> None:
    first = filled("tasks", "list", "--limit", "4", "--json", *STORE)
    assert "--skip 4 shows the next ones" in first.err
    rest = filled("tasks", "list", "--limit", "4", "--skip", "4", "--json", *STORE)
    assert rest.err == ""
    ids = [one["id"] for answer in (first, rest) for one in records(answer)]
    assert ids == [one["id"] for one in records(filled("tasks", "list", "--limit", "0", "--json", *STORE))]
    assert len(set(ids)) == 6


def test_dead_letters_are_shown_with_their_errors(filled: Converge) -> None:
    head, row = filled("tasks", "list", "--dead-letters", *STORE).out.splitlines()
    assert "error" in head.split() and "ValueError: it is bad" in row
    assert filled("tasks", "list", "--dead-letters", "--state", "pending", *STORE).code == 2


def test_a_list_of_nothing_says_so_beside_standard_output(filled: Converge) -> None:
    answer = filled("tasks", "list", "--pool", "empty", *STORE)
    assert (answer.code, answer.out, answer.err) == (0, "", "no tasks that fit\n")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["list", "--since", "yesterday"], 2, "--since: 'yesterday' is not allowed; expected an age such as"),
        (["list", "--limit", "-1"], 2, "--limit"),
        (["list", "--pool", "doc"], 3, 'did you mean "docs"?'),
        (["purge"], 2, "--pool or --all-pools"),
        (["purge", "--pool", "docs", "--all-pools"], 2, "--pool or --all-pools"),
        (["purge", "--pool", "docs"], 2, "--yes is missing"),
        (["purge", "--pool", "doc", "--yes"], 3, 'did you mean "docs"?'),
        (["purge", "--pool", "docs", "--state", "pending", "--yes"], 2, "expected a state of tasks that have ended"),
        (["purge", "--pool", "docs", "--older-than", "7", "--yes"], 2, "--older-than: '7' is not allowed"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_goes(
    filled: Converge, arguments: list[str], code: int, text: str
) -> None:
    answer = filled("tasks", *arguments, *STORE)
    assert (answer.code, answer.out) == (code, "") and text in answer.err
    assert len(listed(filled)) == 6


def test_a_dry_run_counts_what_would_go(filled: Converge) -> None:
    counts = records(filled("tasks", "purge", "--all-pools", "--dry-run", "--json", *STORE))
    assert counts == [
        {"pool_id": "docs", "state": "COMPLETED", "count": 4, "is_removed": False},
        {"pool_id": "docs", "state": "FAILED", "count": 1, "is_removed": False},
    ]
    assert len(listed(filled)) == 6


def test_ended_tasks_go_with_their_dedup_keys_and_live_ones_stay(filled: Converge) -> None:
    assert records(filled("tasks", "purge", "--pool", "docs", "--older-than", "1h", "--yes", "--json", *STORE)) == []
    gone = records(
        filled("tasks", "purge", "--pool", "docs", "--state", "failed", "--older-than", "0s", "--yes", "--json", *STORE)
    )
    assert gone == [{"pool_id": "docs", "state": "FAILED", "count": 1, "is_removed": True}]
    assert filled("submit", "--pool", "docs", "--dedup-key", "k", "--input", "text=again", *STORE).code == 0
    assert filled("tasks", "purge", "--all-pools", "-y", *STORE).out.splitlines()[1].split() == [
        "docs",
        "completed",
        "4",
    ]
    assert listed(filled) == ["-", "again"]


@pytest.mark.parametrize(("reply", "code", "left"), [("n\n", 1, 6), ("y\n", 0, 1)])
def test_somebody_at_a_terminal_is_asked_first(filled: Converge, reply: str, code: int, left: int) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "converge", "tasks", "purge", "--pool", "docs", *STORE]
    process = subprocess.Popen(command, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE)
    os.close(theirs)
    told = b""
    while b"[y/N]" not in told:
        told += os.read(ours, 1_000)
    assert b"Remove 5 tasks (4 completed in docs, 1 failed in docs)?" in told
    os.write(ours, reply.encode())
    process.communicate(timeout=30)
    os.close(ours)
    assert process.returncode == code
    assert len(listed(filled)) == left
