"""Two nodes of one process: what their links do to the code around them, and what strangers and outages do to their
links.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from converge import Agent, AgentDescriptor, DiscoveryQuery, Identity, Message, Node
from converge.contracts.discovery import Sighting
from converge.contracts.store import Batch
from converge.errors import DeliveryTimeout, StoreUnavailable, Undeliverable
from converge.model.descriptor import sign_descriptor
from converge.model.keys import AGENT
from converge.testing.fixtures import wait_until


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """A file and TCP serve both."""
    return str(request.param)


class Echo(Agent):
    """Answers with what it was sent."""

    async def on_message(self, message: Message) -> object:
        return message.payload


def node_at(url: str, **settings: object) -> Node:
    """Return a node on the store, not yet entered."""
    return Node(store=url, transport="tcp://127.0.0.1:0", plugins=["tcp"], poll_sec=0.1, grace_sec=0.0, **settings)  # type: ignore[arg-type]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of the test's own."""
    return f"file:{tmp_path / 'state.db'}"


@pytest.fixture
async def other(url: str) -> AsyncIterator[Agent]:
    """An agent on another node."""
    async with node_at(url) as node:
        (agent,) = await node.spawn(Echo)
        yield agent


def _link(node: Node, other: Agent) -> object:
    assert node.network.links is not None
    return node.network.links._links[other.node.identity.public_key]


async def test_an_error_in_the_block_of_a_node_with_links_is_not_swallowed(url: str, other: Agent) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with node_at(url) as node:
            assert await node.ask(other.id, 1) == 1
            raise LookupError("mine")


async def test_agents_that_have_just_started_are_heard_at_once(url: str, other: Agent) -> None:
    """The recipient knows none of them, and may not read the store for each."""
    for number in range(8):
        async with node_at(url) as node:
            (own,) = await node.spawn(Echo)
            assert await own.ask(other.id, number) == number


async def test_nodes_that_know_each_other_talk_on_while_the_store_is_away(
    url: str, other: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("converge.services.store.handle.CLOCK_FRESH_SEC", 0.0)

    async def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("pulled out")

    async with node_at(url) as node:
        (own,) = await node.spawn(Echo)
        assert await own.ask(other.id, 0) == 0
        for one in (node.store, other.node.store):
            for call in ("get", "scan", "commit", "time", "turn"):
                monkeypatch.setattr(type(one), call, away)
        assert [await own.ask(other.id, number, timeout=20) for number in range(3)] == [0, 1, 2]
        link = _link(node, other)
        # Who is not known cannot be looked up now; the connection that others share goes on.
        with pytest.raises(DeliveryTimeout, match=r"certainly does not have the message.*being looked up"):
            await node.ask(other.id, "hello", sender=Identity.generate(node.env.entropy).id, timeout=3)
        with pytest.raises(DeliveryTimeout):
            await own.send(Identity.generate(node.env.entropy).id, "hello", timeout=0.3)
        assert await own.ask(other.id, 3, timeout=20) == 3
        assert _link(node, other) is link
        monkeypatch.undo()


@pytest.mark.parametrize(
    "value",
    [b'"nonsense"', b"{}", b'[["tcp://h:1"],"*"]', b'[[],"AAAA"]', b'[[],"' + b"A" * 30_000 + b'"]'],
    ids=["text", "object", "alphabet", "short", "long"],
)
async def test_a_record_that_is_no_descriptor_hides_no_agent(url: str, other: Agent, value: bytes) -> None:
    async with node_at(url) as node:
        lease = await node.handle.lease()
        stranger = Identity.generate(node.env.entropy).id
        commits = await node.handle.commits()
        await commits.commit(
            [Batch([lease.check()], [(AGENT(lease.id, stranger), value), (AGENT(lease.id, other.id), value)])]
        )
        (own,) = await node.spawn(Echo)
        assert await own.ask(other.id, 1) == 1
        found = {one.id for one in await node.discovery.query(DiscoveryQuery(), refresh_from_store=True)}
        assert {own.id, other.id} <= found and stranger not in found
        (later,) = await other.node.spawn(Echo)
        assert await own.ask(later.id, 2) == 2


async def test_a_node_without_a_reachable_port_is_reached_over_the_connection_that_it_made(
    url: str, other: Agent
) -> None:
    async with node_at(url, advertise="none") as laptop:
        (own,) = await laptop.spawn(Echo)
        assert laptop.network.endpoints == ()
        hub = other.node
        assert isinstance(hub, Node)
        await hub.discovery.refresh()
        with pytest.raises(Undeliverable, match=r"listens nowhere.*certainly does not have the message"):
            await hub.ask(own.id, "too early", timeout=20)
        assert await own.ask(other.id, "hello") == "hello"
        assert await hub.ask(own.id, "back", timeout=20) == "back"
        assert sum(one.accepted for one in await hub.publish("nothing", 1)) == 0


async def test_nodes_on_several_transports_reach_each_other_over_a_common_one_or_say_that_there_is_none(
    url: str, other: Agent
) -> None:
    both = ["tcp://127.0.0.1:0", "local:both"]
    async with (
        Node(store=url, transport=both, plugins=["tcp"], poll_sec=0.1, grace_sec=0.0) as two,
        Node(store=url, transport="local:only", poll_sec=0.1, grace_sec=0.0) as one,
    ):
        (own,) = await two.spawn(Echo)
        assert [endpoint.partition(":")[0] for endpoint in two.network.endpoints] == ["tcp", "local"]
        assert await own.ask(other.id, 1) == 1
        assert await one.ask(own.id, 2) == 2
        why = "has no transport for tcp://; its own have local://: it certainly does not have the message"
        with pytest.raises(Undeliverable, match=why):  # at once, and not as a timeout
            await one.ask(other.id, 3, timeout=60)


async def test_where_trust_is_listed_a_stranger_is_refused_as_agent_and_as_node_signed_or_not(url: str) -> None:
    async with node_at(url, trust="listed") as strict, node_at(url) as known:
        (own,) = await strict.spawn(Echo)
        (listed,) = await known.spawn(Echo)
        static = {"static": {"endpoints": list(strict.network.endpoints)}}
        async with Node(transport="tcp://127.0.0.1:0", plugins=["tcp"], discovery="static", options=static) as stranger:
            (unlisted,) = await stranger.spawn(Echo)

            async def is_found() -> bool:
                return own.id in {one.id for one in await stranger.discovery.query(DiscoveryQuery())}

            await wait_until(is_found, what="the stranger finds the agent")
            for sender in (unlisted, stranger):
                for proof in ("channel", "signed"):
                    with pytest.raises(Undeliverable, match='not listed there, as trust = "listed" asks'):
                        await sender.send(own.id, "let me in", timeout=60, proof=proof)
            assert strict.network.refusals()["untrusted"] >= 4
            for sender in (listed, known):  # both have begun a moment ago
                for proof in ("channel", "signed"):
                    assert (await sender.send(own.id, "hello", timeout=60, proof=proof)).level == "accepted"
            strict.registry.pin(unlisted.id)
            assert (await unlisted.send(own.id, "pinned", timeout=60)).level == "accepted"


class TestImpostor:
    """Whoever can write to the store, or has a node of the network, speaks for no agent but its own (G12)."""

    async def test_a_descriptor_for_the_id_of_another_is_refused_and_moves_no_message(
        self, url: str, other: Agent
    ) -> None:
        async with node_at(url) as impostor, node_at(url) as node:
            (own,) = await node.spawn(Echo)
            own_key = impostor.identity
            claimed = AgentDescriptor(
                id=other.id,
                public_key=own_key.public_key.hex(),
                node_key=own_key.public_key.hex(),
                endpoints=impostor.network.endpoints,
                lease=(await impostor.handle.lease()).id.hex(),
                sequence=2**60,
            )
            forged = sign_descriptor(own_key, claimed, "converge")
            stolen = attrs.evolve(claimed, public_key=other.identity.public_key.hex())
            for signed in (forged, sign_descriptor(own_key, stolen, "converge")):
                await impostor.network.sightings.publish([Sighting(other.id, impostor.network.endpoints, signed)])
                (seen,) = [
                    one
                    for one in await node.discovery.query(DiscoveryQuery(), refresh_from_store=True)
                    if one.id == other.id
                ]
                assert (seen.node_key, seen.public_key) == (
                    other.node.identity.public_key.hex(),
                    other.identity.public_key.hex(),
                )
                assert node.discovery.directory.refused > 0
                assert await own.ask(other.id, "who") == "who"
                with pytest.raises(Undeliverable, match="no descriptor of the sender names the node"):
                    await impostor.send(own.id, "hello", sender=other.id)

    async def test_a_node_that_the_senders_descriptor_does_not_name_is_not_believed(
        self, url: str, other: Agent
    ) -> None:
        async with node_at(url) as impostor, node_at(url) as node:
            (own,) = await node.spawn(Echo)
            with pytest.raises(Undeliverable, match="no descriptor of the sender names the node"):
                await impostor.send(other.id, "hello", sender=own.id)
            with pytest.raises(Undeliverable, match="no descriptor of the sender names the node"):
                await impostor.send(other.id, "hello", sender=other.id)
            assert await impostor.ask(other.id, "own name") == "own name"

    async def test_a_descriptor_that_was_seen_lists_no_agent_after_its_lease(self, url: str, other: Agent) -> None:
        async with node_at(url) as impostor:
            async with node_at(url) as node:
                (gone,) = await node.spawn(Echo)
                assert await impostor.ask(gone.id, 1) == 1
                (signed,) = (one.descriptor for one in await impostor.network.sightings.snapshot() if one.id == gone.id)
                await impostor.network.sightings.publish([Sighting(gone.id, node.network.endpoints, signed)])
            assert gone.id not in {
                one.id for one in await impostor.discovery.query(DiscoveryQuery(), refresh_from_store=True)
            }
            assert gone.id not in {
                one.id for one in await other.node.discovery.query(DiscoveryQuery(), refresh_from_store=True)
            }

    async def test_an_agent_diverts_no_message_to_another_address(self, url: str, other: Agent) -> None:
        """The descriptor is genuine; where a node is dialled is for that node alone to say."""
        async with node_at(url) as impostor, node_at(url) as node:
            (own,) = await node.spawn(Echo)
            its_node = other.node
            assert isinstance(its_node, Node)
            lured = attrs.evolve(
                AgentDescriptor(
                    id=other.id,
                    public_key=other.identity.public_key.hex(),
                    node_key=other.node.identity.public_key.hex(),
                ),
                endpoints=impostor.network.endpoints,
                sequence=2**60,
                lease=(await its_node.handle.lease()).id.hex(),
            )
            signed = sign_descriptor(other.identity, lured, "converge")
            await its_node.network.sightings.publish([Sighting(other.id, impostor.network.endpoints, signed)])
            await node.discovery.refresh()
            assert await own.ask(other.id, "for its eyes only") == "for its eyes only"
            assert impostor.network.links is not None and len(impostor.network.links) == 0
