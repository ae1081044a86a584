"""What `converge plugins new` writes does no harm to files that are not its own, and tells a full disk as such."""

from __future__ import annotations

import importlib
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from converge.contracts.store import Batch, Store
from converge.errors import ListenFailed, StoreFull
from converge.model.keys import POOL
from converge.operations.plugins.scaffold import TEMPLATES, write_plugin

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def written(kind: str, module: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Write the package of a kind, and import a module of it."""
    template = TEMPLATES[kind]
    (made, *_) = write_plugin(template, "wren", folder)
    monkeypatch.syspath_prepend(str(made / "src"))
    return importlib.import_module(f"converge_{template.kind}_wren.{module}")


@pytest.fixture
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open stores of the embedded scaffold by their URLs."""
    declared = written("store", "plugin", tmp_path, monkeypatch).WREN
    monkeypatch.chdir(tmp_path)

    def opening(url: str) -> AbstractAsyncContextManager[Store]:
        opened: AbstractAsyncContextManager[Store] = declared.open(url, declared.options())
        return opened

    return opening


async def test_an_embedded_store_is_where_its_url_says(stores: Any, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    for url, name in {"wren:a?b": "a?b", "wren:a#b": "a#b", "wren:a%20b": "a b", "wren://x/c": "x/c"}.items():
        async with stores(url):
            assert (tmp_path / name).is_file(), url
    async with stores(f"wren://{tmp_path}/d"):
        assert (tmp_path / "d").is_file()


async def test_an_embedded_store_without_room_says_so_and_goes_on(stores: Any) -> None:
    async with stores("wren:full") as store:
        store._place._engine.execute("pragma max_page_count = 300")
        with pytest.raises(StoreFull):
            for number in range(3):
                await store.commit([Batch(puts=[(POOL(str(number)), b'"%s"' % (b"x" * 900_000))])])
        (outcome,) = await store.commit([Batch(puts=[(POOL("small"), b"1")])])
        assert outcome.revision == 2


async def test_a_transport_removes_no_file_but_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = written("transport", "plugin", tmp_path, monkeypatch).WREN
    for name in ("notes", "notes.lock"):
        (tmp_path / name).write_text("kept")
    async with declared.open(declared.options()) as transport:
        with pytest.raises(ListenFailed):
            async with transport.listen(f"wren:{tmp_path}/notes"):
                raise AssertionError("it listens in place of a file")
    assert [(tmp_path / name).read_text() for name in ("notes", "notes.lock")] == ["kept", "kept"]


async def test_a_discovery_removes_no_file_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = written("discovery", "plugin", tmp_path, monkeypatch).WREN
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "package.lock").write_text("kept")
    async with declared.open(declared.options(folder=str(tmp_path)), store=None, poll_sec=1.0) as discovery:
        assert await discovery.snapshot() == []
    assert [(tmp_path / f"package.{end}").read_text() for end in ("json", "lock")] == ["{}", "kept"]
