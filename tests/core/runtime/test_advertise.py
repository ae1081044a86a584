"""Where a node tells others that it can be dialled."""

from __future__ import annotations

from pathlib import Path

import pytest

from converge import Node
from converge.builtin.memory.store import MemoryStore
from converge.errors import ConfigError


async def endpoint_of(*, store: str, transport: str, advertise: str = "") -> str:
    async with Node(plugins=["tcp"], store=store, transport=transport, advertise=advertise) as node:
        return node.network.endpoints[0]


async def test_a_node_on_one_address_is_known_by_it(tmp_path: Path) -> None:
    assert (await endpoint_of(store=f"file:{tmp_path}/s.db", transport="tcp://127.0.0.1:0")).startswith(
        "tcp://127.0.0.1:"
    )


async def test_a_node_on_every_address_that_shares_a_file_is_known_to_its_host(tmp_path: Path) -> None:
    endpoint = await endpoint_of(store=f"file:{tmp_path}/s.db", transport="tcp://0.0.0.0:0")
    assert endpoint.startswith("tcp://127.0.0.1:")
    assert int(endpoint.rpartition(":")[2]) > 0


async def test_what_the_operator_says_stands_in_its_place(tmp_path: Path) -> None:
    store = f"file:{tmp_path}/s.db"
    assert (
        await endpoint_of(store=store, transport="tcp://0.0.0.0:0", advertise="agents.example:7000")
        == "tcp://agents.example:7000"
    )


async def test_an_address_that_cannot_be_told_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="advertise"):
        async with Node(store=MemoryStore(), plugins=["tcp"], transport="tcp://0.0.0.0:0"):
            pass


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_node_on_every_address_is_known_by_the_one_from_which_it_reaches_its_store(redis_url: str) -> None:
    async with Node(store=redis_url, plugins=["redis", "tcp"], transport="tcp://0.0.0.0:0") as node:
        assert node.network.endpoints[0].startswith("tcp://127.0.0.1:")
