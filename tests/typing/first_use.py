"""The public names as a user writes them; read by type checkers, never run."""

from __future__ import annotations

from typing import assert_type

from converge import (
    Agent,
    AgentDescriptor,
    Capability,
    DiscoveryQuery,
    DiscoveryService,
    Message,
    Node,
    Pool,
    PoolManager,
    Receipt,
    Task,
    TaskManager,
    TaskState,
    Topic,
    open_store,
)
from converge.agents import Breaker, Decision, Limits, Outcome, ReportTask, SubmitTask, Tool
from converge.model.message import Fanout


class WordCounter(Agent):
    """As in the first tutorial."""

    capabilities = ("count-words", Capability("read"))
    topics = (Topic("docs"),)

    async def on_task(self, task: Task) -> dict[str, int]:
        return {"words": len(task.inputs["text"].split())}

    async def on_message(self, message: Message) -> str:
        receipt = await self.send(message.sender, {"seen": message.payload}, ack="accepted", timeout=5.0)
        assert_type(receipt, Receipt)
        return f"thank you, {message.sender}"


class Plain(Agent):
    """Handlers need not be coroutines."""

    def on_task(self, task: Task) -> int:
        return len(task.inputs)


def search(query: str) -> list[str]:
    return [query]


class Careful(Agent):
    """What it may do is bounded; it ticks."""

    tick_sec = 1.5
    allowed_actions = ("invoke-tool", SubmitTask)
    tools = {"search": search, "slow": Tool(search, timeout_sec=60.0)}  # noqa: RUF012  # as users write it
    limits = Limits(per_sec=10)
    breaker = Breaker(failures=5)

    async def on_tick(self) -> None:
        assert_type(await self.join("docs", secret="..."), bool)
        assert_type(await self.leave("docs"), bool)
        assert_type(await self.submit(Task(pool_id="docs")), str)
        assert_type(await self.publish("news", "hello"), list[Fanout])
        print(await self.tool("search", query="x"), self.health.failures)  # noqa: T201 - an example


class Deciding(Agent):
    """The whole loop."""

    def decide(self, messages: list[Message], tasks: list[Task]) -> list[Decision]:
        return [ReportTask(task_id=task.id, result=1) for task in tasks]

    async def on_outcomes(self, outcomes: list[Outcome]) -> None:
        assert_type(outcomes[0].is_ok, bool)


async def managers(agent_id: str) -> None:
    async with open_store("file:state.db") as store:
        pools, tasks = PoolManager(store), TaskManager(store)
        discovery = DiscoveryService(store=store)
        assert_type(await pools.create_pool(Pool(id="docs")), bool)
        assert_type(await pools.create_pool({"id": "docs"}), bool)
        assert_type(await pools.join_pool(agent_id, "docs"), bool)
        task_id = await tasks.submit(Task(pool_id="docs", inputs={"text": "..."}))
        assert_type(task_id, str)
        assert_type(await tasks.submit_many([Task(pool_id="docs"), Task(pool_id="docs")]), list[str])
        claimed = await tasks.claim(
            agent_id, pools=["docs"], capabilities=["count-words"], topics=None, types=None, limit=10
        )
        assert_type(claimed, list[Task])
        for task in claimed:
            await tasks.complete(task, {"words": 3})
            await tasks.fail(task, "why", retry=True)
            await tasks.release(task)
            assert_type(task.token, int)
        await tasks.report(agent_id, task_id, {"words": 3})
        assert_type(await tasks.result(task_id, timeout=10), Task)
        assert_type(await tasks.cancel(task_id), bool)
        assert_type(await tasks.get(task_id), Task)
        for task in await tasks.list(state=TaskState.PENDING, pool_id="docs", limit=100):
            assert_type(task, Task)
        found = await discovery.query(
            DiscoveryQuery(topics=["docs"], capabilities=["read"]), candidates=None, refresh_from_store=True
        )
        assert_type(found, list[AgentDescriptor])


async def node() -> None:
    async with Node(store="redis://localhost", transport="tcp://127.0.0.1:0", plugins=["redis", "tcp"]) as node:
        agents = await node.spawn(WordCounter, count=4, pool="docs")
        assert_type(agents, list[WordCounter])
        assert_type(agents[0].id, str)
        await node.spawn(Careful, pool="docs", secret="...")
        task = await node.tasks.result(await node.tasks.submit(Task(pool_id="docs", inputs={"text": "a b c"})))
        assert_type(task, Task)
        assert_type(await node.send(agents[0].id, "hello"), Receipt)
        print(await node.ask(agents[0].id, {"q": 1}, timeout=2.0))  # noqa: T201 - an example


def mistakes() -> None:
    Node(stor="memory:")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]  # a mistyped argument is told by the type checker
    Node(lease_sec="15")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # so is a value of another type
