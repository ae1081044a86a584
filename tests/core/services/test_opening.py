"""Opening a store by its URL."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from converge.builtin.file import FileStore
from converge.builtin.memory import MemoryStore
from converge.contracts.store import Batch, Store, reopenable
from converge.errors import ConfigError, InvalidValue, LeaseEnded, UnknownSetting, Unsupported
from converge.model.keys import POOL
from converge.model.pool import Pool
from converge.plugins import PluginHost
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle
from converge.services.store.opening import open_store


async def test_each_memory_store_is_a_new_one() -> None:
    async with open_store("memory:") as one, open_store("memory:", plugins=PluginHost()) as two:
        assert await PoolManager(one).create_pool(Pool(id="docs"))
        assert await PoolManager(two).create_pool(Pool(id="docs"))


async def test_leaving_ends_the_lease_and_its_thread() -> None:
    async with open_store("memory:") as store:
        pools = PoolManager(store)
        await pools.create_pool(Pool(id="docs"))
        await pools.join_pool("a", "docs")
        lease = StoreHandle.of(store).lease_opened
        assert lease is not None
    with pytest.raises(LeaseEnded):
        lease.check_alive()
    assert not [thread for thread in threading.enumerate() if thread.name == "converge-lease"]


@pytest.mark.parametrize(
    ("error", "text", "settings"),
    [
        (Unsupported, 'require_durability is D1, the store "memory" has D0 here', {"require_durability": "D1"}),
        (
            InvalidValue,
            "require_durability: 'D9' is not allowed; expected one of D0, D1, D2, D3",
            {"require_durability": "D9"},
        ),
        (
            UnknownSetting,
            "options.memory: size: unknown key; there is nothing to set here",
            {"options": {"memory": {"size": 1}}},
        ),
        (InvalidValue, "options by the backend's name, such as {'memory': {'size': ...}}", {"options": {"size": 1}}),
    ],
)
async def test_what_the_store_cannot_do_is_refused(error: type[Exception], text: str, settings: dict[str, Any]) -> None:
    with pytest.raises(error) as raised:
        async with open_store("memory:", **settings):
            raise AssertionError("it was opened")
    assert text in str(raised.value)


async def test_options_of_other_backends_are_left_alone() -> None:
    async with open_store("memory:", options={"redis": {"whatever": 1}}) as store:
        assert await store.time() > 0


async def test_a_store_that_keeps_one_network_refuses_another(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match='the store "file" keeps one network only; leave out network "mine"'):
        async with open_store(f"file:{tmp_path}/state.db", network="mine"):
            raise AssertionError("it was opened")


async def test_a_backend_for_asyncio_only_is_refused_on_trio(anyio_backend: str) -> None:
    if anyio_backend == "asyncio":
        with pytest.raises(ConfigError, match=r"options\.sql"):
            async with open_store("postgresql://localhost", options={"sql": {"connections": "many"}}):
                raise AssertionError("it was opened")
    else:
        with pytest.raises(Unsupported, match='"sql" runs on asyncio only, and this event loop is trio'):
            async with open_store("postgresql://localhost"):
                raise AssertionError("it was opened")


def test_importing_the_package_imports_no_backend() -> None:
    code = (
        "import converge.services.store.opening, sys; print([n for n in sys.modules if "
        "n.startswith(('converge.builtin', 'cyclopts', 'rich', 'pytest'))])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


async def test_a_store_that_inherits_reopen_is_opened_again_at_the_same_place(tmp_path: Path) -> None:
    class Plain(FileStore):
        reopen = Store.reopen  # type: ignore[assignment]  # the inherited one, on purpose

    async with reopenable(partial(Plain.open, f"file:{tmp_path}/state.db")) as store:
        await store.commit([Batch((), [(POOL("p"), b"{}")])])
        async with store.reopen() as other, other.reopen() as third:
            assert type(third) is Plain
            assert [entry.value for entry in await third.get([POOL("p")]) if entry is not None] == [b"{}"]


async def test_a_handle_that_nobody_opened_says_that_it_cannot_open_another() -> None:
    class Bare(MemoryStore):
        reopen = Store.reopen  # type: ignore[assignment]  # the inherited one, on purpose

    with pytest.raises(NotImplementedError, match="open_store"):
        Bare().reopen()
