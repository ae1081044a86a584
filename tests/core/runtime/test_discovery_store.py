"""`discovery_store`: nodes that share no store for tasks find each other in another one, where each has a lease of its
own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converge import Agent, DiscoveryQuery, Message, Node
from converge.errors import ConvergeError, StoreRefused
from converge.runtime.network.discovery_store import store_url
from converge.testing.fixtures import wait_until

POLL_SEC = 0.05


class Echo(Agent):
    async def on_message(self, message: Message) -> object:
        return message.payload


def node(folder: Path, name: str, **more: Any) -> Node:
    return Node(
        store=f"file:{folder}/{name}.db",
        discovery_store=f"{folder}/discovery.db",
        transport=f"local:{name}",
        poll_sec=POLL_SEC,
        **more,
    )


@pytest.mark.parametrize(
    ("text", "url"),
    [("memory", "memory:"), ("a/b.db", "file:a/b.db"), ("file:x", "file:x"), ("redis://h:1/2", "redis://h:1/2")],
)
def test_what_names_the_store(text: str, url: str) -> None:
    assert store_url(text) == url


async def test_nodes_with_stores_of_their_own_find_and_ask_each_other(tmp_path: Path) -> None:
    async with node(tmp_path, "a") as a, node(tmp_path, "b") as b:
        (here,), (there,) = await a.spawn(Echo, pool="docs"), await b.spawn(Echo, pool="docs")
        found = await a.discovery.query(DiscoveryQuery(), refresh_from_store=True)
        assert {one.id for one in found} >= {here.id, there.id}
        assert await a.ask(there.id, "hello") == "hello"
        leases = {one.lease for one in found}
        assert (await a.handle.lease()).id.hex() not in leases, "it has a lease of its own there"


async def test_a_node_that_stops_is_listed_no_longer(tmp_path: Path) -> None:
    async with node(tmp_path, "a") as a:
        async with node(tmp_path, "b") as b:
            (there,) = await b.spawn(Echo)
            assert there.id in {one.id for one in await a.discovery.query(DiscoveryQuery(), refresh_from_store=True)}
        assert there.id not in {one.id for one in await a.discovery.query(DiscoveryQuery(), refresh_from_store=True)}


async def test_agents_stay_listed_for_longer_than_a_lease_and_come_back_under_another_one(tmp_path: Path) -> None:
    # short: it is outlasted
    async with node(tmp_path, "a") as a, node(tmp_path, "b", lease_sec=3.0) as b:
        (there,) = await b.spawn(Echo)
        first = await b.network._sighted.lease()
        first.give_up("a test wants it")

        async def is_there_again() -> bool:
            found = {one.id: one.lease for one in await a.discovery.query(DiscoveryQuery(), refresh_from_store=True)}
            return found.get(there.id, first.id.hex()) != first.id.hex()

        await wait_until(is_there_again, timeout=30.0)

        def outlasts_a_lease() -> bool:  # a busy machine may lose another one
            second = b.network._sighted.lease_opened
            return second is not None and second.renewals > 3

        await wait_until(outlasts_a_lease, timeout=30.0, what="that the lease lives on")
        await wait_until(is_there_again, timeout=30.0)


async def test_a_discovery_store_that_cannot_be_opened_is_told_at_start(tmp_path: Path) -> None:
    with pytest.raises(StoreRefused, match="make the folder first"):
        async with Node(discovery_store=f"{tmp_path}/nowhere/discovery.db"):
            pytest.fail("it started")
    with pytest.raises(ConvergeError):
        async with Node(discovery_store="gopher://x"):
            pytest.fail("it started")


async def test_in_memory_a_node_finds_its_own_agents_only() -> None:
    async with Node(discovery_store="memory") as a, Node(discovery_store="memory") as b:
        (own,) = await a.spawn(Echo)
        await b.spawn(Echo)
        assert [one.id for one in await a.discovery.query(DiscoveryQuery(), refresh_from_store=True)] == [own.id]
