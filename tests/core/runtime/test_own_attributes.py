"""What the node keeps in an agent is not the agent's to set: the call that tries fails, and nothing else does."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from converge import Agent, Message, Node, Task
from converge.testing.fixtures import wait_until

OWN = ("id", "identity", "node", "pools", "health")
GOOD = "good"


class Sets(Agent):
    """Sets an attribute of its own, or does well."""

    def set(self, name: str) -> str:
        """Set it to what no node can use."""
        if name != GOOD:
            setattr(self, name, object())
        return GOOD

    async def on_task(self, task: Task) -> str:
        """See the class."""
        self.seen = task.id  # an attribute of the agent's own
        return self.set(task.inputs["name"])

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        return self.set(message.payload)


class SetsInThread(Sets):
    """Does it in a thread."""

    def on_task(self, task: Task) -> str:  # type: ignore[override]
        """See the class."""
        return self.set(task.inputs["name"])


@pytest.mark.parametrize("cls", [Sets, SetsInThread])
async def test_a_handler_that_sets_what_is_the_nodes_fails_and_no_other_does(cls: type[Sets]) -> None:
    with anyio.fail_after(60):
        async with Node(grace_sec=1.0) as node:
            (agent,) = await node.spawn(cls, pool="p")
            known = [getattr(agent, name) for name in OWN]
            for name in OWN:
                bad, good = await node.tasks.submit_many(
                    [Task(pool_id="p", inputs={"name": one}, max_attempts=1, ordering_key="k") for one in (name, GOOD)]
                )
                failed = await node.tasks.result(bad)
                assert (failed.state, name in failed.error) == ("FAILED", True)
                assert (await node.tasks.result(good)).result == GOOD
                with pytest.raises(Exception, match=name):
                    await node.ask(agent.id, name)
                assert await node.ask(agent.id, GOOD) == GOOD
            assert [getattr(agent, name) for name in OWN] == known
            await wait_until(lambda: node.health().is_ready)


async def test_an_agent_may_have_bases_with_slots_of_their_own() -> None:
    class Slotted:
        __slots__ = ("own",)
        own: str

    class Mixed(Sets, Slotted):
        pass

    async with Node() as node:
        (agent,) = await node.spawn(Mixed, pool="p")
        agent.own = GOOD
        assert await node.ask(agent.id, GOOD) == agent.own


async def test_an_agent_may_set_them_before_it_is_the_nodes() -> None:
    """Its initialiser runs before it has any."""

    class Early(Sets):
        def __init__(self) -> None:
            self.id = "mine"

    async with Node() as node:
        (agent,) = await node.spawn(Early, pool="p")
        assert agent.id == agent.identity.id != "mine"
