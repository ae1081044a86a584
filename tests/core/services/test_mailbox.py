"""Mailboxes: a message for an agent that is away waits in the store, only that agent gets it, and only if its sender
signed it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anyio
import msgspec
import pytest

from converge import Agent, Identity, Message, Node, Task, TaskState
from converge.contracts.store import Range
from converge.env import SYSTEM
from converge.errors import HandlerFailed, InvalidName, InvalidValue, PoolClosed, StoreUnavailable
from converge.model.descriptor import network_tag
from converge.model.envelope import MessageHeader, sign
from converge.model.keys import DONE
from converge.runtime.network import mail
from converge.services.messages.mailbox import KEEP_SEC, mailbox_of
from converge.testing.fixtures import wait_until

Reopen = Callable[[], Node]


class Reader(Agent):
    """Keeps what it gets, and fails as it is told."""

    failures = 0

    async def on_start(self) -> None:
        """See the class."""
        self.got: list[Message] = []
        self.rests = False

    async def on_message(self, message: Message) -> Any:
        """See the class."""
        self.got.append(message)
        if self.rests:
            await anyio.sleep(600)
        if message.payload == "fail" and Reader.failures:
            Reader.failures -= 1
            raise ValueError("not now")


@pytest.fixture
def absent() -> Identity:
    """An agent that is not started yet."""
    return Identity.generate(SYSTEM.entropy)


@pytest.fixture
async def reopen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reopen]:
    """Makes nodes on one file; they look for mail often."""
    monkeypatch.setattr(mail, "LOOK_SEC", 0.1)
    Reader.failures = 0
    yield lambda: Node(store=f"file:{tmp_path}/state.db", poll_sec=0.2)


@pytest.fixture(params=["memory", "file"])
async def node(request: pytest.FixtureRequest, reopen: Reopen) -> AsyncIterator[Node]:
    """A node of one process."""
    async with Node(poll_sec=0.2) if request.param == "memory" else reopen() as node:
        yield node


async def start(node: Node, identity: Identity) -> Reader:
    """Start an agent that has been here before."""
    with patch.object(Identity, "generate", lambda entropy: identity):
        (agent,) = await node.spawn(Reader)
    assert isinstance(agent, Reader)
    return agent


async def stored(node: Node, identity: Identity, state: TaskState | None = None) -> list[Task]:
    """What is in the agent's mailbox."""
    return list(await node.tasks.list(pool_id=mailbox_of(identity.id), state=state))


async def handled(node: Node, identity: Identity, count: int) -> None:
    """Return when so many stored messages were handled."""

    async def are_handled() -> bool:
        return len(await stored(node, identity, TaskState.COMPLETED)) == count

    await wait_until(are_handled, what=f"{count} stored messages are handled")


async def test_what_is_stored_for_an_agent_that_is_away_is_handled_in_order_when_it_starts(
    node: Node, absent: Identity
) -> None:
    (sender,) = await node.spawn(Reader)
    receipts = [await sender.send(absent.id, number, mailbox=True) for number in range(5)]
    assert {receipt.level for receipt in receipts} == {"stored"}
    reader = await start(node, absent)
    await handled(node, absent, 5)
    assert [(one.payload, one.sender, one.id) for one in reader.got] == [
        (number, sender.id, receipt.message_id) for number, receipt in enumerate(receipts)
    ]
    assert all(one.token > 0 for one in reader.got)


async def test_what_is_stored_outlives_the_process_of_its_sender(reopen: Reopen, absent: Identity) -> None:
    async with reopen() as node:
        (sender,) = await node.spawn(Reader)
        await sender.send(absent.id, "from the past", mailbox=True)
    async with reopen() as node:
        reader = await start(node, absent)
        await handled(node, absent, 1)
    assert [(one.payload, one.sender) for one in reader.got] == [("from the past", sender.id)]


async def test_mail_is_handled_before_what_comes_directly(node: Node, absent: Identity) -> None:
    for number in range(5):
        await node.send(absent.id, number, mailbox=True)
    reader = await start(node, absent)
    await node.send(reader.id, "direct", ack="handled")
    assert [one.payload for one in reader.got] == [0, 1, 2, 3, 4, "direct"]


async def test_mail_for_an_agent_that_is_there_is_stored_too_and_handled_at_once(
    node: Node, absent: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = await start(node, absent)
    monkeypatch.setattr(mail, "LOOK_SEC", 100.0)
    await node.send(
        reader.id, "woken", mailbox=True, ack="handled"
    )  # from here on there is no look but when one is told
    await node.send(reader.id, "hello", mailbox=True)
    await handled(node, absent, 2)
    assert [one.payload for one in reader.got] == ["woken", "hello"]


async def test_a_sender_can_wait_until_its_mail_was_handled(node: Node, absent: Identity) -> None:
    reader = await start(node, absent)
    receipt = await node.send(reader.id, "hello", mailbox=True, ack="handled")
    assert (receipt.level, [one.payload for one in reader.got]) == ("handled", ["hello"])


async def test_mail_whose_handler_fails_is_tried_again_and_holds_back_the_next(node: Node, absent: Identity) -> None:
    Reader.failures = 1
    for payload in ("fail", "next"):
        await node.send(absent.id, payload, mailbox=True)
    reader = await start(node, absent)
    await handled(node, absent, 2)
    assert [one.payload for one in reader.got] == ["fail", "fail", "next"]
    assert reader.got[0].id == reader.got[1].id
    assert reader.got[0].token < reader.got[1].token


async def test_mail_that_no_attempt_handles_ends_as_a_dead_letter(node: Node, absent: Identity) -> None:
    Reader.failures = 3
    reader = await start(node, absent)
    with pytest.raises(HandlerFailed, match="ValueError: not now"):
        await node.send(reader.id, "fail", mailbox=True, ack="handled", timeout=60)
    assert [(one.state, one.attempts) for one in await stored(node, absent)] == [(TaskState.FAILED, 3)]


async def test_the_record_of_what_was_handled_is_kept_for_an_hour(node: Node, absent: Identity) -> None:
    reader = await start(node, absent)
    await node.send(reader.id, "x", mailbox=True, ack="handled", timeout=60)
    (ended,) = await node.store.scan([Range(DONE(mailbox_of(absent.id), TaskState.COMPLETED.value), None, 1)])
    assert [entry.key[3] - await node.store.time() <= KEEP_SEC * 1_000_000 for entry in ended] == [True]


async def test_nobody_else_is_admitted_to_a_mailbox(node: Node, absent: Identity) -> None:
    (other,) = await node.spawn(Reader)
    await node.send(absent.id, "private", mailbox=True)
    with pytest.raises(PoolClosed):
        await node.pools.join_pool(other.id, mailbox_of(absent.id))
    with pytest.raises(PoolClosed):
        await node.tasks.claim(other.id, pools=[mailbox_of(absent.id)])


async def test_a_mailbox_needs_an_agents_id_and_a_sender_of_this_node(node: Node, absent: Identity) -> None:
    with pytest.raises(InvalidName, match="only an agent has a mailbox"):
        await node.send("somebody", "x", mailbox=True)
    with pytest.raises(InvalidValue, match="only it can sign"):
        await node.send(absent.id, "x", mailbox=True, sender=absent.id)


async def test_mail_that_is_not_handled_when_the_node_ends_is_handled_by_the_next(
    reopen: Reopen, absent: Identity
) -> None:
    async with reopen() as node:
        reader = await start(node, absent)
        reader.rests = True
        await node.send(reader.id, "to be read", mailbox=True)
        await wait_until(lambda: len(reader.got) == 1, what="the handler has it")
        await node.stop(grace_sec=0.05)
    async with reopen() as node:
        reader = await start(node, absent)
        await handled(node, absent, 1)
        (task,) = await stored(node, absent)
    assert [one.payload for one in reader.got] == ["to be read"]
    assert task.attempts == 1, "a stop counts no attempt"


# What somebody puts into the store who can write to it.


def header_of(node: Node, signer: Identity, to: str, **changes: Any) -> MessageHeader:
    """The header of a stored message."""
    now = node.handle.about_now()
    header = MessageHeader(
        id="00" * 16, sender=signer.id, to=to, lease="", sequence=0, sent_at=now, key=signer.public_key.hex()
    )
    return msgspec.structs.replace(header, **changes)


@pytest.mark.parametrize(
    "what",
    [
        "unsigned",
        "garbage",
        "another's name",
        "another's key",
        "changed",
        "another network",
        "for another",
        "old",
        "future",
    ],
)
async def test_a_stored_message_that_is_not_its_senders_is_refused(node: Node, absent: Identity, what: str) -> None:
    sender, other = Identity.generate(SYSTEM.entropy), Identity.generate(SYSTEM.entropy)
    now, day, tag = node.handle.about_now(), 86_400_000_000, network_tag("converge")
    header, body = header_of(node, sender, absent.id), b'"x"'
    inputs: dict[str, Any] = {
        "unsigned": {},
        "garbage": {"signed": b"\x00\x04{}{}" + bytes(64)},
        "another's name": {"signed": sign(sender, tag, header_of(node, sender, absent.id, sender=other.id), body)},
        "another's key": {"signed": sign(other, tag, header, body)},
        "changed": {"signed": sign(sender, tag, header, body).replace(b'"x"', b'"y"')},
        "another network": {"signed": sign(sender, network_tag("other"), header, body)},
        "for another": {"signed": sign(sender, tag, header_of(node, sender, other.id), body)},
        "old": {"signed": sign(sender, tag, header_of(node, sender, absent.id, sent_at=now - 31 * day), body)},
        "future": {"signed": sign(sender, tag, header_of(node, sender, absent.id, sent_at=now + day), body)},
    }[what]
    await node.send(absent.id, "true", mailbox=True)
    await node.tasks.submit(Task(pool_id=mailbox_of(absent.id), type="message", inputs=inputs, ordering_key="mail"))
    await node.send(absent.id, "true as well", mailbox=True)
    reader = await start(node, absent)
    await handled(node, absent, 2)
    assert [one.payload for one in reader.got] == ["true", "true as well"]
    (refused,) = await stored(node, absent, TaskState.FAILED)
    assert refused.error is not None
    assert refused.error.startswith("refused: ")


async def test_a_copy_of_a_stored_message_is_not_delivered_again(node: Node, absent: Identity) -> None:
    await node.send(absent.id, "once", mailbox=True)
    (original,) = await stored(node, absent)
    await node.tasks.submit(
        Task(pool_id=mailbox_of(absent.id), type="message", inputs=original.inputs, ordering_key="mail")
    )
    reader = await start(node, absent)
    await handled(node, absent, 1)
    await node.send(reader.id, "last", mailbox=True, ack="handled")
    assert [one.payload for one in reader.got] == ["once", "last"]


async def test_a_look_at_mail_costs_the_same_however_many_agents_there_are(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = 0
    scan = node.store.scan

    async def counted(ranges: Any) -> Any:
        nonlocal scans
        scans += 1
        return await scan(ranges)

    await node.spawn(Reader, count=200)
    monkeypatch.setattr(node.store, "scan", counted)
    assert await node.network.post.mailboxes.with_mail(node.network.post.inboxes) == set()
    assert scans == 1


async def test_looks_at_mail_add_no_lines_to_those_of_an_outage(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refused(ranges: Any) -> Any:
        raise StoreUnavailable("nobody listens")

    await node.spawn(Reader)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(node.store, "scan", refused)
    assert await node.network.post.mailboxes.with_mail(node.network.post.inboxes) == set()
    assert "converge.mailbox" not in {record.name for record in caplog.records}


async def test_mail_from_a_process_that_cannot_reach_the_agents_node_is_found_there(
    reopen: Reopen, absent: Identity
) -> None:
    async with reopen() as there, reopen() as here:
        reader = await start(there, absent)
        await here.send(reader.id, "by the store alone", mailbox=True, ack="handled")
        assert [one.payload for one in reader.got] == ["by the store alone"]


async def test_mail_is_stored_and_drained_by_an_agent_whose_loop_decides(node: Node, absent: Identity) -> None:
    got: list[object] = []

    class Decider(Agent):
        """Decides on messages."""

        def decide(self, messages: list[Message], tasks: list[Task]) -> list[object]:
            """See the class."""
            got.extend(message.payload for message in messages)
            return []

    for number in range(3):
        await node.send(absent.id, number, mailbox=True)
    with patch.object(Identity, "generate", lambda entropy: absent):
        await node.spawn(Decider)
    await handled(node, absent, 3)
    assert got == [0, 1, 2]
