"""A plugin that fails after it was opened: what a command says of it, and whose the failure is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converge import open_store
from converge.cli.failures import failed
from converge.model.keys import pack
from converge.plugins import PluginHost, blame

Converge = Callable[..., Any]

SOURCE = """
import asyncio
import json
from contextlib import asynccontextmanager

import attrs

from converge.builtin.memory.plugin import MEMORY
from converge.contracts.store import Feature, Store
from converge.hookspecs import hookimpl


class Toy(Store):
    def __init__(self, inner):
        self.inner = inner

    async def get(self, keys):
        GET

    async def scan(self, ranges):
        return await self.inner.scan(ranges)

    async def commit(self, batches, *, wake=()):
        COMMIT

    async def time(self):
        return await self.inner.time()

    MORE

    @classmethod
    @asynccontextmanager
    async def open(cls, url, options):
        async with MEMORY.open("memory:", options) as inner:
            yield cls(inner)


@hookimpl
def converge_stores():
    return [attrs.evolve(MEMORY, name="toy", schemes=("toy",), open=Toy.open, features=frozenset({Feature.SHARED}))]
"""
GET, COMMIT = "return await self.inner.get(keys)", "return await self.inner.commit(batches, wake=wake)"
TASK = json.dumps({"inputs": {"text": "a b c"}})


@pytest.fixture
def toy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`toy(NAME, GET, COMMIT, MORE)` writes a plugin whose calls do this; returns how it is named."""
    monkeypatch.setattr(blame, "_PACKAGES", {})
    monkeypatch.syspath_prepend(folder)
    (folder / "tasks.jsonl").write_text(TASK)

    def write(name: str, get: str = GET, commit: str = COMMIT, more: str = "") -> str:
        source = SOURCE.replace("GET", get).replace("COMMIT", commit).replace("MORE", more)
        (folder / f"{name}.py").write_text(source)
        return f"{name}:"

    return write


@pytest.mark.parametrize(
    ("name", "calls", "said"),
    [
        ("toy_get", {"get": "return self.missing"}, "AttributeError: 'Toy' object has no attribute 'missing'"),
        ("toy_driver", {"get": 'return json.loads("{")'}, "JSONDecodeError: Expecting property name"),
        ("toy_panic", {"get": "raise BaseException('driver panicked')"}, "BaseException: driver panicked"),
        ("toy_commit", {"commit": "return self.missing"}, "AttributeError: 'Toy' object has no attribute 'missing'"),
    ],
)
def test_what_a_plugin_raises_is_its_own_and_no_internal_error(
    toy: Callable[..., str], converge: Converge, name: str, calls: dict[str, str], said: str
) -> None:
    plugin = toy(name, **calls)
    ran = ["run", "handling:Count", "--pool", "docs", "--submit", "tasks.jsonl", "--drain"]
    Path("handling.py").write_text("from converge import Agent\nclass Count(Agent):\n    on_task = print\n")
    answer = converge(*ran, "--plugin", plugin, "--store", "toy:")
    lines = answer.err.splitlines()
    assert answer.code == 3, answer.err
    assert lines[-1].startswith(f'converge: plugin "{plugin}" (from the import path) failed: {said}'), answer.err
    assert f"`converge plugins check {plugin}`" in lines[-1]
    assert "Traceback" in answer.err and "internal error" not in answer.err and "did not start" not in answer.err


@pytest.mark.parametrize(
    ("name", "calls", "said"),
    [
        ("toy_shape", {"get": "return None"}, "its get answered NoneType, expected a list with an Entry"),
        ("toy_turn", {"more": "async def turn(self, *_, **__): ..."}, "its turn answered NoneType, expected Turned"),
        ("toy_plain", {"more": "def time(self): return 7"}, "its time cannot be called or awaited"),
    ],
)
def test_what_a_plugin_answers_in_another_shape_ends_the_command_as_its_own(
    toy: Callable[..., str], converge: Converge, name: str, calls: dict[str, str], said: str
) -> None:
    plugin = toy(name, **calls)
    Path("handling.py").write_text("from converge import Agent\nclass Count(Agent):\n    on_task = print\n")
    ran = ["run", "handling:Count", "--pool", "docs", "--submit", "tasks.jsonl", "--drain"]
    answer = converge(*ran, "--plugin", plugin, "--store", "toy:")
    assert answer.code == 3, answer.err
    last = answer.err.splitlines()[-1]
    assert last.startswith(f'converge: plugin "{plugin}" (from the import path): the store "toy": {said}'), answer.err
    assert f"`converge plugins check {plugin}`" in last and "internal error" not in answer.err


def test_where_a_plugin_was_used_an_internal_error_names_it(
    toy: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = toy("toy_used")
    PluginHost([plugin])
    assert failed(ValueError("oh")) == 1
    assert capsys.readouterr().err.endswith(
        f'converge: internal error: ValueError: oh; it was used with plugin "{plugin}" (from the import path): '
        f"`converge plugins check {plugin}` tells whether the contract is kept\n"
    )


async def test_an_error_that_only_passes_through_a_plugins_open_is_not_its_own(toy: Callable[..., str]) -> None:
    host = PluginHost([toy("toy_passed")])
    with pytest.raises(TypeError) as raised:
        async with open_store("toy:", plugins=host):
            pack(None)  # type: ignore[arg-type]  # a mistake of Converge's
    assert blame.owner_of(raised.value) is None


def test_without_plugins_an_internal_error_names_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blame, "_PACKAGES", {})
    assert failed(ValueError("oh")) == 1
    assert capsys.readouterr().err.endswith("converge: internal error: ValueError: oh\n")


def test_doctor_takes_a_broken_plugin_for_no_mistake_of_the_configuration(
    toy: Callable[..., str], converge: Converge, folder: Path
) -> None:
    plugin = toy("toy_doctor")
    source = (folder / "toy_doctor.py").read_text()
    (folder / "toy_doctor.py").write_text(source.replace("yield cls(inner)", "yield inner.missing"))
    answer = converge("doctor", "--json", "--plugin", plugin, "--store", "toy:")
    (found,) = [one for one in map(json.loads, answer.out.splitlines()) if one["level"] == "error"]
    assert found["code"] == "plugins" and "cannot be opened: AttributeError" in found["finding"]
    assert found["mend"] == "mend or replace the plugin; `converge plugins check` checks it"
