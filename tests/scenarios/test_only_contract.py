"""Core asks of a store nothing that the contract does not name: a third party's may do all that our own do."""

from __future__ import annotations

from pathlib import Path

import only_contract
import pytest

from converge import Agent, DiscoveryQuery, DiscoveryService, Message, Node, Task, TaskState
from converge.errors import NoRetry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/store-contract.md").read_text()
# What every handle has for core's own use; a backend leaves it alone.
OF_CORE = {"shared", "reopener"}


class Worker(Agent):
    """Completes, fails and answers."""

    capabilities = ("work",)

    async def on_task(self, task: Task) -> str:
        if task.inputs.get("bad"):
            raise NoRetry("bad")
        return str(await self.ask(self.id, "ping", timeout=10)) if task.inputs.get("ask") else "done"

    async def on_message(self, message: Message) -> str:
        return "pong"


async def test_a_node_with_all_that_it_does_asks_only_what_the_contract_names() -> None:
    only_contract.ASKED.clear()
    async with Node(store="only:", plugins=["only_contract:ONLY"], poll_sec=0.1) as node:
        (agent, *_) = await node.spawn(Worker, count=2, pool="docs")
        ids = await node.tasks.submit_many([Task(pool_id="docs", ordering_key="k") for _ in range(3)])
        ids += [await node.tasks.submit(Task(pool_id="docs", inputs={"bad": True}))]
        states = {(await node.tasks.result(task_id, timeout=60)).state for task_id in ids}
        assert states == {TaskState.COMPLETED, TaskState.FAILED}
        assert await node.ask(agent.id, "ping", timeout=30) == "pong"
        found = await DiscoveryService(store=node.store).query(DiscoveryQuery(capabilities=("work",)))
        assert agent.id in {one.id for one in found}
        waiting = await node.tasks.submit(Task(pool_id="docs", type="nobody", required_capabilities=("nobody",)))
        assert await node.tasks.cancel(waiting)
        assert await node.tasks.list(pool_id="docs", limit=10)
    assert {"get", "scan", "commit", "time", "turn", "watch"} <= only_contract.ASKED


async def test_another_name_is_refused() -> None:
    async with only_contract.ONLY.open("only:", only_contract.ONLY.options()) as store:
        with pytest.raises(AssertionError, match="asks a store for place"):
            _ = store.place  # type: ignore[attr-defined]  # that is the point


def test_all_that_the_contract_names_is_on_its_page() -> None:
    assert sorted(name for name in only_contract.NAMED - OF_CORE if name not in PAGE) == []
