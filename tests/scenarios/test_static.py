"""Nodes with static discovery find each other by nothing but a list of endpoints: no store is shared, and what they
tell is verified.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, DiscoveryQuery, Message, Node, Pool
from converge.errors import ConfigError, ConvergeError
from converge.model.descriptor import open_descriptor, sign_descriptor
from converge.runtime.network.fetching import Fetcher
from converge.services.messages.descriptors import Asking, PeerDescriptors
from converge.services.messages.under_way import Link
from converge.testing.fixtures import wait_until

POLL_SEC = 0.05
PATIENCE_SEC = 60.0


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Nothing here needs a server that is reached on one loop only."""
    return str(request.param)


class Echo(Agent):
    capabilities = ("echo",)

    async def on_message(self, message: Message) -> str:
        return f"{message.payload} from {message.sender}"


class Quiet(Agent):
    async def on_message(self, message: Message) -> None: ...


def node(transport: str, *endpoints: str, file: str = "", **more: object) -> Node:
    options = {"static": {"file": file} if file else {"endpoints": list(endpoints)}}
    plugins = [] if transport.startswith("local") or not transport else [transport.partition(":")[0]]
    return Node(
        transport=transport,
        discovery="static",
        options=options,
        plugins=plugins,
        poll_sec=POLL_SEC,
        **more,  # type: ignore[arg-type]
    )


async def names(one: Node) -> set[str]:
    return {found.id for found in await one.discovery.query(DiscoveryQuery())}


async def knows(one: Node, *agents: Agent) -> None:
    async def all_known() -> bool:
        return {agent.id for agent in agents} <= await names(one)

    await wait_until(all_known, timeout=PATIENCE_SEC, what="that the agents are known")


async def knows_not(one: Node, agent: Agent) -> None:
    async def is_unknown() -> bool:
        return agent.id not in await names(one)

    await wait_until(is_unknown, timeout=PATIENCE_SEC, what="that the agent is known no longer")


@pytest.mark.parametrize("listen", ["local:{}", "tcp://127.0.0.1:0"])
async def test_two_nodes_find_each_other_though_only_one_has_the_others_endpoint(listen: str) -> None:
    async with node(listen.format("first")) as first:
        (there,) = await first.spawn(Echo)
        async with node(listen.format("second"), *first.network.endpoints) as second:
            (here,) = await second.spawn(Quiet)
            await knows(second, there)
            await knows(first, here)
            answer = await second.ask(there.id, "hello", sender=here.id)
            assert answer == f"hello from {here.id}"
            assert [one.id for one in await second.discovery.query(DiscoveryQuery(capabilities=["echo"]))] == [there.id]


async def test_an_agent_that_comes_later_is_found_within_a_poll_and_refresh_finds_it_at_once() -> None:
    async with node("local:first") as first, node("local:second", "local:first") as second:
        (there,) = await first.spawn(Echo)
        found = await second.discovery.query(DiscoveryQuery(capabilities=["echo"]), refresh_from_store=True)
        assert [one.id for one in found] == [there.id]


async def test_an_agent_that_joins_a_pool_is_found_in_it_and_its_sequence_rises() -> None:
    async with node("local:first") as first, node("local:second", "local:first") as second:
        (there,) = await first.spawn(Echo)
        await knows(second, there)
        before = second.discovery.directory.get(there.id)
        await first.pools.create_pool(Pool(id="docs"))
        await there.join("docs")

        async def is_in_it() -> bool:
            return [one.id for one in await second.discovery.query(DiscoveryQuery(pool_id="docs"))] == [there.id]

        await wait_until(is_in_it, timeout=PATIENCE_SEC)
        after = second.discovery.directory.get(there.id)
        assert before is not None and after is not None and after.sequence > before.sequence


async def test_agents_of_a_node_that_has_stopped_are_listed_no_longer() -> None:
    async with AsyncExitStack() as stack:
        # short: for so long it waits for a node that is gone
        second = await stack.enter_async_context(node("local:second", "local:first", lease_sec=1.0))
        async with node("local:first") as first:
            (there,) = await first.spawn(Echo)
            await knows(second, there)
        await knows_not(second, there)
        async with node("local:first") as again:
            (new,) = await again.spawn(Echo)
            await knows(second, new)


async def test_three_nodes_with_one_list_that_names_them_all_know_each_other_and_themselves_once() -> None:
    everyone = [f"local:{name}" for name in "abc"]
    async with node(everyone[0], *everyone) as a, node(everyone[1], *everyone) as b, node(everyone[2], *everyone) as c:
        agents = [(await one.spawn(Echo))[0] for one in (a, b, c)]
        for one, own in zip((a, b, c), agents, strict=True):
            await knows(one, *(agent for agent in agents if agent is not own))


async def test_endpoints_come_from_a_file_that_may_change(tmp_path: Path) -> None:
    file = tmp_path / "nodes"
    file.write_text("# nobody yet\n")
    async with node("local:first") as first, node("local:second", file=str(file)) as second:
        (there,) = await first.spawn(Echo)
        assert await names(second) == set()
        file.write_text("local:first # the first\n")
        await knows(second, there)
        file.write_text("this is no endpoint\n")
        await second.discovery.refresh()
        assert there.id in await names(second), "a file that cannot be read changes nothing"
        file.write_text("")
        await knows_not(second, there)


async def test_a_node_cannot_tell_of_the_agents_of_another(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        node("local:first") as first,
        node("local:second", "local:first") as second,
        node("local:third", "local:second") as third,
    ):
        (there,) = await first.spawn(Echo)
        await knows(second, there)
        second.network.announced.signed[there.id] = second.discovery.directory.signed(there.id)
        second.network.announced.changes += 1
        (own,) = await second.spawn(Echo)
        await knows(third, own)
        assert there.id not in await names(third)
        assert "lists it, and does not run it" in caplog.text


async def test_forged_descriptors_are_refused_and_hide_no_others() -> None:
    async with node("local:first") as first, node("local:second", "local:first") as second:
        (there,) = await first.spawn(Echo)
        signed = first.network.announced.signed[there.id]
        elsewhere = sign_descriptor(there.identity, open_descriptor(signed, "converge"), "elsewhere")
        first.network.announced.signed |= {"a": b"nonsense", "b": signed[:-9] + b"x" * 9, "c": b"", "d": elsewhere}
        first.network.announced.changes += 1
        await knows(second, there)
        assert second.discovery.directory.refused >= 4


async def test_more_agents_than_one_answer_holds_are_found() -> None:
    async with node("local:first") as first, node("local:second", "local:first") as second:
        agents = await first.spawn(Quiet, count=700)
        await knows(second, *agents)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: node("", "local:a"), "has no transport"),
        (lambda: node("local:a", "no url"), "expected URLs of a transport"),
        (lambda: node("local:a", file="/nowhere/nodes"), "cannot be read"),
    ],
)
async def test_what_cannot_work_is_refused_at_start(make: Callable[[], Node], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        async with make():
            pytest.fail("it started")


async def test_a_sender_that_is_not_pinned_is_refused_where_trust_says_so() -> None:
    async with node("local:first", trust="drop") as first, node("local:second", "local:first") as second:
        (there,) = await first.spawn(Echo)
        (here,) = await second.spawn(Quiet)
        await knows(second, there)
        with pytest.raises(ConvergeError, match="not trusted"):
            await second.ask(there.id, "hello", sender=here.id)
        first.registry.pin(here.id)
        assert await second.ask(there.id, "hello", sender=here.id) == f"hello from {here.id}"


async def test_what_a_node_has_told_that_is_given_up_meanwhile_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    told, gate, ended = anyio.Event(), anyio.Event(), anyio.Event()
    ask, once = Asking.ask, Fetcher._try

    async def slow(self: Asking, link: Link, known: PeerDescriptors | None, **options: Any) -> PeerDescriptors | None:
        answer = await ask(self, link, known, **options)
        if options["is_back"]:
            told.set()
            await gate.wait()  # as long as its descriptors are verified, a few at a time
        return answer

    async def to_its_end(self: Fetcher, name: str, source: Any, link: Link | None) -> None:
        await once(self, name, source, link)
        if link is not None:
            ended.set()

    monkeypatch.setattr(Asking, "ask", slow)
    monkeypatch.setattr(Fetcher, "_try", to_its_end)
    async with node("local:first") as first:
        async with node("local:second", "local:first") as second:
            (there,) = await second.spawn(Quiet)
            await told.wait()
        assert first.network.links is not None
        await wait_until(lambda: not first.network.links, timeout=PATIENCE_SEC, what="the connection has ended")
        await first.discovery.refresh()
        gate.set()
        await ended.wait()
        assert there.id not in await names(first)
