"""Decisions: the records of core's, and those that plugins declare, which pass the same executor and the same
checks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest

from converge.contracts.decisions import CORE_DECISIONS, DecisionContext, DecisionKind
from converge.errors import ActionNotAllowed, InvalidValue, PluginBroken, PluginDuplicate, Undeliverable
from converge.hookspecs import hookimpl
from converge.model.message import Message
from converge.model.pool import Pool
from converge.model.task import Task
from converge.plugins import PluginHost
from converge.runtime.agents.agent import Agent
from converge.runtime.agents.decisions import (
    AnswerMessage,
    AskAgent,
    BroadcastMessage,
    PublishMessage,
    SendMessage,
    SubmitTask,
)
from converge.runtime.agents.executor import CORE
from converge.runtime.node import Node
from converge.services.durable.manager import TaskManager

Load = Callable[..., str]


@attrs.frozen(kw_only=True)
class Bid:
    """A decision of a plugin's: offer to do something, for a price."""

    price: int


@attrs.frozen(kw_only=True)
class OtherBid:
    """Another one."""


async def bid(context: DecisionContext, decision: Bid) -> dict[str, Any]:
    """Submit a task with the price, as the agent would."""
    if decision.price < 0:
        raise ValueError("nobody pays for being paid")
    task_id = await context.execute(SubmitTask(task=Task(pool_id="bids", inputs={"price": decision.price})))
    return {"by": context.agent_id, "stored": (await TaskManager(context.store).get(task_id)).inputs["price"]}


BID = DecisionKind(name="bid", type=Bid, handler=bid)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Makes a plugin that declares these kinds of decision; returns what `plugins` takes."""

    def make(*kinds: Any, name: str = "bidding") -> str:
        @hookimpl
        def converge_decisions() -> Sequence[Any]:
            return kinds

        module = ModuleType(f"decisions_{name}")
        module.plugin = SimpleNamespace(converge_decisions=converge_decisions)  # type: ignore[attr-defined]  # a module made for the test
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return f"{module.__name__}:plugin"

    return make


class Bidder(Agent):
    """Bids when it is asked to."""

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        return await self.act(Bid(price=message.payload))


class Decider(Agent):
    """The same, with the whole loop."""

    outcomes: tuple[Any, ...] = ()

    def decide(self, messages: list[Message], tasks: list[Task]) -> list[Any]:
        """See the class."""
        return [Bid(price=message.payload) for message in messages]

    def on_outcomes(self, outcomes: list[Any]) -> None:
        """See the class."""
        self.outcomes = tuple(outcomes)


async def test_an_agent_carries_out_what_a_plugin_declares_and_it_is_counted(load: Load, store_url: str) -> None:
    async with Node(store=store_url, plugins=[load(BID)]) as node:
        (agent,) = await node.spawn(Bidder)
        await node.pools.create_pool(Pool(id="bids"))
        assert await node.ask(agent.id, 7) == {"by": agent.id, "stored": 7}
        assert {name: tally.done for name, tally in node.executor.counts(agent.id).items()} == {
            "bid": 1,
            "submit-task": 1,
        }


async def test_decide_may_return_what_a_plugin_declares(load: Load) -> None:
    async with Node(plugins=[load(BID)]) as node:
        (agent,) = await node.spawn(Decider)
        await node.pools.create_pool(Pool(id="bids"))
        assert isinstance(agent, Decider)
        await node.ask(agent.id, 7)
        await node.ask(agent.id, -1)
        (outcome,) = agent.outcomes
        assert (outcome.is_ok, outcome.decision, repr(outcome.error)) == (
            False,
            Bid(price=-1),
            "ValueError('nobody pays for being paid')",
        )


@pytest.mark.parametrize("allowed", [("bid",), ("submit-task",), (Bid, "send-message")])
async def test_a_plugin_s_decision_and_what_it_does_in_turn_need_to_be_allowed(
    load: Load, allowed: tuple[Any, ...]
) -> None:
    async with Node(plugins=[load(BID)]) as node:
        await node.pools.create_pool(Pool(id="bids"))
        agent: Agent
        (agent,) = await node.spawn(type("Careful", (Bidder,), {"allowed_actions": allowed}))
        with pytest.raises(ActionNotAllowed) as refused:
            await agent.act(Bid(price=1))
        assert refused.value.action == ("bid" if allowed == ("submit-task",) else "submit-task")
        assert await node.tasks.list(pool_id="bids") == ()


async def test_a_decision_whose_plugin_is_not_loaded_is_refused() -> None:
    async with Node() as node:
        (agent,) = await node.spawn(Bidder)
        with pytest.raises(
            InvalidValue, match=r"Bid\(price=1\) is not allowed; expected one of SendMessage.*is its plugin loaded"
        ):
            await agent.act(Bid(price=1))


def test_two_plugins_with_one_name_are_told_apart_by_both_names(load: Load) -> None:
    other = DecisionKind(name="bid", type=OtherBid, handler=bid)
    with pytest.raises(
        PluginDuplicate, match=r'decisions_two:plugin.* and .*decisions_one:plugin.* both declare the decision "bid"'
    ):
        PluginHost([load(BID, name="one"), load(other, name="two")])


def test_two_plugins_with_one_type_are_told_apart_by_both_names(load: Load) -> None:
    other = DecisionKind(name="offer", type=Bid, handler=bid)
    with pytest.raises(PluginDuplicate, match=r"both declare a decision of the type Bid; load one of them"):
        PluginHost([load(BID, name="one"), load(other, name="two")])
    with pytest.raises(PluginDuplicate, match="both declare a decision of the type Bid"):
        PluginHost([load(BID, other)])


async def test_a_plugin_cannot_take_over_what_is_core_s(load: Load) -> None:
    with pytest.raises(PluginDuplicate, match='declares the decision "send-message", a name of'):
        PluginHost([load(DecisionKind(name="send-message", type=Bid, handler=bid))])
    with pytest.raises(
        PluginDuplicate, match="is of the type SendMessage, which is core's; it needs a type of its own"
    ):
        async with Node(plugins=[load(DecisionKind(name="telegraph", type=SendMessage, handler=bid))]):
            raise AssertionError("it has started")


async def plain(context: DecisionContext, decision: Any) -> None:
    """A handler that does nothing."""


async def nothing_given() -> None:
    """Takes neither the context nor the decision."""


takes_nothing: Any = nothing_given


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("bid", "converge_decisions returned str, expected DecisionKind"),
        (DecisionKind(name="Bid It", type=Bid, handler=bid), '"Bid It" is not a name for a decision: lower case'),
        (DecisionKind(name="bid", type=int, handler=plain), 'the type of the decision "bid" is no attrs class'),
        (
            DecisionKind(name="bid", type=Bid, handler=takes_nothing),
            "cannot be called as .*: too many positional arguments",
        ),
        (DecisionKind(name="bid", type=Bid, handler=print), 'the handler of the decision "bid" is no async function'),  # type: ignore[arg-type]
    ],
)
def test_a_declaration_that_cannot_be_meant_is_refused_with_the_plugin_s_name(load: Load, kind: Any, text: str) -> None:
    with pytest.raises(PluginBroken, match=text) as refused:
        PluginHost([load(kind)])
    assert "decisions_bidding:plugin" in str(refused.value)


def test_a_plugin_that_declares_decisions_is_listed_with_them(load: Load) -> None:
    host = PluginHost([load(BID)])
    (listed,) = [one for one in host.installed() if one.name == "decisions_bidding:plugin"]
    assert (listed.kinds, listed.backends) == (("decision",), ("bid",))


def test_core_s_names_are_those_that_plugins_may_not_take() -> None:
    assert tuple(dict.fromkeys(kind.name for kind in CORE)) == CORE_DECISIONS


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        (("send-message",), set()),
        ((SendMessage, AnswerMessage), {AskAgent, PublishMessage, BroadcastMessage}),
        (("submit-task",), {SendMessage, AskAgent, PublishMessage, BroadcastMessage, AnswerMessage}),
    ],
)
async def test_messages_are_allowed_together_by_name_or_each_by_its_type(
    allowed: tuple[Any, ...], refused: set[type[Any]]
) -> None:
    async with Node() as node:
        agent: Agent
        (agent,) = await node.spawn(type("Careful", (Agent,), {"allowed_actions": allowed}))
        for decision in (
            SendMessage(to=agent.id, payload="x"),
            AskAgent(to=agent.id, payload="x"),
            PublishMessage(topic="t", payload="x"),
            BroadcastMessage(pool_id="p", payload="x"),
            AnswerMessage(message_id="ab" * 16, payload="x"),
        ):
            was_refused = False
            try:
                await agent.act(decision)
            except ActionNotAllowed:
                was_refused = True
            except (Undeliverable, InvalidValue):  # it was allowed, and nobody has it
                pass
            assert was_refused == (type(decision) in refused), decision
