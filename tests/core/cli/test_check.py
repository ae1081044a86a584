"""`converge plugins check`: the whole kit on a plugin that nobody wrote a test file for, and its report card."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from abc import ABC
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from converge.builtin.memory.plugin import MEMORY
from converge.cli.plugins.show import _ABOUT_ALL as CARD
from converge.contracts.store import Prefix, Store
from converge.operations.plugins.info import loaded_as, save_cards
from converge.operations.plugins.package import package_mistakes
from converge.plugins import PluginHost
from converge.testing._check.card import _Filler
from converge.testing.running import said_of

Converge = Callable[..., Any]


@pytest.mark.timeout(300)
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
    # What is pasted alone fails again: the command of the card, which runs one test with its seed.
    again = next(line for line in answer.out.splitlines() if line.startswith("again: "))
    pasted = converge(*shlex.split(again)[2:])
    assert (pasted.code, pasted.out.count("\nbroken D-")) == (1, 1), pasted.out[-2_000:]


def test_a_plugin_that_is_not_there_is_told_as_run_does(converge: Converge) -> None:
    answer = converge("plugins", "check", "reddis")
    assert (answer.code, 'did you mean "redis"?' in answer.err) == (3, True), answer.err


@pytest.mark.parametrize(
    ("url", "wanted"), [("state.db", "file:"), ("redis://:hunter2@cache", "file:"), ("flie:state.db", "file:")]
)
def test_a_url_of_none_of_its_backends_is_no_success(converge: Converge, url: str, wanted: str) -> None:
    answer = converge("plugins", "check", "file", url, "--quick")
    assert (answer.code, f"begins with {wanted}" in answer.err) == (2, True), answer.out + answer.err
    assert "hunter2" not in answer.err


def test_a_plugin_without_a_scheme_takes_no_url(converge: Converge) -> None:
    answer = converge("plugins", "check", "static", "static:nodes", "--quick")
    assert (answer.code, "no backend of static has a scheme" in answer.err) == (2, True), answer.out + answer.err


TWO_MISTAKES = """
import attrs

from converge.builtin.memory.plugin import MEMORY
from converge.hookspecs import hookimpl


@attrs.frozen
class Options:
    size: int = 1


@hookimpl
def converge_stores():
    return [attrs.evolve(MEMORY, name="owl", schemes=("owl", "owls"), options=Options)]
"""


def test_mistakes_of_the_declaration_and_the_package_are_told_before_anything_runs(
    converge: Converge, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = folder / "site" / "owl_store-1.2.dist-info"
    info.mkdir(parents=True)
    (folder / "site" / "owl_of_the_tests.py").write_text(TWO_MISTAKES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: owl-store\nVersion: 1.2\nRequires-Dist: owldb\n")
    (info / "entry_points.txt").write_text(
        "[converge]\nowl = owl_of_the_tests\n[converge.schemes]\nowl = owl_of_the_tests\n"
    )
    monkeypatch.syspath_prepend(str(folder / "site"))
    ran = converge("run", "counting:WordCounter", "--pool", "docs", "--store", "owl:")
    assert ran.code == 3, ran.err
    told = [line for line in ran.err.splitlines() if 'the store "owl": its option "size"' in line]
    assert len(told) == 2 and "internal error" not in ran.err, ran.err
    answer = converge("plugins", "check", "owl")
    assert answer.code == 3 and set(told) <= set(answer.err.splitlines()), answer.err
    for said in (
        "owl-store 1.2: its metadata names no licence",
        "it needs owldb in any version",
        "needs converge-core",
    ):
        assert said in answer.err
    (folder / "site" / "owl_of_the_tests.py").write_text(
        TWO_MISTAKES.replace("size: int = 1", "pass").replace("owl_of_the_tests", "")
    )
    monkeypatch.delitem(sys.modules, "owl_of_the_tests")
    importlib.invalidate_caches()
    answer = converge("plugins", "check", "owl")
    assert 'the scheme "owls" is no entry point' in answer.err and answer.code == 3, answer.err


def test_the_packages_of_this_project_have_no_mistake() -> None:
    for one in PluginHost().installed():
        assert package_mistakes(one.name, one.distribution, loaded_as(one.name).backends) == []


CANNOT_BE_OPENED = """
from contextlib import asynccontextmanager

import attrs

from converge.builtin.memory.plugin import MEMORY
from converge.contracts.store import Store
from converge.errors import StoreUnavailable


class Abstract(Store):
    async def time(self):
        return 1


@asynccontextmanager
async def abstract(url, options):
    yield Abstract()


@asynccontextmanager
async def away(url, options):
    raise StoreUnavailable("127.0.0.1:1 refuses connections; start the server")
    yield


STORE = attrs.evolve(MEMORY, name="owl", schemes=("owl",), open=OPEN)
TOKEN = attrs.field(type=str, metadata={"help": "a token"})
NEEDY = attrs.evolve(STORE, options=attrs.make_class("Needy", {"token": TOKEN}, kw_only=True))
"""


@pytest.mark.parametrize(
    ("opens", "said", "traced"),
    [
        (
            "abstract",
            '"owl" cannot be opened: TypeError: Can\'t instantiate abstract class',
            "Abstract()",
        ),
        ("away", "127.0.0.1:1 refuses connections; start the server", ""),
    ],
)
def test_a_store_that_cannot_be_opened_is_told_once_and_no_test_is_run(
    converge: Converge, folder: Path, opens: str, said: str, traced: str
) -> None:
    (folder / f"owl_{opens}.py").write_text(CANNOT_BE_OPENED.replace("OPEN)", f"{opens})"))
    answer = converge("plugins", "check", f"owl_{opens}:STORE", "--quick")
    assert (answer.code, answer.out) == (3, ""), answer.out + answer.err
    assert answer.err.count(said) == 1 and traced in answer.err and "internal error" not in answer.err, answer.err


def test_options_that_the_check_cannot_make_are_told_with_the_mend(converge: Converge, folder: Path) -> None:
    (folder / "needy.py").write_text(CANNOT_BE_OPENED.replace("OPEN)", "away)"))
    answer = converge("plugins", "check", "needy:NEEDY", "--quick")
    assert (answer.code, answer.out) == (3, ""), answer.out + answer.err
    assert "there is no default of token" in answer.err and "Traceback" not in answer.err, answer.err


def test_one_mistake_that_breaks_every_test_is_shown_whole_once(converge: Converge) -> None:
    one = {"clause": "D-1", "said": "TypeError: none", "report": "the report", "again": "the command"}
    broken = [{**one, "test": f"test_{number}"} for number in range(50)]
    broken[30]["said"] = "other"
    passed = {"D-1": 2, "D-2": 1, "D-3": 1}
    card = {**dict.fromkeys(CARD, ""), "passed": passed, "not_tried": {}, "not_applicable": {}, "seconds": 1.0}
    save_cards("static", json.dumps({**card, "broken": broken}))
    out = converge("plugins", "show", "static").out
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert "passed D-2, D-3: 4 tests, 1 s" in rows, "a clause of which one test failed did not pass"
    assert "broken D-1: 50 tests" in rows
    assert (out.count("the report"), out.count("again: the command"), out.count("broken D-1 in test_")) == (2, 2, 40)
    assert "\nand 10 more; --report FILE writes all that is known of each\n" in out


@pytest.mark.parametrize(
    ("report", "said"),
    [
        (">   x()\nE   TypeError: no x\nE     more\n\nplace.py:19: TypeError", "TypeError: no x"),
        (
            "    | Traceback\n    |   File\n    | StoreBusy: too many writers\n    +-------",
            "StoreBusy: too many writers",
        ),
        ("    | Traceback (most recent call last):\n    |   File\n    | TimeoutError\n    +---", "TimeoutError"),
        ("place.py:19: Odd", "place.py:19: Odd"),
        ("E   converge.testing.clauses.ClauseBroken: S-1: wrong\n\nx.py:1: ClauseBroken", "S-1: wrong"),
    ],
)
def test_a_failure_says_what_was_raised_in_one_line(report: str, said: str) -> None:
    assert said_of(report, "S-1") == (said, "S-1")


class Own(Store, ABC):
    """Has a count of its own."""

    async def count(self, prefixes: Sequence[Prefix]) -> Sequence[int]:
        """See the contract."""
        return [0 for _ in prefixes]

    @classmethod
    def open(cls, url: str, options: Any) -> Any:
        """See the declaration."""


class Inherited(Store, ABC):
    """Has what every store inherits."""

    @classmethod
    def open(cls, url: str, options: Any) -> Any:
        """See the declaration."""


@pytest.mark.parametrize(
    ("opens", "left"),
    [
        (Own.open, ["TestStore::a", "TestStore::b", "TestStoreInherited::b", "TestTasks::a"]),
        (Inherited.open, ["TestStore::a", "TestStore::b", "TestTasks::a"]),
        (lambda url, options: None, ["TestStore::a", "TestStore::b", "TestStoreInherited::b", "TestTasks::a"]),
    ],
)
def test_what_is_inherited_is_tried_where_it_is_another_code(opens: Any, left: list[str]) -> None:
    def a() -> None:
        """S-3."""

    def b() -> None:
        """S-10."""

    names = [("TestStore", a), ("TestStore", b), ("TestStoreInherited", a), ("TestStoreInherited", b), ("TestTasks", a)]
    items: list[Any] = [
        SimpleNamespace(nodeid=f"stores.py::{name}::{one.__name__}[asyncio]", function=one) for name, one in names
    ]
    backend = attrs.evolve(MEMORY, name="owl", schemes=("owl",), open=opens)
    _Filler(backend, lambda *_: None, []).pytest_collection_modifyitems(items)
    assert [item.nodeid.removeprefix("stores.py::").removesuffix("[asyncio]") for item in items] == left
