"""One agent of a node ends alone: others do not notice, and nobody finds it any more."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from converge import Agent, DiscoveryQuery, Message, Node, Task, TaskState
from converge.errors import Dropped, InvalidValue, Undeliverable
from converge.testing.fixtures import wait_until


class Worker(Agent):
    """Holds its task, or a message, until it is let go."""

    capabilities = ("work",)

    def __init__(self) -> None:
        self.gate, self.begun, self.said = anyio.Event(), anyio.Event(), list[object]()

    async def on_task(self, task: Task) -> str:
        self.begun.set()
        await self.gate.wait()
        return self.id

    async def on_message(self, message: Message) -> object:
        if message.payload == "hold":
            self.begun.set()
            await self.gate.wait()
        return message.payload

    async def on_stop(self) -> None:
        self.said.append("stopped")


def node_at(tmp_path: Path) -> Node:
    return Node(
        store=f"file:{tmp_path / 's.db'}", transport="tcp://127.0.0.1:0", plugins=["tcp"], poll_sec=0.1, grace_sec=5.0
    )


async def test_a_retired_agent_ends_its_task_leaves_discovery_at_once_and_others_go_on(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node, node_at(tmp_path) as far:
        one, two = await node.spawn(Worker, count=2, pool="p")
        await far.discovery.refresh()
        assert await far.ask(one.id, "hello") == "hello"
        assert await one.ask(two.id, 1) == 1
        ids = await node.tasks.submit_many([Task(pool_id="p"), Task(pool_id="p")])
        await one.begun.wait()
        async with anyio.create_task_group() as group:
            group.start_soon(node.retire, one)
            query = DiscoveryQuery(capabilities=("work",))
            await wait_until(lambda: one.id not in node.agents, what="it begins to end")
            with anyio.fail_after(30):  # while its handler still runs
                while [found.id for found in await far.discovery.query(query, refresh_from_store=True)] != [two.id]:
                    await anyio.lowlevel.checkpoint()
            assert not one.said
            one.gate.set()
        assert one.said == ["stopped"]
        two.gate.set()
        done = [await node.tasks.result(task_id, timeout=20) for task_id in ids]
        assert {(task.state, task.result) for task in done} == {
            (TaskState.COMPLETED, one.id),
            (TaskState.COMPLETED, two.id),
        }
        for sender in (node, far):
            with pytest.raises(Undeliverable, match=r"no longer|not known here"):  # "in this process" is not theirs
                await sender.send(one.id, "late", timeout=5)
            assert await sender.ask(two.id, "still here") == "still here"
        await node.retire(one)
        with pytest.raises(InvalidValue, match="agent of this node"):
            await far.retire(two)


async def test_what_a_retired_agent_has_not_done_is_handed_back_and_its_senders_are_told(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        (one,) = await node.spawn(Worker, pool="p")
        task_id = await node.tasks.submit(Task(pool_id="p"))
        await one.begun.wait()
        dropped: list[Exception] = []

        async def ask() -> None:
            try:
                await node.ask(one.id, "hold", timeout=20)
            except Dropped as error:
                dropped.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await wait_until(lambda: not node.network.post.inboxes[one.id].is_idle, what="the message is there")
            await node.retire(one, grace_sec=0.0)
        assert len(dropped) == 1 and f"agent {one.id}: it is stopping" in str(dropped[0]), "its node is not"
        (two,) = await node.spawn(Worker, pool="p")
        two.gate.set()
        task = await node.tasks.result(task_id, timeout=20)
        assert (task.state, task.result, task.attempts) == (TaskState.COMPLETED, two.id, 1)
