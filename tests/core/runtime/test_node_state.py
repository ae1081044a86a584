"""A node is whole while it is entered; before and after, and twice, each use is one typed error."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from converge import Agent, Node, Task
from converge.errors import ConfigError, StoreUnavailable, WrongNodeState

ATTRIBUTES = (
    *("store", "handle", "tasks", "pools", "network", "discovery", "registry", "executor"),
    *("supervision", "groups", "ticks", "feeds"),
)


class Worker(Agent):
    async def on_task(self, task: Task) -> int:
        return 1


CALLS: dict[str, Callable[[Node], Awaitable[Any]]] = {
    "spawn": lambda node: node.spawn(Worker, pool="p"),
    "send": lambda node: node.send("x", 1),
    "ask": lambda node: node.ask("x", 1),
    "publish": lambda node: node.publish("x", 1),
    "broadcast": lambda node: node.broadcast("x", 1),
}


async def refused_uses(node: Node, said: str) -> None:
    """Every use but `health` is refused with one error, which says where the node is."""
    for name in ATTRIBUTES:
        with pytest.raises(WrongNodeState, match=said):
            getattr(node, name)
    for call in CALLS.values():
        with pytest.raises(WrongNodeState, match=said):
            await call(node)


async def test_a_node_that_was_not_entered_says_so() -> None:
    node = Node()
    await refused_uses(node, "has not been entered")
    with pytest.raises(WrongNodeState, match="has not been entered"):
        _ = node.identity.id
    with pytest.raises(WrongNodeState, match="has not been entered"):
        await node.stop()
    assert [reason.code for reason in node.health().reasons] == ["starting"]


async def test_a_node_that_was_left_says_so_and_is_not_entered_again() -> None:
    async with Node() as node:
        await node.spawn(Worker, pool="p")
    await refused_uses(node, "was left")
    await node.stop()  # a second call returns at once
    with pytest.raises(WrongNodeState, match="was left: it can be entered only once"):
        await node.__aenter__()
    assert [reason.code for reason in node.health().reasons] == ["stopped"]


async def test_a_node_that_stops_starts_nothing_that_would_claim_tasks() -> None:
    class Stops(Worker):
        async def on_start(self) -> None:
            await node.stop()

    async with Node() as node:
        for agent in (Stops, Worker):
            with pytest.raises(WrongNodeState, match="is stopping"):
                await node.spawn(agent, pool="p")
        assert node.feeds == ()


async def test_a_node_is_not_entered_twice_and_goes_on() -> None:
    async with Node() as node:
        with pytest.raises(WrongNodeState, match="is entered already"):
            async with node:
                raise AssertionError("entered twice")
        await node.spawn(Worker, pool="p")
        task = await node.tasks.result(await node.tasks.submit(Task(pool_id="p")), timeout=10)
        assert task.result == 1


async def test_a_node_whose_start_failed_is_not_entered_again() -> None:
    node = Node(store="nowhere:")
    with pytest.raises(ConfigError):
        await node.__aenter__()
    with pytest.raises(WrongNodeState, match="was left"):
        await node.__aenter__()


@pytest.mark.parametrize("store", ["memory:", "file:"])
async def test_what_was_kept_of_a_node_that_was_left_acknowledges_nothing(store: str, tmp_path: Path) -> None:
    async with Node(store=f"{store}{tmp_path / 'state.db'}" if store == "file:" else store) as node:
        await node.spawn(Worker, pool="p")
        tasks = node.tasks
    with pytest.raises(StoreUnavailable, match="closed"):
        await tasks.submit(Task(pool_id="p"))
