"""`converge identity`: makes, rotates and shows kept keys, and never writes a key."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Converge = Callable[..., Any]
Start = Callable[..., "subprocess.Popen[str]"]

KEYS = ("--identity-dir", "keys")


def records(answer: Any) -> list[dict[str, Any]]:
    assert answer.code == 0, answer.err
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert all(one.pop("v") == 1 for one in found)
    return found


def test_a_new_key_is_shown_by_type_id_and_file_but_never_itself(converge: Converge, folder: Path) -> None:
    (made,) = records(converge("identity", "new", "WordCounter", "--json", *KEYS))
    file = folder / "keys/agent.WordCounter.0.key"
    assert made == {
        "name": "agent.WordCounter.0", "type": "ed25519", "id": made["id"], "path": str(file), "rotations": 0,
        "is_used": False,
    }  # fmt: skip
    assert made["id"].startswith("cv1")
    seed = json.loads(file.read_text())["seed"]
    for answer in (
        converge("identity", "show", *KEYS),
        converge("identity", "show", "--json", *KEYS),
        converge("identity", "show", "-v", *KEYS),
    ):
        assert answer.code == 0 and made["id"] in answer.out
        assert seed not in answer.out + answer.err


def test_each_new_key_of_a_kind_has_the_next_number_and_node_is_the_default(converge: Converge) -> None:
    names = [
        records(converge("identity", "new", *kind, "--json", *KEYS))[0]["name"]
        for kind in ((), (), ("Picky",), ("Picky",))
    ]
    assert names == ["node.0", "node.1", "agent.Picky.0", "agent.Picky.1"]
    assert [one["name"] for one in records(converge("identity", "show", "--json", *KEYS))] == sorted(names)


def test_a_rotated_key_has_another_id_and_counts_its_rotations(converge: Converge) -> None:
    (old,) = records(converge("identity", "new", "--json", *KEYS))
    (new,) = records(converge("identity", "new", "node.0", "--rotate", "--json", *KEYS))
    assert (new["name"], new["rotations"]) == ("node.0", 1) and new["id"] != old["id"]
    assert records(converge("identity", "show", "node.0", "--json", *KEYS)) == [new]


def test_the_folder_may_stand_in_the_configuration(converge: Converge, folder: Path) -> None:
    (folder / "converge.toml").write_text('identity_dir = "elsewhere"\n')
    assert converge("identity", "new", "-c", "converge.toml").code == 0
    assert (folder / "elsewhere/node.0.key").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("show",), 3, "identity_dir: is missing"),
        (("show", "--identity-dir", "nowhere"), 3, "it does not exist"),
        (("new", "node.0", "--rotate", *KEYS), 3, "there is no such key"),
        (("new", "a b", *KEYS), 2, "not a valid name"),
        (("new", "../../x", *KEYS), 2, "not a valid name"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    converge: Converge, arguments: tuple[str, ...], code: int, words: str
) -> None:
    answer = converge("identity", *arguments)
    assert (answer.code, answer.out) == (code, "")
    assert words in answer.err and len(answer.err.splitlines()) == 1


def test_a_key_that_others_can_read_is_refused_with_the_way_out(converge: Converge, folder: Path) -> None:
    assert converge("identity", "new", *KEYS).code == 0
    (folder / "keys/node.0.key").chmod(0o644)
    answer = converge("identity", "show", *KEYS)
    assert answer.code == 3 and "0644" in answer.err and "chmod 0600" in answer.err


def test_a_running_process_uses_its_key_and_it_cannot_be_rotated_meanwhile(
    converge: Converge, start: Start, folder: Path
) -> None:
    (folder / "converge.toml").write_text('identity_dir = "keys"\n')
    (made,) = records(converge("identity", "new", "WordCounter", "--json", *KEYS))
    assert converge("pools", "create", "docs", "--store", "file:state.db").code == 0
    process = start("run", "counting:WordCounter", "-c", "converge.toml", "--pool", "docs", "--store", "file:state.db")
    assert process.stderr is not None
    assert any("running" in line for line in process.stderr), "it ended before it ran"
    assert records(converge("identity", "show", made["name"], "--json", *KEYS))[0]["is_used"] is True
    answer = converge("identity", "new", made["name"], "--rotate", *KEYS)
    assert answer.code == 3 and "a process that lives uses it" in answer.err
    assert made["id"] in [
        one["id"] for one in records(converge("agents", "list", "--json", "--store", "file:state.db"))
    ]


def test_a_slip_of_the_pen_in_a_rotation_leaves_nothing_behind(converge: Converge, folder: Path) -> None:
    assert converge("identity", "new", "--identity-dir", "keys").code == 0
    before = sorted((folder / "keys").iterdir())
    assert converge("identity", "new", "node.7", "--rotate", "--identity-dir", "keys").code == 3
    assert sorted((folder / "keys").iterdir()) == before
