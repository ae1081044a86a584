"""`converge submit` and `converge tasks`: what goes in, what is told of it."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

STORE = ("--store", "file:state.db")


@pytest.fixture
def pool(converge: Converge) -> Converge:
    """The command, with a pool `docs` on the store."""
    assert converge("run", "counting:WordCounter", "--pool", "docs", "--drain", *STORE).code == 0
    return converge


def listed(converge: Converge, *arguments: str) -> list[dict[str, Any]]:
    """The tasks that `tasks list` tells."""
    answer = converge("tasks", "list", "--json", *STORE, *arguments)
    assert answer.code == 0
    return [json.loads(line) for line in answer.out.splitlines()]


def test_a_task_of_flags_is_stored_as_said(pool: Converge, folder: Path) -> None:
    (folder / "page.md").write_text("héllo world")
    (folder / "raw").write_bytes(b"\xff\x00")
    answer = pool(
        "submit", "--pool", "docs", "--capability", "a", "--capability", "b", "--type", "t", "--topic", "x",
        "--priority", "5", "--dedup-key", "k",
        "--input", "text=@page.md", "--input", "raw=@raw", "--input", "eq=1=2", *STORE,
    )  # fmt: skip
    assert answer.code == 0
    (task,) = listed(pool)
    assert (task["v"], task["id"], task["state"]) == (1, answer.out.strip(), "PENDING")
    assert (task["required_capabilities"], task["type"], task["topic"], task["priority"], task["dedup_key"]) == (
        ["a", "b"],
        "t",
        "x",
        5,
        "k",
    )
    assert task["inputs"] == {"text": "héllo world", "raw": {"$bytes": "/wA="}, "eq": "1=2"}


def test_a_file_of_lines_is_submitted_in_its_order(
    pool: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        '{"inputs": {"raw": {"$bytes": "/wA="}}, "not_before": "2099-01-01T00:00:00Z"}\n\n{"pool_id": "docs", "type": '
        '"t"}\n'
    )
    (folder / "tasks.jsonl").write_text(lines)
    first = pool("submit", "tasks.jsonl", "--pool", "docs", "--json", *STORE)
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    second = pool("submit", "-", "--pool", "docs", "--json", *STORE)
    assert (first.code, second.code) == (0, 0)
    records = [json.loads(line) for line in (first.out + second.out).splitlines()]
    assert all(record.keys() == {"v", "id"} for record in records)
    tasks = {task["id"]: task for task in listed(pool)}
    assert [tasks[record["id"]]["type"] for record in records] == ["", "t", "", "t"]
    assert tasks[records[0]["id"]]["not_before"] == "2099-01-01T00:00:00+00:00"
    assert tasks[records[0]["id"]]["inputs"] == {"raw": {"$bytes": "/wA="}}


def test_nothing_is_submitted_if_one_line_is_wrong_and_all_wrong_lines_are_told(pool: Converge, folder: Path) -> None:
    wrong = [
        '{"type": "good"}', '{"typ": "t"}', "nonsense", "[1]", '{"priority": 5000}',
        '{"inputs": {"a": {"$bytes": "!"}}}', '{"deadline": "soon"}',
        '{"type": "a b"}', '{"pool_id": "x y"}', '{"id": "nope"}',
    ]  # fmt: skip
    (folder / "tasks.jsonl").write_text("\n".join(wrong))
    answer = pool("submit", "tasks.jsonl", "--pool", "docs", *STORE)
    assert (answer.code, answer.out) == (2, "")
    told = answer.err.removeprefix("converge: ").splitlines()
    assert [line.split(": ")[1] for line in told] == [f"line {number}" for number in range(2, 11)]
    assert told[0] == 'tasks.jsonl: line 2: typ: unknown key; did you mean "type"?'
    assert told[3] == "tasks.jsonl: line 5: priority: 5000 is not allowed; expected an integer from -1000 to 1,000"
    assert listed(pool) == []


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--pool", "docks", *STORE], 3, 'pool "docks" does not exist; did you mean "docs"?'),
        (["--pool", "docs"], 3, "store: memory: is seen by this process only; name the one that the agents use"),
        ([*STORE], 2, "--pool is missing"),
        (
            ["--pool", "docs", "--input", "text", *STORE],
            2,
            "--input text: expected NAME=TEXT, NAME:=JSON or NAME=@FILE",
        ),
        (["--pool", "docs", "--input", "a=1", "--input", "a=2", *STORE], 2, "--input a: is given twice"),
        (
            ["--pool", "docs", "--input", "a=@gone", *STORE],
            2,
            "--input a: gone cannot be read: No such file or directory",
        ),
        (
            ["counting.py", "--pool", "docs", "--capability", "a", *STORE],
            2,
            "--capability describes one task; with a file its lines do that",
        ),
        (
            ["counting.py", "--pool", "docs", "--dedup-key", "a", *STORE],
            2,
            "--dedup-key describes one task; with a file its lines do that",
        ),
        (["--pool", "docs", "--timeout", "3", *STORE], 2, "--timeout needs --wait"),
        (["--pool", "docs", "--store", "redis://localhost:1/0"], 4, "localhost:1"),
        (["--pool", "docs", "--wait", "--timeout", "0.1", *STORE], 5, "was not terminal after 0.1 s"),
    ],
)
def test_what_cannot_be_submitted_says_why_with_its_exit_code(
    pool: Converge, arguments: list[str], code: int, text: str
) -> None:
    answer = pool("submit", *arguments)
    assert text in answer.err
    assert answer.code == code
    assert "Traceback" not in answer.err


def test_when_the_time_to_wait_is_over_each_task_is_shown_as_it_stands(pool: Converge, folder: Path) -> None:
    (folder / "tasks.jsonl").write_text('{"inputs": {"name": "one"}}\n{"inputs": {"name": "two"}}\n')
    answer = pool("submit", "tasks.jsonl", "--pool", "docs", "--wait", "--timeout", "0.1", "--json", *STORE)
    assert (answer.code, "(2 of 2)" in answer.err) == (5, True)
    shown = [json.loads(line) for line in answer.out.splitlines()]
    assert [(one["v"], one["hint"], one["state"]) for one in shown] == [(1, "one", "PENDING"), (1, "two", "PENDING")]
    assert [one["id"] for one in shown] == [one["id"] for one in listed(pool)]


def test_waiting_shows_the_result_of_agents_that_run_elsewhere(pool: Converge, start: Start) -> None:
    process = start("run", "counting:WordCounter", "--agents", "2", "--pool", "docs", *STORE)
    answer = pool(
        "submit",
        "--pool",
        "docs",
        "--capability",
        "count-words",
        "--input",
        "text=a b c",
        "--wait",
        "--timeout",
        "30",
        *STORE,
    )
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert (process.returncode, answer.code) == (0, 0), log
    assert answer.out.splitlines()[1].split() == ["a", "b", "c", "3"]


def test_a_task_is_shown_with_its_history(converge: Converge, folder: Path) -> None:
    (folder / "tasks.jsonl").write_text('{"inputs": {"text": "bad"}, "max_attempts": 1}')
    assert converge("run", "counting:Picky", "--pool", "docs", "--submit", "tasks.jsonl", "--drain", *STORE).code == 1
    (task,) = listed(converge, "--state", "failed")
    answer = converge("tasks", "show", task["id"], "--json", *STORE)
    shown = json.loads(answer.out)
    assert shown.pop("durable") == {"steps": [], "names": [], "unread": [], "children": {}, "chunks": 0}
    assert (answer.code, shown) == (0, task)
    (attempt,) = shown["history"]
    assert (attempt["what"], attempt["why"]) == ("failed", "ValueError: it is bad")
    plain = converge("tasks", "show", task["id"], *STORE).out
    assert all(word in plain for word in (task["id"], "FAILED", "ValueError: it is bad", '{"text": "bad"}'))


def test_tasks_are_listed_by_state_and_pool(pool: Converge) -> None:
    for _ in range(3):
        assert pool("submit", "--pool", "docs", *STORE).code == 0
    assert len(listed(pool, "--state", "pending", "--pool", "docs")) == 3
    assert len(listed(pool, "--limit", "2")) == 2
    assert listed(pool, "--state", "completed") == []
    plain = pool("tasks", "list", *STORE).out.splitlines()
    assert plain[0].split() == ["id", "state", "pool", "attempts", "submitted", "worker", "since", "task"]
    assert len(plain) == 4


def test_tasks_of_a_pool_that_is_not_there_exit_with_three_and_the_nearest_name(pool: Converge) -> None:
    answer = pool("tasks", "list", "--pool", "doc", *STORE)
    assert (answer.code, answer.out) == (3, "")
    assert 'did you mean "docs"?' in answer.err


def test_a_task_that_is_not_there_is_a_usage_error(pool: Converge) -> None:
    answer = pool("tasks", "show", "0192f3c4-0000-7000-8000-000000000000", *STORE)
    assert (answer.code, answer.out) == (2, "")
    assert "does not exist" in answer.err
    assert pool("tasks", "show", "nonsense", *STORE).code == 2


def test_the_flags_of_a_task_are_its_fields(converge: Converge) -> None:
    made = converge(
        *("submit", "--pool", "new", "--create-pool", *STORE, "--max-attempts", "2", "--ordering-key", "k"),
        *("--not-before", "1h", "--deadline", "2099-01-01", "--input", "n:=1", "--input", "text=a   b"),
    )
    assert made.code == 0, made.err
    id_ = made.out.strip()
    shown = json.loads(converge("tasks", "show", id_[:-4], "--json", *STORE).out)
    assert (shown["id"], shown["inputs"]) == (id_, {"n": 1, "text": "a   b"})
    assert (shown["max_attempts"], shown["ordering_key"]) == (2, "k")
    assert shown["deadline"] == "2099-01-01T00:00:00+00:00" and shown["not_before"] > shown["submitted_at"]
    assert '"a   b"' in converge("tasks", "show", id_, *STORE).out
    again = converge("submit", "--pool", "new", "--id", id_, *STORE)
    assert (again.code, "was submitted with other" in again.err or id_ in again.err) == (2, True), again


@pytest.mark.parametrize(
    ("beginning", "why"),
    [("ffff", "none begins with this"), ("01", "expected a UUID"), ("nonsense", "expected a UUID")],
)
def test_a_beginning_that_is_no_tasks_is_refused(pool: Converge, beginning: str, why: str) -> None:
    answer = pool("tasks", "show", beginning, *STORE)
    assert (answer.code, why in answer.err) == (2, True), answer.err


def test_a_beginning_of_several_ids_is_refused(pool: Converge, folder: Path) -> None:
    ids = [f"0190a000-0000-7000-8000-00000000000{number}" for number in range(2)]
    for id_ in ids:
        assert pool("submit", "--pool", "docs", "--id", id_, *STORE).code == 0
    answer = pool("tasks", "cancel", ids[0][:10], *STORE)
    assert (answer.code, "several ids begin with this" in answer.err) == (2, True), answer.err
    assert pool("tasks", "cancel", ids[0], *STORE).code == 0


def test_a_file_may_begin_with_a_byte_order_mark(pool: Converge, folder: Path) -> None:
    (folder / "tasks.jsonl").write_bytes(b'\xef\xbb\xbf{"inputs": {"a": 1}}\n')
    assert pool("submit", "tasks.jsonl", "--pool", "docs", *STORE).code == 0
