"""Messages between two processes: each is handled once and in order, and each send ends in a receipt or a typed error
by its deadline.

The links are the tests' own and fail as they are told: no socket, no handshake; everything else is as in a node.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converge import Capability, Identity, Message, Receipt
from converge.env import SYSTEM
from converge.errors import (
    Backpressure,
    ConnectFailed,
    DeliveryTimeout,
    MessageError,
    TornRecord,
    Undeliverable,
)
from converge.machines.records import MESSAGE, RECEIPT, SIGNED
from converge.model.envelope import MessageHeader, pack
from converge.model.message import Fanout
from converge.services.discovery.registry import Trust
from converge.services.messages import unsettled as underway
from converge.services.messages.fanout import Fanouts
from converge.services.messages.options import SendOptions
from converge.testing.fixtures import wait_until
from converge.testing.sides import Agent, Side, two_sides

TORN, HISTORIES = (80, 60) if os.environ.get("FULL_TESTS") == "1" else (25, 15)
"""How many random items, and how many random histories of which many run into a timeout, are tried."""

LEVELS = ("accepted", "handled", None)


async def send(side: Side, to: Agent, payload: Any, *, sender: Agent | None = None, **how: Any) -> Receipt:
    """Send from the side's first agent, or from another."""
    return await side.post.send((sender or side.agents[0]).id, to.id, payload, SendOptions(**how))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(underway, "RETRY_LEAST_SEC", 0.001)
    monkeypatch.setattr(underway, "RETRY_GREATEST_SEC", 0.002)


# One message.


@pytest.mark.parametrize("proof", ["channel", "signed"])
@pytest.mark.parametrize(("ack", "level"), [("accepted", "accepted"), ("handled", "handled"), (None, "handed")])
async def test_a_message_arrives_with_every_level_and_proof(ack: str | None, level: str, proof: str) -> None:
    async with two_sides() as (here, there):
        receipt = await send(here, there.agents[0], {"n": 1}, ack=ack, proof=proof)
        await wait_until(lambda: len(there.agents[0].got) == 1, what="it is handled")
        (message,) = there.agents[0].got
        assert (receipt.level, message.id, message.sender, message.payload) == (
            level,
            receipt.message_id,
            here.agents[0].id,
            {"n": 1},
        )


@pytest.mark.parametrize(
    "faults", [["cut before"], ["cut after"], ["cut after", "cut after", "cut before"], ["twice"], ["late", "copies"]]
)
@pytest.mark.parametrize("proof", ["channel", "signed"])
async def test_a_message_is_handled_once_whatever_the_connection_does(faults: list[str], proof: str) -> None:
    left = list(faults)
    async with two_sides(lambda what: left.pop(0) if what == "send" and left else "ok") as (here, there):
        for number in range(3):
            await send(here, there.agents[0], number, proof=proof, ack="handled")
        assert [one.payload for one in there.agents[0].got] == [0, 1, 2]


async def test_a_full_inbox_is_backpressure_for_that_message_only() -> None:
    async with two_sides(agents=2, room=2) as (here, there):
        full, free = there.agents
        full.gate = anyio.Event()
        with pytest.raises(Backpressure):
            for number in range(4):
                await send(here, full, number)
        await send(here, free, "others go on", ack="handled")
        full.gate.set()


async def test_an_agent_that_is_not_there_is_undeliverable() -> None:
    async with two_sides() as (here, there):
        gone = there.agents[0]
        there.post.inboxes.remove(gone.id)
        with pytest.raises(Undeliverable, match="no such agent"):
            await send(here, gone, "x")
        with pytest.raises(Undeliverable, match="not known here"):
            await here.post.send(here.agents[0].id, "cv1" + "a" * 52, "x", SendOptions())


async def test_many_messages_to_a_node_that_nobody_reaches_are_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    enough, dials = anyio.Event(), count()

    def refuse(what: str) -> str:
        if next(dials) >= 30:
            enough.set()
        return "no"

    async with two_sides(refuse, agents=3) as (here, there), anyio.create_task_group() as group:
        for to in there.agents:
            group.start_soon(partial(send, here, to, "x", timeout=60))
        await enough.wait()
        group.cancel_scope.cancel()
    assert [record.levelname for record in caplog.records if "is repeated" in record.getMessage()] == ["INFO"]


async def test_a_node_that_nobody_reaches_is_a_timeout_by_the_deadline() -> None:
    async with two_sides(lambda what: "no") as (here, there):
        began = anyio.current_time()
        with pytest.raises(DeliveryTimeout, match="certainly does not have the message; the last try: nobody answers"):
            await send(here, there.agents[0], "x", timeout=1.0)
        assert anyio.current_time() - began < 8, "it took the time of a send that names none"
        assert len(here.post.under_way) == 0


@pytest.mark.parametrize("ack", ["accepted", "handled"])
async def test_a_message_that_an_open_connection_loses_ends_in_a_timeout_that_does_not_say_it_was_not_sent(
    ack: str,
) -> None:
    lost: list[str] = []
    async with two_sides(lambda what: lost[0] if what == "send" and lost else "ok") as (here, there):
        await send(here, there.agents[0], "the connection is there")
        lost.append("lost")
        began = anyio.current_time()
        with pytest.raises(DeliveryTimeout, match="it may have the message or not") as error:
            await send(here, there.agents[0], "x", ack=ack, timeout=1.0)
        assert error.value.was_sent and anyio.current_time() - began >= 0.9
        assert len(here.post.under_way) == 0


async def test_a_caller_that_is_cancelled_leaves_nothing_behind_and_holds_up_nobody() -> None:
    lost = ["ok"]
    async with two_sides(lambda what: lost[0] if what == "send" else "ok") as (here, there):
        await send(here, there.agents[0], 0)
        lost[0] = "lost"
        async with anyio.create_task_group() as group:
            group.start_soon(partial(send, here, there.agents[0], 1))
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert len(here.post.under_way) == 0
        lost[0] = "ok"
        await send(here, there.agents[0], 2, ack="handled")
        assert [one.payload for one in there.agents[0].got] == [0, 2]


async def test_a_loop_of_messages_without_receipts_lets_others_run() -> None:
    async with two_sides() as (here, there):
        await send(here, there.agents[0], "the connection is there")
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(others)
            for number in range(160):
                await send(here, there.agents[0], number, ack=None)
            group.cancel_scope.cancel()
        assert turns >= 5


async def test_an_answer_finds_its_way_when_the_connection_broke_meanwhile() -> None:
    async with two_sides() as (here, there):
        there.agents[0].gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(partial(send, here, there.agents[0], "x", ack="handled", timeout=10))
            await wait_until(lambda: not there.agents[0].is_idle, what="it is with the handler")
            assert here.link is not None
            here.link.cut()
            there.agents[0].gate.set()
        assert len(there.agents[0].got) == 1


async def test_a_later_message_of_a_pair_does_not_overtake_one_that_a_full_inbox_refused() -> None:
    async with two_sides(room=1) as (here, there):
        reader, outcomes, order = there.agents[0], dict[int, str](), list[int]()
        reader.gate = anyio.Event()

        async def one(number: int) -> None:
            order.append(number)
            try:
                await send(here, reader, number)
            except Backpressure:
                outcomes[number] = "full"
            else:
                outcomes[number] = "accepted"

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(one, number)
        reader.gate.set()
        await wait_until(lambda: reader.is_idle, what="all are handled")
        got = [message.payload for message in reader.got]
        assert got == [number for number in order if outcomes[number] == "accepted"]
        assert "full" in outcomes.values()


# Who may send.


async def test_a_sender_whose_node_is_another_is_refused_unless_it_signs() -> None:
    async with two_sides() as (here, there):
        stranger = Identity.generate(SYSTEM.entropy)
        with pytest.raises(Undeliverable, match="no descriptor of the sender"):
            await here.post.send(stranger.id, there.agents[0].id, "x", SendOptions())
        there.publish(here.agents[0].identity)  # it moved: its descriptor names the other node now
        with pytest.raises(Undeliverable, match="no descriptor of the sender"):
            await send(here, there.agents[0], "by its old node")
        await send(here, there.agents[0], "signed", proof="signed", ack="handled")
        assert [one.payload for one in there.agents[0].got] == ["signed"]


async def test_a_signed_message_is_refused_once_its_window_has_passed_and_when_it_is_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_sides() as (here, there):
        reader = there.agents[0]
        left = ["late"]
        assert here.link is None
        here._faults = lambda what: left.pop() if what == "send" and left else "ok"
        await send(here, reader, "once", proof="signed", ack="handled")
        assert here.late, "a copy was kept"
        assert here.link is not None
        await there.received.on_items(there.link, here.late * 3)
        now = there.received._now

        def later() -> int:
            return now() + 61_000_000

        monkeypatch.setattr(there.received, "_now", later)
        with pytest.raises(Undeliverable, match=r"its signature is 6\d s old"):
            await send(here, reader, "late", proof="signed")
        await send(here, reader, "a channel has no window", ack="handled")
        assert [one.payload for one in reader.got] == ["once", "a channel has no window"]


async def test_a_signed_message_that_was_changed_is_refused_and_the_connection_goes_on() -> None:
    async with two_sides() as (here, there):
        reader = there.agents[0]
        header = MessageHeader("00" * 16, here.agents[0].id, reader.id, "life", 1, here.post._handle.about_now())
        kind, body = here.post.signer(here.agents[0].id).item(header, b'"true"')
        link = await here.to(there.identity.public_key, ())
        await link.send([(kind, body.replace(b'"true"', b'"lies"'))])
        await send(here, reader, "after it", ack="handled")
        assert [one.payload for one in reader.got] == ["after it"]


async def test_a_sender_that_is_not_pinned_is_refused_where_trust_is_drop() -> None:
    async with two_sides() as (here, there):
        there.registry.trust = Trust.DROP
        for proof in ("channel", "signed"):
            with pytest.raises(Undeliverable, match="not trusted there"):
                await send(here, there.agents[0], "x", proof=proof)
        there.registry.pin(here.agents[0].id)
        await send(here, there.agents[0], "pinned", ack="handled")


HOSTILE = [
    b"",
    b"\xff",
    b"\x00\x02{}",
    b"\xff\xff" + b"{" * 5_000,
    b"\x00\x04null",
    b"\x00\x02" + b"[" * 2,
    pack(MessageHeader("0", "x", "y", "life", 1, 1))[:-3],
]
CHANGES: list[dict[str, Any]] = [
    {"sent_at": 10**18},
    {"sent_at": -1},
    {"sequence": -1},
    {"sequence": 10**30},
    {"lease": "x" * 65},
    {"task": "x" * 3_000},
    {"wants": "everything"},
    {"wants": "handled", "after": 2**61},
    {"to": ""},
    {"to": "", "topic": "news", "pool": "team"},
    {"mail": True},
    {"key": "zz"},
]


@pytest.mark.parametrize("kind", [MESSAGE, RECEIPT, SIGNED])
@pytest.mark.parametrize("number", range(len(HOSTILE) + len(CHANGES)))
async def test_whatever_a_peer_sends_is_refused_or_ends_its_link_and_others_go_on(kind: int, number: int) -> None:
    async with two_sides() as (here, there):
        reader = there.agents[0]
        header = MessageHeader("00" * 16, here.agents[0].id, reader.id, "life", 1, here.post._handle.about_now())
        if number < len(HOSTILE):
            body = HOSTILE[number]
        else:
            head = json.dumps({**msgspec.structs.asdict(header), **CHANGES[number - len(HOSTILE)]}).encode()
            body = len(head).to_bytes(2, "big") + head + b"null" + (bytes(64) if kind == SIGNED else b"")
        await here.to(there.identity.public_key, ())
        assert there.link is not None
        with suppress(TornRecord):
            await there.received.on_items(there.link, [(kind, body)])
        await send(here, reader, "after it", ack="handled")
        assert [one.payload for one in reader.got if one.payload is not None] == ["after it"]


@given(st.binary(max_size=400), st.sampled_from([MESSAGE, RECEIPT, SIGNED]))
@settings(max_examples=TORN, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_of_a_peer_raise_anything_but_that_they_are_torn(body: bytes, kind: int) -> None:
    async def receive() -> None:
        async with two_sides() as (here, there):
            await here.to(there.identity.public_key, ())
            assert there.link is not None
            with suppress(TornRecord):
                await there.received.on_items(there.link, [(kind, body)])
            await send(here, there.agents[0], "after it", ack="handled")

    anyio.run(receive)


# To several.


async def test_a_publication_crosses_once_for_each_node_and_counts_agents() -> None:
    async with two_sides(agents=3, room=1) as (here, there):
        there.post.inboxes.remove(there.agents[1].id)
        there.agents[1].topics = ()
        there.post.inboxes.add(there.agents[1], there.agents[1])
        there.agents[2].gate = anyio.Event()
        there.agents[2].put(*_filler(there.agents[2]))
        await wait_until(lambda: not there.agents[2].is_idle, what="it has something to do")
        there.agents[2].put(*_filler(there.agents[2]))
        sent: list[str] = []

        def counted(what: str) -> str:
            sent.append(what)
            return "ok"

        here._faults = counted
        outcomes = await Fanouts(here.post, here.identity.public_key).publish(here.agents[0].id, "news", "x", 5.0)
        assert sorted(outcomes, key=lambda one: one.node) == sorted(
            [Fanout(node=here.identity.id, accepted=2), Fanout(node=there.identity.id, accepted=1, refused=1)],
            key=lambda one: one.node,
        )
        assert sent.count("send") == 2, "the message, and its receipt"
        there.agents[2].gate.set()


def _filler(agent: Agent) -> tuple[Message, None]:
    return Message(id="", sender="", recipient=agent.id, payload="filler", sent_at=datetime.now(UTC)), None


async def test_a_publication_that_is_repeated_is_handled_once_and_counted_alike() -> None:
    left = ["ok", "cut before"]  # the receipt is lost
    async with two_sides(lambda what: left.pop(0) if what == "send" and left else "ok", agents=2) as (here, there):
        outcomes = await Fanouts(here.post, here.identity.public_key).broadcast(here.agents[0].id, "team", "x", 5.0)
        assert [(one.accepted, one.error) for one in outcomes if one.node == there.identity.id] == [(2, "")]
        await wait_until(lambda: all(one.is_idle for one in there.agents), what="all is handled")
        assert [[message.pool_id for message in one.got] for one in there.agents] == [["team"], ["team"]]


async def test_a_publication_tells_of_a_node_that_it_did_not_reach() -> None:
    async with two_sides(lambda what: "no") as (here, there):
        outcomes = await Fanouts(here.post, here.identity.public_key).publish(here.agents[0].id, "news", "x", 0.1)
        assert [one.node for one in outcomes] == [there.identity.id]
        assert "DeliveryTimeout" in outcomes[0].error


async def test_a_node_that_has_left_amid_a_publication_is_not_said_to_listen_nowhere() -> None:
    def leave(what: str) -> str:
        directory = here.post.routes.discovery.directory
        for one in (there.identity, *(agent.identity for agent in there.agents)):
            directory.drop(one.id)
        return "no"

    async with two_sides(leave) as (here, there):
        outcomes = await Fanouts(here.post, here.identity.public_key).publish(here.agents[0].id, "news", "x", 60.0)
        assert [one.error for one in outcomes] == [
            f"Undeliverable: node {there.identity.id[:16]} is not known here any more: it has stopped, or its lease "
            "has ended"
        ]


async def test_a_node_that_is_still_dialled_at_the_deadline_is_named_with_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang(node_key: bytes, endpoints: Sequence[str]) -> None:
        await anyio.sleep_forever()

    async with two_sides() as (here, there):
        monkeypatch.setattr(here, "to", hang)
        monkeypatch.setattr(here, "is_dialling", lambda node_key: True)
        with pytest.raises(DeliveryTimeout, match=r"does not have the message; there has not answered yet$"):
            await send(here, there.agents[0], "x", timeout=0.05)
        (outcome,) = await Fanouts(here.post, here.identity.public_key).publish(here.agents[0].id, "news", "x", 0.05)
        assert outcome.error.endswith("does not have the message; there has not answered yet")


async def test_a_node_without_an_endpoint_is_said_to_listen_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_sides() as (here, there):
        monkeypatch.setattr(here.post.routes, "endpoints", lambda node_key: ())
        (outcome,) = await Fanouts(here.post, here.identity.public_key).publish(here.agents[0].id, "news", "x", 60.0)
        assert outcome.error.startswith(f"Undeliverable: node {there.identity.id[:16]} listens nowhere, and has no")
        with pytest.raises(Undeliverable, match=f"agent {there.agents[0].id} is at a node that listens nowhere"):
            await send(here, there.agents[0], "x")


async def test_a_node_that_has_left_amid_a_dial_is_named_with_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(node_key: bytes, endpoints: Sequence[str]) -> None:
        directory = here.post.routes.discovery.directory
        for one in (there.identity, *(agent.identity for agent in there.agents)):
            directory.drop(one.id)
        await anyio.sleep_forever()

    async with two_sides() as (here, there):
        monkeypatch.setattr(here, "to", hang)
        with pytest.raises(ConnectFailed, match=r"to node n at there takes more than 0\.01 s"):
            await here.post.routes.link_soon(there.identity.public_key, "node n", 0.01, 0.01)


async def test_a_capability_goes_to_another_process_where_nobody_here_can() -> None:
    async with two_sides(agents=2) as (here, there):
        took = {
            (await here.post.send(here.agents[0].id, Capability("read"), n, SendOptions())).recipient for n in range(2)
        }
        assert took == {here.agents[1].id}
        here.post.inboxes.remove(here.agents[1].id)
        took = {
            (await here.post.send(here.agents[0].id, Capability("read"), n, SendOptions(ack="handled"))).recipient
            for n in range(4)
        }
        assert took == {one.id for one in there.agents}


async def test_a_capability_whose_node_is_not_reached_is_tried_until_the_deadline_and_the_error_says_why() -> None:
    async with two_sides(lambda what: "no") as (here, _):
        with pytest.raises(DeliveryTimeout, match="certainly does not have the message; the last try: nobody answers"):
            await here.post.send(here.agents[0].id, Capability("read"), "x", SendOptions(timeout=1.0))


async def test_a_capability_whose_node_is_away_for_a_moment_is_reached_before_the_deadline() -> None:
    fails = ["no"] * 5
    async with two_sides(lambda what: fails.pop() if what == "dial" and fails else "ok") as (here, there):
        receipt = await here.post.send(here.agents[0].id, Capability("read"), "x", SendOptions(timeout=60))
        assert receipt.recipient == there.agents[0].id


# All at once.

FAULTS = ("ok", "ok", "ok", "ok", "cut before", "cut after", "twice", "late", "copies")


@given(
    seed=st.integers(0, 2**32),
    sends=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 1), st.sampled_from(LEVELS), st.booleans()), min_size=1, max_size=40
    ),
    calm=st.integers(5, 60),
)
@settings(max_examples=HISTORIES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_whatever_connections_do_each_message_is_handled_once_in_order_and_each_send_ends(
    backend: str, seed: int, sends: list[tuple[int, int, str | None, bool]], calm: int
) -> None:
    anyio.run(_model, seed, sends, calm, backend=backend)


async def _model(seed: int, sends: list[tuple[int, int, str | None, bool]], calm: int) -> None:
    chance, steps = random.Random(seed), iter(range(calm))
    faults = {"send": FAULTS, "dial": ("ok", "ok", "no")}
    outcomes, order = dict[int, str](), list[int]()

    async with two_sides(
        lambda what: chance.choice(faults[what]) if next(steps, None) is not None else "ok", agents=2, room=6
    ) as (here, there):

        async def one(number: int, sender: int, to: int, ack: str | None, is_signed: bool) -> None:
            how = {"ack": ack, "proof": "signed" if is_signed else "channel", "timeout": chance.choice([0.02, 5.0])}
            order.append(number)
            try:
                outcomes[number] = (await send(here, there.agents[to], number, sender=here.agents[sender], **how)).level
            except MessageError as error:
                outcomes[number] = type(error).__name__

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                for number, (sender, to, ack, is_signed) in enumerate(sends):
                    group.start_soon(one, number, sender, to, ack, is_signed)
                    if chance.random() < 0.5:
                        await checkpoint()
            await wait_until(lambda: all(agent.is_idle for agent in there.agents), what="all is handled")
        assert outcomes.keys() == set(range(len(sends)))
        assert len(here.post.under_way) == 0
        for to, agent in enumerate(there.agents):
            got = [message.payload for message in agent.got]
            assert len(got) == len(set(got)), f"handled twice: {got}"
            for sender in range(2):
                of_pair = [n for n in got if sends[n][0] == sender]
                assert of_pair == sorted(of_pair, key=order.index), f"out of order: {of_pair}, sent as {order}"
            taken = {
                n for n, (_, whom, _, _) in enumerate(sends) if whom == to and outcomes[n] in ("accepted", "handled")
            }
            assert taken <= set(got), f"said to be taken, and never handled: {taken - set(got)}"
            refused = {n for n, outcome in outcomes.items() if outcome in ("Backpressure", "Undeliverable")}
            assert not refused & set(got), f"said to be refused, and handled: {refused & set(got)}"
