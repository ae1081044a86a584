"""What a send says of a message whose first try may have arrived: never that it certainly did not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge import Agent, Capability, Identity, Message, Node
from converge.env import SYSTEM
from converge.errors import DeliveryTimeout, MessageError
from converge.machines.records import NORMAL, RECEIPT, Item
from converge.model.envelope import ReceiptHeader, pack, unpack
from converge.runtime.agents.hosted import hosted_of
from converge.runtime.network.link import Link
from converge.services.messages.receipts import RemoteOutcome
from converge.services.messages.routes import Routes
from converge.testing.fixtures import wait_until

SHORT_SEC = 6.0


@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """What is tried differs by no transport: it begins where a link has ended."""
    return str(request.param)


class Reader(Agent):
    """Keeps what it gets."""

    capabilities = ("read",)

    async def on_start(self) -> None:
        """See the class."""
        self.got: list[Any] = []

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        self.got.append(message.payload)
        return len(self.got)


class Stuck(Reader):
    """Never answers."""

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        self.got.append(message.payload)
        await anyio.sleep_forever()


@asynccontextmanager
async def nodes(tmp_path: Path, count: int) -> AsyncIterator[Sequence[Node]]:
    """Nodes on one store, each with a transport."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                Node(
                    store=f"file:{tmp_path / 's.db'}",
                    transport="tcp://127.0.0.1:0",
                    plugins=["tcp"],
                    poll_sec=0.1,
                    grace_sec=0.0,
                )
            )
            for _ in range(count)
        ]


def lose_next_receipt(node: Node, monkeypatch: pytest.MonkeyPatch, then: Any = None) -> None:
    """End the link with the next receipt that the node would give, which is lost."""
    assert node.network.links is not None
    own, post = {id(link) for link in node.network.links.all()}, Link.post

    def lose(self: Link, items: list[Item]) -> None:
        if id(self) in own and any(kind == RECEIPT for kind, _ in items):
            own.clear()
            if then is not None:
                then()
            self.end(NORMAL)
        else:
            post(self, items)

    monkeypatch.setattr(Link, "post", lose)


async def test_a_refusal_after_a_lost_receipt_is_not_said_to_be_certain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (near, far):
        (reader,) = await far.spawn(Reader)
        assert await near.ask(reader.id, 0) == 1
        lose_next_receipt(far, monkeypatch, then=far.network.post.inboxes.close_to_others)
        with pytest.raises(DeliveryTimeout, match="its node is stopping") as caught:
            await near.send(reader.id, "taken", timeout=SHORT_SEC)
        assert caught.value.was_sent
        assert reader.got == [0, "taken"]


async def test_an_agent_that_vanishes_after_a_lost_receipt_may_have_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (near, far):
        (reader,) = await far.spawn(Reader)
        assert await near.ask(reader.id, 0) == 1
        async with anyio.create_task_group() as group:
            lose_next_receipt(far, monkeypatch, then=lambda: group.start_soon(far.retire, reader))
            with pytest.raises(DeliveryTimeout) as caught:
                await near.send(reader.id, "taken", timeout=SHORT_SEC)
            assert caught.value.was_sent
        assert reader.got == [0, "taken"]


async def test_by_capability_no_second_agent_gets_what_the_first_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 3) as (near, one, two):
        readers = [(await node.spawn(Reader))[0] for node in (one, two)]
        for reader in readers:
            await near.ask(reader.id, 0)
        for node in (one, two):
            lose_next_receipt(node, monkeypatch, then=node.network.post.inboxes.close_to_others)
        with pytest.raises(MessageError):
            await near.send(Capability("read"), "once", timeout=SHORT_SEC)
        assert sum(reader.got.count("once") for reader in readers) == 1


async def test_a_deadline_tells_why_the_last_connection_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with nodes(tmp_path, 2) as (near, far):
        (reader,) = await far.spawn(Reader)
        await near.ask(reader.id, 0)

        def refuse(self: Link, items: list[Item]) -> None:
            self.end(NORMAL, "it is not wanted")

        monkeypatch.setattr(Link, "post", refuse)
        with pytest.raises(DeliveryTimeout, match="it is not wanted"):
            await near.send(reader.id, 1, timeout=SHORT_SEC)


async def test_a_receipt_that_nobody_knows_is_no_word_that_the_message_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (near, far):
        (reader,) = await far.spawn(Reader)
        await near.ask(reader.id, 0)
        post = Link.post

        def reword(self: Link, items: list[Item]) -> None:
            known = [unpack(body, ReceiptHeader)[0] for kind, body in items if kind == RECEIPT]
            post(self, [(RECEIPT, pack(ReceiptHeader(one.id, "later"))) for one in known])

        monkeypatch.setattr(Link, "post", reword)
        with pytest.raises(DeliveryTimeout, match='"later"') as caught:
            await near.send(reader.id, 1, timeout=SHORT_SEC)
        assert caught.value.was_sent


async def test_what_waits_for_room_until_its_deadline_was_certainly_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(tmp_path, 2) as (near, far):
        (reader,) = await far.spawn(Reader)
        await near.ask(reader.id, 0)
        monkeypatch.setattr("converge.runtime.network.link.QUEUE_BYTES", -1)
        with pytest.raises(DeliveryTimeout) as caught:
            await near.send(reader.id, "late", timeout=0.2)
        assert not caught.value.was_sent
        monkeypatch.undo()
        assert await near.ask(reader.id, 2) == 2


async def test_an_agent_goes_after_all_that_it_has_said(tmp_path: Path) -> None:
    async with nodes(tmp_path, 2) as (near, far):
        (reader,), (speaker,) = await far.spawn(Reader), await near.spawn(Reader)
        await speaker.ask(reader.id, 0)
        await speaker.send(reader.id, "last words", ack=None)
        near.network.hush([hosted_of(speaker)])
        await wait_until(lambda: len(reader.got) == 2, timeout=20, what="what it said is heard")


async def test_a_question_goes_again_to_a_node_that_was_not_ready_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first node has died with it, and the agent is at another one."""
    identity, answers = Identity.generate(SYSTEM.entropy), list[Any]()
    monkeypatch.setattr(RemoteOutcome, "drop", lambda self: None)  # who dies says nothing
    async with nodes(tmp_path, 1) as (near,), anyio.create_task_group() as group:

        async def ask() -> None:
            answers.append(await near.ask(identity.id, "again", timeout=60))

        async with nodes(tmp_path, 1) as (first,):
            (stuck,) = await first.spawn(Stuck, identities=[identity])
            group.start_soon(ask)
            await wait_until(lambda: bool(stuck.got), timeout=20, what="it was handed over")
        async with nodes(tmp_path, 1) as (second,):
            routes, asked = second.network.post.routes, list[str]()

            def speaks(sender: str, link: Any, *, is_signed: bool = False) -> bool | None:
                asked.append(sender)
                return None if len(asked) == 1 else Routes.speaks(routes, sender, link)

            monkeypatch.setattr(routes, "speaks", speaks)
            await second.spawn(Reader, identities=[identity])
            await wait_until(lambda: answers == [1], timeout=30, what="the answer is there")
            assert len(asked) == 2
