"""A node asks another for its agents: it gets all of them, or a typed error in bounded time and memory."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from converge.codec import encode
from converge.env import SYSTEM
from converge.errors import ConnectionLost, DeliveryTimeout, MessageTooLarge, TornRecord
from converge.machines.records import MESSAGE, Item
from converge.model.envelope import MessageHeader, ReceiptHeader, unpack
from converge.model.identity import Identity, agent_id
from converge.services.messages import descriptors as asking
from converge.services.messages.descriptors import Asking
from converge.services.messages.under_way import Link, Waiting


class Node:
    """What a node says of its agents."""

    def __init__(self) -> None:
        self.identity = Identity.generate(SYSTEM.entropy)
        self.heard: list[Link] = []
        self.asking = Asking(SYSTEM, self.identity.id, self, self.heard.append)
        self.signed: dict[str, bytes] = {}
        self.changes = 0

    def tells(self, count: int, size: int = 10) -> None:
        self.signed = {f"agent-{number:05}": bytes([number % 256]) * size for number in range(count)}
        self.changes += 1


class Wire(Link):
    """A link from one node to another: what is sent is answered at once."""

    def __init__(self, near: Node, far: Node, spoil: Callable[[bytes], bytes | None] = lambda payload: payload) -> None:
        self.near, self.far, self.spoil = near, far, spoil
        self.why = ""
        self.peer, self.is_closed, self.waiting = far.identity.public_key, False, set[Waiting]()
        self.address, self.features, self.speakers_bytes, self.work = "", 0, 0, 0
        self.shown, self.speakers = {}, {}
        self.asked = 0
        self.back: Wire | None = None

    def post(self, items: list[Item]) -> None:
        for kind, body in items:
            assert kind == MESSAGE
            self.asked += 1
            header, payload = unpack(body, MessageHeader)
            assert (header.sender, header.to) == (self.near.identity.id, agent_id(self.peer))
            _, answer = self.far.asking.on_message(self, header, payload)
            receipt, said = unpack(answer, ReceiptHeader)
            spoiled = self.spoil(said)
            if spoiled is not None:
                self.near.asking.on_receipt(self, receipt, spoiled)

    @property
    def is_full_of_answers(self) -> bool:
        raise AssertionError("nobody here is an agent")

    async def send(self, items: list[Item], owed: str = "", on_queued: Callable[[], None] = lambda: None) -> None:
        raise AssertionError("a question is not a message: it waits for no room")

    def offer(self, item: Item, owed: str = "") -> bool:
        raise AssertionError("a question is not a message: it waits for no room")

    def answer(self, item: Item) -> bool:
        raise AssertionError("nobody here is an agent")

    def settled(self, message_id: str) -> None:
        """Nothing is owed."""

    def show(self, agent_id: str, signed: bytes) -> None:
        raise AssertionError("nobody here is an agent")


@pytest.fixture
def near() -> Node:
    return Node()


@pytest.fixture
def far() -> Node:
    return Node()


@pytest.mark.parametrize(("count", "size"), [(0, 10), (1, 10), (1_000, 10), (300, 3_000), (3, 16_000)])
async def test_all_agents_are_told_however_many_answers_that_takes(
    near: Node, far: Node, count: int, size: int
) -> None:
    far.tells(count, size)
    wire = Wire(near, far)
    told = await near.asking.ask(wire, None)
    assert told is not None
    assert list(told.signed) == list(far.signed.values())
    assert wire.asked <= 1 + count * size * 4 / 3 / asking.PAGE_BYTES


async def test_who_knows_all_is_told_that_nothing_has_changed_in_one_answer(near: Node, far: Node) -> None:
    far.tells(1_000, 3_000)
    first = await near.asking.ask(Wire(near, far), None)
    wire = Wire(near, far)
    assert await near.asking.ask(wire, first) is None
    assert wire.asked == 1
    far.tells(0)
    again = await near.asking.ask(Wire(near, far), first)
    assert again is not None and again.signed == ()


async def test_a_restarted_node_is_told_anew_though_it_has_changed_as_often(near: Node, far: Node) -> None:
    far.tells(3)
    first = await near.asking.ask(Wire(near, far), None)
    other = Node()
    other.tells(3)
    told = await near.asking.ask(Wire(near, other), first)
    assert told is not None and len(told.signed) == 3


async def test_what_changes_between_two_answers_is_told_from_the_beginning(near: Node, far: Node) -> None:
    far.tells(300, 3_000)

    def change(payload: bytes) -> bytes:
        if wire.asked == 2:
            far.tells(4)
        return payload

    wire = Wire(near, far, change)
    told = await near.asking.ask(wire, None)
    assert told is not None and len(told.signed) == 4


async def test_who_is_asked_learns_who_asks_unless_it_is_asked_back(near: Node, far: Node) -> None:
    wire = Wire(near, far)
    await near.asking.ask(wire, None, is_back=True)
    assert far.heard == []
    await near.asking.ask(wire, None)
    assert far.heard == [wire]


def answer(*signed: str, next: str = "", changes: int = 1) -> bytes:
    return encode({"life": "x", "changes": changes, "signed": list(signed), "next": next})


@pytest.mark.parametrize(
    "payload",
    [b"", b"[]", b"{}", b"[" * 9_000, answer("not base64"), answer("a"), answer("ü"), b'{"life": 1, "changes": 1}'],
)
async def test_an_answer_that_is_none_is_a_typed_error(near: Node, far: Node, payload: bytes) -> None:
    with pytest.raises(TornRecord):
        await near.asking.ask(Wire(near, far, lambda _: payload), None)


async def test_a_node_that_never_comes_to_an_end_is_given_up(
    near: Node, far: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PAGES", 20)
    wire = Wire(near, far, lambda _: answer(next="z"))
    with pytest.raises(DeliveryTimeout, match="in 20 answers"):
        await near.asking.ask(wire, None)
    number = iter(range(1_000))
    wire = Wire(near, far, lambda _: answer(next="z", changes=next(number)))
    with pytest.raises(DeliveryTimeout):
        await near.asking.ask(wire, None)
    assert wire.asked == 20


async def test_a_node_that_tells_of_too_many_is_given_up_before_they_are_kept(
    near: Node, far: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = base64.b64encode(bytes(100)).decode()
    monkeypatch.setattr(asking, "AGENTS", 50)
    with pytest.raises(MessageTooLarge):
        await near.asking.ask(Wire(near, far, lambda _: answer(*[one] * 10, next="z")), None)
    monkeypatch.setattr(asking, "AGENTS", 10**9)
    monkeypatch.setattr(asking, "AGENTS_BYTES", 1_000)
    with pytest.raises(MessageTooLarge):
        await near.asking.ask(Wire(near, far, lambda _: answer(*[one] * 10)), None)


async def test_a_node_that_does_not_answer_is_given_up_in_time_and_nobody_waits_after(
    near: Node, far: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_SEC", 0.05)
    wire = Wire(near, far, lambda _: None)
    with pytest.raises(DeliveryTimeout):
        await near.asking.ask(wire, None)
    assert wire.waiting == set() and near.asking._waiting == {}


async def test_a_link_that_ends_meanwhile_ends_the_wait(near: Node, far: Node) -> None:
    def end(_: bytes) -> None:
        for one in wire.waiting:
            one.give_up()

    wire = Wire(near, far, end)
    with pytest.raises(ConnectionLost):
        await near.asking.ask(wire, None)


async def test_an_answer_from_another_node_than_the_one_that_was_asked_is_passed_over(
    near: Node, far: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "ANSWER_SEC", 0.05)
    other = Wire(near, Node())

    def redirect(payload: bytes) -> None:
        (message_id,) = near.asking._waiting
        near.asking.on_receipt(other, ReceiptHeader(message_id, asking.DESCRIPTORS), payload)

    with pytest.raises(DeliveryTimeout):
        await near.asking.ask(Wire(near, far, redirect), None)
