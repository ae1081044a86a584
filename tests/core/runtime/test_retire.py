"""One agent of a node ends alone: others do not notice, and nobody finds it any more."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextvars import Context
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import anyio
import pytest

from converge import Agent, DiscoveryQuery, MemoryStore, Message, Node, Task, TaskManager, TaskState
from converge.builtin.memory.core import Core
from converge.contracts.discovery import Sighting
from converge.errors import Dropped, InvalidValue, Undeliverable
from converge.machines.breaker import Breaker
from converge.services.discovery.sightings import StoreSightings
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


class Leaver(Agent):
    """Retires itself in the handler that gets `leave`, once it is let go; holds everything else likewise."""

    concurrency = 2

    def __init__(self) -> None:
        self.gates = {"leave": anyio.Event(), "hold": anyio.Event()}
        self.begun = {"leave": anyio.Event(), "hold": anyio.Event()}
        self.said = list[object]()

    async def do(self, what: str) -> str:
        self.begun[what].set()
        await self.gates[what].wait()
        if what == "leave":
            await self.node.retire(self)  # type: ignore[attr-defined]  # its type offers less
        self.said.append(what)
        return what

    async def on_message(self, message: Message) -> object:
        return await self.do(message.payload)

    async def on_task(self, task: Task) -> str:
        return await self.do(task.inputs["what"])

    async def on_stop(self) -> None:
        self.said.append("stopped")


async def test_an_agent_that_retires_itself_in_on_message_answers_and_who_waits_behind_is_told() -> None:
    answers: list[Any] = []

    async def ask(what: str) -> None:
        try:
            answers.append(await node.ask(agent.id, what, timeout=60))
        except Dropped as error:
            answers.append(type(error))

    with anyio.fail_after(45):  # less than the grace time
        async with Node(grace_sec=60.0) as node, anyio.create_task_group() as group:
            (agent,) = await node.spawn(Leaver)
            group.start_soon(ask, "leave")
            await agent.begun["leave"].wait()
            group.start_soon(ask, "hold")
            await wait_until(lambda: node.network.post.inboxes[agent.id].held_bytes > 0, what="another message waits")
            agent.gates["leave"].set()
    assert sorted(map(str, answers)) == sorted(["leave", str(Dropped)])
    assert agent.said == ["stopped", "leave"]


async def test_an_agent_that_retires_itself_in_on_task_completes_it_and_waits_for_its_other_tasks() -> None:
    with anyio.fail_after(45):  # less than the grace time
        async with Node(grace_sec=60.0) as node:
            (agent,) = await node.spawn(Leaver, pool="p")
            ids = await node.tasks.submit_many([Task(pool_id="p", inputs={"what": one}) for one in ("leave", "hold")])
            await agent.begun["leave"].wait()
            await agent.begun["hold"].wait()
            agent.gates["leave"].set()
            await wait_until(lambda: agent.id not in node.agents, what="it begins to end")
            assert not agent.said
            agent.gates["hold"].set()
            done = [await node.tasks.result(task_id, timeout=60) for task_id in ids]
    assert [(task.state, task.result, task.attempts) for task in done] == [
        (TaskState.COMPLETED, "leave", 1),
        (TaskState.COMPLETED, "hold", 1),
    ]
    assert agent.said == ["hold", "stopped", "leave"]


@pytest.mark.parametrize("by_another", [False, True])
async def test_an_agent_that_is_retired_while_agents_start_is_not_started(by_another: bool) -> None:
    made: list[Starting] = []

    class Starting(Agent):
        def __init__(self) -> None:
            self.said = list[str]()

        async def on_start(self) -> None:
            made.append(self)
            if len(made) == (2 if by_another else 1):
                if by_another:
                    await wait_until(lambda: made[0].id in node.agents, what="the other one has started")
                await node.retire(made[0])

        async def on_task(self, task: Task) -> str:
            return self.id

        async def on_message(self, message: Message) -> str:
            return self.id

        async def on_stop(self) -> None:
            self.said.append("stopped")

    with anyio.fail_after(60):
        async with Node() as node:
            agents = await node.spawn(Starting, count=2, pool="p")
            (other,) = [one for one in agents if one is not made[0]]
            assert list(node.agents) == [other.id]
            assert made[0].said == ["stopped"]
            assert [one.id for one in await node.discovery.query(DiscoveryQuery())] == [other.id]
            with pytest.raises(Undeliverable, match="not known here"):
                await node.ask(made[0].id, "x")
            ids = await node.tasks.submit_many([Task(pool_id="p")] * 8)
            assert {(await node.tasks.result(task_id, timeout=60)).result for task_id in ids} == {other.id}


async def test_an_agent_that_is_retired_while_all_join_again_does_not_keep_the_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with anyio.fail_after(60):
        async with Node() as node:
            one, two = await node.spawn(Worker, count=2, pool="p")
            two.gate.set()
            join_many = node.pools.join_many

            async def join_and_retire(*arguments: Any, **named: Any) -> None:
                await join_many(*arguments, **named)
                await node.retire(one)

            monkeypatch.setattr(node.pools, "join_many", join_and_retire)
            node.agents[two.id].pools = ()
            await node.groups.rejoin()
            task_id = await node.tasks.submit(Task(pool_id="p"))
            assert (await node.tasks.result(task_id, timeout=60)).result == two.id


async def test_an_agent_that_retires_while_others_are_published_for_long_is_listed_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, gate = anyio.Event(), anyio.Event()
    publish = StoreSightings.publish

    async def gated(self: StoreSightings, sightings: Sequence[Sighting]) -> None:
        began.set()
        await gate.wait()
        await publish(self, sightings)

    async with Node(poll_sec=0.1) as node:
        one, two = await node.spawn(Worker, count=2)
        query = DiscoveryQuery(capabilities=("work",))
        monkeypatch.setattr(StoreSightings, "publish", gated)
        async with anyio.create_task_group() as group:
            group.start_soon(node.network.publish_again)  # as after a lost lease
            await began.wait()
            await node.retire(one)  # which waits no longer than a stop does
            gate.set()
        listed = [found.id for found in await node.discovery.query(query, refresh_from_store=True)]
        assert listed == [two.id] == list(node.network.announced.signed)
        await node.network.publish_again()
        assert listed == [found.id for found in await node.discovery.query(query, refresh_from_store=True)]


@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_discovery_that_fails_in_its_own_way_at_the_end_cuts_no_handler_short(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_alone: bool
) -> None:
    tried = anyio.Event()

    async def fail(self: StoreSightings, ids: Sequence[str]) -> None:
        tried.set()
        raise RuntimeError("its socket is closed")

    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(StoreSightings, "withdraw", fail)
    async with MemoryStore.open() as store:
        async with Node(store=store, grace_sec=30.0) as node, anyio.create_task_group() as group:
            (one,) = await node.spawn(Worker, pool="p")
            task_id = await node.tasks.submit(Task(pool_id="p"))
            await one.begun.wait()
            group.start_soon(partial(node.retire, one) if is_alone else node.stop)
            await tried.wait()
            assert not one.said
            one.gate.set()
        assert one.said == ["stopped"]
        assert (await TaskManager(store).get(task_id)).result == one.id


class Acts(Agent):
    """Acts in each handler, and rests once."""

    breaker = Breaker(on=(ConnectionError,), failures=1, rest_sec=0.1)

    async def on_task(self, task: Task) -> None:
        await self.send(self.id, "acted")
        if task.attempts == 1:
            raise ConnectionError("away")

    async def on_message(self, message: Message) -> object:
        return message.payload


NOT_OF_A_NODE = (
    type | ModuleType | FunctionType | CodeType | FrameType | logging.Logger | Context | Core | StoreSightings
)
"""What is not looked into: the memory store among it, which has its keys longer than their entries, what tells readers
of the last changes, a bounded number, and the context in which a task of the node itself was begun.
"""


def kept_of(agent_id: str, node: Node) -> list[str]:
    """Return where a node's memory has an agent's id."""
    seen, todo, found = set[int](), list[tuple[object, str]]([(node, "node")]), []
    while todo:
        one, path = todo.pop()
        if id(one) in seen or isinstance(one, NOT_OF_A_NODE):
            continue
        seen.add(id(one))
        if isinstance(one, str) and one == agent_id:
            found.append(path)
        elif not isinstance(one, str | bytes | int | float):
            within = path if isinstance(one, dict | list | tuple | set) else f"{path} > {type(one).__name__}"
            # The collector does not look at the keys of a dictionary that are all text.
            todo += [(other, within) for other in (*gc.get_referents(one), *(one if isinstance(one, dict) else ()))]
    return found


async def test_a_node_keeps_nothing_of_agents_that_have_ended() -> None:
    async with Node(store=MemoryStore(), poll_sec=0.1, grace_sec=5.0) as node:
        (asker,) = await node.spawn(Acts, pool="others")
        (agent,) = await node.spawn(Acts, pool="p")
        id_ = await node.tasks.submit(Task(pool_id="p", max_attempts=2, retry_delay_sec=0.0))
        await node.tasks.result(id_, timeout=30)
        assert await asker.ask(agent.id, "x") == "x"
        agent_id = agent.id
        assert kept_of(agent_id, node)
        await node.retire(agent)
        del agent
        await wait_until(lambda: kept_of(agent_id, node) == [], timeout=30)
