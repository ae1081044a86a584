"""`converge pools`: created, counted, shown, paused, resumed."""

from __future__ import annotations

import json
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


def test_a_pool_is_created_once_and_then_left_as_it_is(converge: Converge) -> None:
    first = converge(
        "pools", "create", "docs", "--keep-failed", "60", "--priority-step", "5", "--paused", "--json", *STORE
    )
    again = converge("pools", "create", "docs", "--keep-failed", "70", "--json", *STORE)
    assert (records(first), records(again)) == (
        [{"id": "docs", "is_created": True, "differs": {}}],
        [{"id": "docs", "is_created": False, "differs": {"keep_failed_sec": 60.0}}],
    )
    told = converge("pools", "create", "docs", "--keep-failed", "70", *STORE).err
    assert told == "keep_failed_sec of pool docs is 60.0, not 70.0 as asked\n"
    (shown,) = records(converge("pools", "show", "docs", "--json", *STORE))
    assert (shown["keep_failed_sec"], shown["priority_step_sec"], shown["is_paused"]) == (60, 5, True)
    assert converge("pools", "create", "docs", *STORE).out == "pool docs exists already and was left as it is\n"


def test_the_retention_of_a_new_pool_is_that_of_the_configuration(converge: Converge, folder: Path) -> None:
    (folder / "converge.toml").write_text('store = "file:state.db"\n[retention]\ncompleted_sec = 11\nfailed_sec = 12\n')
    assert converge("pools", "create", "docs", "-c", "converge.toml", "--keep-failed", "13").code == 0
    (shown,) = records(converge("pools", "show", "docs", "--json", *STORE))
    assert (shown["keep_completed_sec"], shown["keep_failed_sec"]) == (11, 13)


def test_a_join_secret_comes_from_a_file_and_is_never_shown(converge: Converge, folder: Path) -> None:
    (folder / "secret").write_text("geheim\n")
    assert converge("pools", "create", "docs", "--admission", "secret", "--secret-file", "secret", *STORE).code == 0
    told = [
        converge("pools", *what, *STORE).out
        for what in (["show", "docs", "--json"], ["show", "docs"], ["list", "--json"])
    ]
    assert not any("secret_hash" in text or "geheim" in text for text in told)


def test_the_tasks_of_a_pool_are_counted_by_place(converge: Converge, folder: Path) -> None:
    tasks = [{}, {"type": "t"}, {"not_before": "2099-01-01T00:00:00Z"}, {"ordering_key": "k"}, {"ordering_key": "k"}]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    for pool in ("docs", "mail"):
        assert converge("pools", "create", pool, *STORE).code == 0
    assert converge("submit", "tasks.jsonl", "--pool", "docs", *STORE).code == 0
    id_ = converge("submit", "--pool", "docs", *STORE).out.strip()
    assert converge("tasks", "cancel", id_, *STORE).code == 0
    docs, mail = records(converge("pools", "list", "--json", *STORE))
    places = ("ready", "later", "parked", "waiting", "held", "done", "completed", "failed", "cancelled")
    assert (docs["id"], [docs[place] for place in places]) == ("docs", [3, 1, 0, 1, 0, 1, 0, 0, 1])
    assert (mail["id"], {mail[place] for place in places}) == ("mail", {0})
    plain = converge("pools", "list", *STORE).out.splitlines()
    assert plain[0].split() == [
        "pool",
        "admission",
        "paused",
        "ready",
        "later",
        "parked",
        "waiting",
        "held",
        "done",
        "failed",
    ]
    assert plain[1].split() == ["docs", "open", "3", "1", "0", "1", "0", "1", "0"]
    assert ["ready", "3"] in [line.split() for line in converge("pools", "show", "docs", *STORE).out.splitlines()]


def test_pools_are_paused_and_resumed_and_it_is_told_what_changed(converge: Converge) -> None:
    for pool in ("docs", "mail"):
        assert converge("pools", "create", pool, *STORE).code == 0
    assert converge("pools", "pause", "mail", *STORE).out == "pool mail was paused\n"
    paused = converge("pools", "pause", "docs", "mail", "--json", *STORE)
    assert [(one["id"], one["is_paused"], one["is_changed"]) for one in records(paused)] == [
        ("docs", True, True),
        ("mail", True, False),
    ]
    assert {one["is_paused"] for one in records(converge("pools", "list", "--json", *STORE))} == {True}
    assert converge("pools", "resume", "docs", *STORE).out == "pool docs was resumed\n"
    assert [one["is_paused"] for one in records(converge("pools", "list", "--json", *STORE))] == [False, True]


def test_nothing_is_paused_if_one_of_the_pools_is_not_there(converge: Converge) -> None:
    assert converge("pools", "create", "docs", *STORE).code == 0
    answer = converge("pools", "pause", "docs", "dogs", *STORE)
    assert (answer.code, answer.out) == (3, "")
    assert 'pool "dogs" does not exist; did you mean "docs"?' in answer.err
    assert [one["is_paused"] for one in records(converge("pools", "list", "--json", *STORE))] == [False]


def test_the_allow_list_is_edited_and_shown(converge: Converge) -> None:
    assert converge("pools", "create", "docs", "--admission", "allow", "--allow", "a", *STORE).code == 0
    (added,) = records(converge("pools", "allow", "docs", "b", "a", "b", "--json", *STORE))
    (removed,) = records(converge("pools", "allow", "docs", "a", "--remove", "--json", *STORE))
    assert (added, removed) == (
        {"id": "docs", "allow": ["a", "b"], "is_changed": True},
        {"id": "docs", "allow": ["b"], "is_changed": True},
    )
    assert (
        converge("pools", "allow", "docs", "a", "--remove", *STORE).out
        == "pool docs allows 1 agent; nothing was to be changed\n"
    )
    assert records(converge("pools", "show", "docs", "--json", *STORE))[0]["allow"] == ["b"]
    assert converge("pools", "create", "all", *STORE).code == 0
    answer = converge("pools", "allow", "all", "a", *STORE)
    assert (answer.code, answer.out) == (2, "") and "the list of another one would not count" in answer.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["create", "a b", *STORE], 2, "a b"),
        (["create", "p", "--keep-failed", "-1", *STORE], 2, "pool.keep_failed_sec"),
        (
            ["create", "p", "--admission", "secret", *STORE],
            2,
            "--secret-file and --admission secret must be used together",
        ),
        (
            ["create", "p", "--admission", "secret", "--secret-file", "gone", *STORE],
            2,
            "--secret-file gone: cannot be read",
        ),
        (["create", "p", "--admission", "none", *STORE], 2, "none"),
        (["create", "p"], 3, "store: memory: is seen by this process only"),
        (["show", "p", *STORE], 4, "there is no store at"),
        (["list", "--store", "redis://localhost:1/0"], 4, "localhost:1"),
    ],
)
def test_what_cannot_be_done_says_why_with_its_exit_code(
    converge: Converge, arguments: list[str], code: int, text: str
) -> None:
    answer = converge("pools", *arguments)
    assert text in answer.err
    assert (answer.code, answer.out) == (code, "")
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--allow", "a"), "--admission allow"),
        (("--admission", "open", "--allow", "a"), "--admission allow"),
        (("--admission", "secret"), "--secret-file"),
        (("--secret-file", "secret"), "--admission secret"),
    ],
)
def test_flags_that_would_not_count_are_refused_and_no_pool_is_made(
    converge: Converge, folder: Path, flags: tuple[str, ...], words: str
) -> None:
    (folder / "secret").write_text("geheim\n")
    answer = converge("pools", "create", "docs", *flags, *STORE)
    assert (answer.code, words in answer.err, (folder / "state.db").exists()) == (2, True, False)
