"""`converge plugins show`: whose a plugin is and what it declares; and that no command imports one that nobody
named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge.cli import COMMANDS

Converge = Callable[..., Any]

SOURCE = """
import attrs
from attrs import validators
from pathlib import Path
from converge.builtin.memory.plugin import MEMORY
from converge.contracts.decisions import DecisionKind
from converge.hookspecs import hookimpl

(Path(__file__).parent / "imported").touch()

@attrs.frozen(kw_only=True)
class ToyOptions:
    wait_sec: float = attrs.field(default=3.0, validator=[validators.ge(1.0), validators.lt(9.0)], metadata={"help":
        "longest wait", "unit": "s"})
    kind: str = attrs.field(default="a", validator=validators.in_(("a", "b")), metadata={"help": "which"})
    must: str = attrs.field(metadata={"help": "what must be said"})

@hookimpl
def converge_stores():
    return [attrs.evolve(MEMORY, name="toy", schemes=("toy", "toys"), options=ToyOptions)]

@attrs.frozen
class Nod:
    pass

@hookimpl
def converge_decisions():
    async def nod(context, decision):
        pass
    return [DecisionKind(name="nod", type=Nod, handler=nod)]

@hookimpl
def converge_node_started(node_id):
    pass
"""


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the import path with the plugin `toy`, which leaves the file `imported` there when it is imported."""
    site = folder / "site"
    info = site / "converge_store_toy-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "toy_of_the_tests.py").write_text(SOURCE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: converge-store-toy\nVersion: 1.2\nSummary: A toy.\n")
    (info / "entry_points.txt").write_text(
        "[converge]\ntoy = toy_of_the_tests\n[converge.schemes]\ntoys = toy_of_the_tests\n"
    )
    monkeypatch.syspath_prepend(site)
    return site


@pytest.mark.parametrize("name", ["toy", "toys"])
def test_a_plugin_is_found_by_its_name_or_by_a_scheme(converge: Converge, installed: Path, name: str) -> None:
    answer = converge("plugins", "show", name, "--json")
    assert (answer.code, json.loads(answer.out)["name"]) == (0, "toy"), answer.err


def test_everything_that_a_plugin_declares_is_shown(converge: Converge, installed: Path) -> None:
    shown = json.loads(converge("plugins", "show", "toy", "--json").out)
    assert (shown["v"], shown["distribution"], shown["version"], shown["summary"]) == (
        1,
        "converge-store-toy",
        "1.2",
        "A toy.",
    )
    assert shown["sha256"] == hashlib.sha256((installed / "toy_of_the_tests.py").read_bytes()).hexdigest()
    assert (shown["file"], shown["hooks"]) == (
        str(installed / "toy_of_the_tests.py"),
        ["converge_decisions", "converge_node_started", "converge_stores"],
    )
    assert shown["decisions"] == ["nod"]
    (backend,) = shown["backends"]
    assert (backend["kind"], backend["name"], backend["schemes"], backend["contract"]) == (
        "store",
        "toy",
        ["toy", "toys"],
        2,
    )
    options = {one.pop("name"): one for one in backend["options"]}
    assert options["wait_sec"] == {
        "type": "a number", "default": 3.0, "is_required": False, "bounds": "at least 1, less than 9",
        "help": ("longest " "wait"), "unit": "s",
    }  # fmt: skip
    assert options["must"]["is_required"] is True
    plain = converge("plugins", "show", "toy").out
    assert "[options.toy]" in plain and "longest wait" in plain and shown["sha256"] in plain


def test_the_options_of_a_named_plugin_are_in_the_schema(converge: Converge, installed: Path) -> None:
    options = json.loads(converge("config", "schema", "--plugin", "toy").out)["properties"]["options"]["properties"][
        "toy"
    ]
    assert options["required"] == ["must"]
    assert options["properties"]["wait_sec"] == {
        "type": "number", "minimum": 1.0, "exclusiveMaximum": 9.0, "description": "longest wait, in s", "default": 3.0,
    }  # fmt: skip
    assert options["properties"]["kind"]["enum"] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ty", 'did you mean "toy"?'),
        ("nothing-like-it", "`converge plugins list` shows what is installed"),
        ("no:toy", "expected the name of a plugin to show, such as toy"),
        ("no_such_module:x", 'there is no module "no_such_module"'),
    ],
)
def test_a_plugin_that_is_not_there_is_told_with_the_nearest(
    converge: Converge, installed: Path, name: str, text: str
) -> None:
    answer = converge("plugins", "show", name)
    assert (answer.code, answer.out) == (2 if name.startswith("no:") else 3, "") and text in answer.err


def test_a_plugin_in_no_group_of_ours_is_told_below_the_list(converge: Converge, installed: Path) -> None:
    file = installed / "converge_store_toy-1.2.dist-info" / "entry_points.txt"
    file.write_text("[converge.plugins]\ntoy = toy_of_the_tests\n")
    answer = converge("plugins", "list")
    assert 'converge-store-toy 1.2 has "toy" in the group "converge.plugins", which is none' in answer.err
    assert answer.code == 0 and "toy" not in answer.out


def test_no_command_imports_a_plugin_that_nobody_named(converge: Converge, installed: Path) -> None:
    store = ("--store", "file:state.db")
    assert converge("run", "counting:WordCounter", "--pool", "docs", "--drain", *store).code == 0
    for words, target, _ in COMMANDS:
        if target:
            converge(*words.split(), "--help")
    for arguments in (
        ["doctor", *store],
        ["plugins", "list"],
        ["plugins", "show", "file"],
        ["config", "show"],
        ["config", "schema"],
        ["store", "info", *store],
    ):
        assert converge(*arguments).code == 0
    assert converge("plugins", "list").out.count("toy") == 3, (
        "its name, its distribution and its scheme: it is installed"
    )
    assert not (installed / "imported").exists()
    assert converge("plugins", "show", "toy").code == 0
    assert (installed / "imported").exists()
