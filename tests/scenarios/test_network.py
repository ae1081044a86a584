"""The same agents over the network: two processes and this one share tasks, see each other's agents, and talk by id."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from converge import Agent, AgentDescriptor, Capability, DiscoveryQuery, Identity, Message, Node, Receipt, Task
from converge.errors import Backpressure, DeliveryTimeout, HandlerFailed, MessageError, Undeliverable
from converge.model.identity import agent_id
from converge.runtime.agents.inbox import INBOX
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet, all_terminal, expire_leases
from converge.testing.place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

EACH = [("file", "tcp"), ("redis", "ws"), ("sql", "tcp")]
"""Each store and each transport: enough for a short run, and where a pair makes no difference of its own."""
PAIRS = [*EACH, ("redis", "tcp"), ("sql", "ws")] if os.environ.get("FULL_TESTS") == "1" else EACH
each_store_and_transport = pytest.mark.parametrize("two", EACH, ids="-".join, indirect=True, scope="module")

PATIENCE_SEC = 30.0
"""What has a timeout of its own ends by it, on a busy machine a little later."""

AGENTS = 3
TASKS = 400
TALKERS = DiscoveryQuery(capabilities=["talk"])


@attrs.frozen
class Running:
    """A place with two processes in it."""

    place: Place
    fleet: Fleet


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def two(
    request: pytest.FixtureRequest, place_of: Callable[[str, str], Place], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Two processes of agents; the tests of one pair share them, and put back what they change."""
    place = place_of(*request.param)
    fleet = place.fleet(tmp_path_factory.mktemp("fleet"))
    try:
        for _ in range(2):
            fleet.start("--transport", place.transport, agents=AGENTS)
        yield Running(place, fleet)
    finally:
        fleet.kill_all()


class Silent(Agent):
    """Sends only; the nodes of the tests give it messages to send."""

    capabilities = ("silence",)


async def talkers(node: Node, count: int) -> list[AgentDescriptor]:
    """Wait until so many talkers are known to the node; return them."""
    found: list[AgentDescriptor] = []

    async def are_there() -> bool:
        found[:] = await node.discovery.query(TALKERS)
        return len(found) == count

    await wait_until(are_there, timeout=60, what=f"{count} talkers are known")
    return found


def of_two_nodes(found: list[AgentDescriptor]) -> tuple[AgentDescriptor, AgentDescriptor]:
    """Return two agents of different processes."""
    return found[0], next(one for one in found if one.node_key != found[0].node_key)


async def test_two_processes_share_the_tasks_of_a_pool(two: Running, tmp_path: Path) -> None:
    """No task ends before each process has begun some."""
    gate = tmp_path / "gate"
    async with two.place.node() as node:
        await talkers(node, 2 * AGENTS)
        wanted = [Task(pool_id=two.place.pool, inputs={"n": n, "gate": str(gate)}) for n in range(TASKS)]
        ids = await node.tasks.submit_many(wanted)

        def begun() -> set[int]:
            return {line["pid"] for lines in two.fleet.starts().values() for line in lines if line["task"] in ids}

        await wait_until(lambda: len(begun()) == 2, timeout=60, what="each process has begun a task")
        gate.touch()
        await all_terminal(node.tasks, ids, timeout=60)
        results = [(await node.tasks.get(task_id)).result for task_id in ids]
    assert {result["pid"] for result in results} == {process.pid for process in two.fleet.processes}
    assert all(len(two.fleet.starts()[task_id]) == 1 for task_id in ids), "a task was started twice"


async def test_each_process_sees_the_agents_of_all_as_verified_descriptors(two: Running) -> None:
    async with two.place.node() as node:
        (own,) = await node.spawn(Silent)
        found = await talkers(node, 2 * AGENTS)
        assert {one.id for one in found} == {agent_id(bytes.fromhex(one.public_key)) for one in found}
        assert len({one.node_key for one in found}) == 2
        assert all((one.name, one.topics, one.pools) == ("Talker", ("tests",), (two.place.pool,)) for one in found)
        assert [
            one.id for one in await node.discovery.query(DiscoveryQuery(topics=["tests"], pool_id=two.place.pool))
        ] == [one.id for one in found]
        for there in of_two_nodes(found):
            assert await own.ask(there.id, {"do": "find"}) == [one.id for one in found]
        assert node.registry.public_key(found[0].id).hex() == found[0].public_key


async def test_a_message_and_a_question_reach_an_agent_of_another_process_by_its_id(two: Running) -> None:
    async with two.place.node() as node:
        (own,) = await node.spawn(Silent)
        first, second = of_two_nodes(await talkers(node, 2 * AGENTS))
        receipt = await own.send(first.id, {"do": "note", "number": 1}, ack="accepted")
        assert isinstance(receipt, Receipt)
        assert (receipt.recipient, receipt.level) == (first.id, "accepted")
        answer = await own.ask(second.id, {"do": "echo", "say": {"nested": [1, "é", None]}})
        assert (answer["said"], answer["sender"]) == ({"nested": [1, "é", None]}, own.id)
        # And from one of the two to the other, in which neither is told more than an id.
        relayed = await own.ask(first.id, {"do": "relay", "to": second.id, "number": 2, "say": "hello"})
        assert (relayed["level"], relayed["recipient"]) == ("accepted", second.id)
        assert (relayed["answer"]["said"], relayed["answer"]["sender"]) == ("hello", first.id)
        assert relayed["answer"]["pid"] == answer["pid"]
        # The node itself is heard, too.
        assert (await node.ask(first.id, {"do": "echo"}))["sender"] == node.identity.id
    noted = [(line["sender"], line["to"], line["number"]) for line in two.fleet.ledger() if line["what"] == "message"]
    assert (own.id, first.id, 1) in noted and (first.id, second.id, 2) in noted


async def test_every_level_and_every_kind_of_recipient_reaches_agents_of_other_processes(two: Running) -> None:
    async with two.place.node() as node:
        (own,) = await node.spawn(Silent)
        found = await talkers(node, 2 * AGENTS)
        first, _ = of_two_nodes(found)
        levels: dict[int, dict[str, Any]] = {
            101: {"ack": "handled"},
            102: {"ack": "handled", "proof": "signed"},
            103: {"ack": "handled", "mailbox": True},
            104: {"ack": None},
        }
        for number, how in levels.items():
            await own.send(first.id, {"do": "note", "number": number}, **how)
        on_topic = await node.publish("tests", {"do": "note", "number": 105}, sender=own.id)
        in_pool = await node.broadcast(two.place.pool, {"do": "note", "number": 106}, sender=own.id)
        assert [(one.accepted, one.refused, one.error) for one in (*on_topic, *in_pool)] == [(AGENTS, 0, "")] * 4
        assert {one.node for one in on_topic} == {agent_id(bytes.fromhex(one.node_key)) for one in found}
        asked = [await own.ask(Capability("talk"), {"do": "echo"}) for _ in range(2 * AGENTS)]
        assert {one["pid"] for one in asked} == {process.pid for process in two.fleet.processes}
        for one in found:
            await own.ask(one.id, {"do": "echo"})  # what came before it has been handled
    noted = sorted(
        (line["number"], line["to"])
        for line in two.fleet.ledger()
        if line["what"] == "message" and line["sender"] == own.id
    )
    assert noted == sorted(
        [*((number, first.id) for number in levels), *((number, one.id) for number in (105, 106) for one in found)]
    )


async def test_what_a_handler_raises_comes_back_as_handler_failed(two: Running) -> None:
    async with two.place.node() as node:
        there = (await talkers(node, 2 * AGENTS))[0]
        with pytest.raises(HandlerFailed, match=r"ValueError: no such page"):
            await node.ask(there.id, {"do": "raise", "say": "no such page"})
        assert isinstance(await node.send(there.id, {"do": "raise", "say": "again"}), Receipt), (
            "it was accepted: what came of it was not asked"
        )
        assert (await node.ask(there.id, {"do": "echo", "say": 1}))["said"] == 1


@each_store_and_transport
async def test_an_unknown_id_is_undeliverable(two: Running) -> None:
    async with two.place.node() as node:
        nobody = Identity.generate(node.env.entropy).id
        with pytest.raises(Undeliverable, match=nobody):
            await node.send(nobody, "hello", timeout=5)
        with pytest.raises(Undeliverable, match=nobody):
            await node.ask(nobody, "hello", timeout=5)


@each_store_and_transport
async def test_an_agent_without_on_message_refuses_messages(two: Running) -> None:
    async with two.place.node() as node:
        (own,) = await node.spawn(Silent)
        there = (await talkers(node, 2 * AGENTS))[0]
        with pytest.raises(HandlerFailed, match=r"Undeliverable: agent .* takes no messages"):
            await node.ask(there.id, {"do": "relay", "to": own.id, "number": 1, "say": ""})


async def test_a_full_inbox_is_backpressure_and_the_connection_goes_on(two: Running) -> None:
    async with two.place.node() as node:
        senders = await node.spawn(Silent, count=50)
        there = (await talkers(node, 2 * AGENTS))[0]
        near = next(
            one for one in await node.discovery.query(TALKERS) if one.node_key == there.node_key and one.id != there.id
        )
        await node.send(there.id, {"do": "hold"})
        await wait_until(
            lambda: any(line["what"] == "hold" and line["to"] == there.id for line in two.fleet.ledger()),
            what="the agent is busy",
        )
        outcomes: list[str] = []

        async def fill(sender: Agent) -> None:
            for _ in range(INBOX // len(senders) + 2):
                try:
                    await sender.send(there.id, {"do": "echo"}, timeout=60)
                    outcomes.append("accepted")
                except Backpressure:
                    outcomes.append("full")

        async with anyio.create_task_group() as group:
            for sender in senders:
                group.start_soon(fill, sender)
        assert (outcomes.count("accepted"), outcomes.count("full")) == (INBOX, 2 * len(senders))
        links = dict(node.network.links._links) if node.network.links else {}
        await node.ask(near.id, {"do": "release"})
        assert (await node.ask(there.id, {"do": "echo", "say": "free"}, timeout=30))["said"] == "free"
        assert node.network.links is not None and node.network.links._links == links, "the connection was made anew"


@each_store_and_transport
async def test_agents_of_a_stopped_process_vanish_and_messages_to_them_end_in_an_error(
    two: Running, tmp_path: Path
) -> None:
    third = two.place.fleet(tmp_path)
    try:
        async with two.place.node() as node:
            before = {one.id for one in await talkers(node, 2 * AGENTS)}
            process = third.start("--transport", two.place.transport, agents=1)
            (gone,) = (one for one in await talkers(node, 2 * AGENTS + 1) if one.id not in before)
            await node.ask(gone.id, {"do": "echo"})
            process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(process.wait)
            assert process.returncode == 0, third.log_of(process)
            assert gone.id not in {one.id for one in await node.discovery.query(TALKERS, refresh_from_store=True)}
            with anyio.fail_after(PATIENCE_SEC), pytest.raises(Undeliverable):
                await node.send(gone.id, {"do": "echo"}, timeout=20)
    finally:
        third.kill_all()


@each_store_and_transport
async def test_messages_to_a_killed_process_end_in_an_error_by_their_deadline(two: Running, tmp_path: Path) -> None:
    third = two.place.fleet(tmp_path)
    try:
        async with two.place.node() as node:
            before = {one.id for one in await talkers(node, 2 * AGENTS)}
            process = third.start("--transport", two.place.transport, agents=1)
            (gone,) = (one for one in await talkers(node, 2 * AGENTS + 1) if one.id not in before)
            await node.send(gone.id, {"do": "hold"})
            async with anyio.create_task_group() as group:
                group.start_soon(_ends_in_an_error, node, gone.id)
                await anyio.to_thread.run_sync(process.kill)
            with anyio.fail_after(PATIENCE_SEC), pytest.raises((DeliveryTimeout, Undeliverable)):
                await node.send(gone.id, {"do": "echo"}, timeout=0.5)
            await expire_leases(node.store, process.pid)
            await talkers(node, 2 * AGENTS)  # within a poll interval
            with pytest.raises(Undeliverable):
                await node.send(gone.id, {"do": "echo"})
    finally:
        third.kill_all()


async def _ends_in_an_error(node: Node, to: str) -> None:
    with anyio.fail_after(PATIENCE_SEC), pytest.raises(MessageError):
        await node.ask(to, {"do": "echo"}, timeout=1.0)


@each_store_and_transport
async def test_a_process_without_a_transport_shares_tasks_and_says_why_it_cannot_talk(two: Running) -> None:
    async with two.place.node(transport="") as node:
        there = (await talkers(node, 2 * AGENTS))[0]
        with pytest.raises(Undeliverable, match="no transport; give it one with --transport"):
            await node.send(there.id, {"do": "echo"})
        task_id = await node.tasks.submit(Task(pool_id=two.place.pool))
        assert (await node.tasks.result(task_id, timeout=30)).state == "COMPLETED"


class Asked(Agent):
    """Answers with what it was sent: reached by agents of the other processes."""

    async def on_message(self, message: Message) -> object:
        return message.payload


@each_store_and_transport
async def test_processes_reach_an_agent_that_joined_later(two: Running) -> None:
    async with two.place.node() as node:
        (own,) = await node.spawn(Asked)
        for there in of_two_nodes(await talkers(node, 2 * AGENTS)):
            answer = await node.ask(there.id, {"do": "relay", "to": own.id, "number": 1, "say": "later"})
            assert answer["answer"] == {"do": "echo", "say": "later"}
