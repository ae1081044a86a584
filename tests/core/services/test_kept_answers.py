"""What is kept of messages for when they are repeated: what one peer does costs no other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from converge import Identity
from converge.env import SYSTEM
from converge.machines.records import MESSAGE, Item
from converge.model.envelope import ACCEPTED, HANDLED, MessageHeader, ReceiptHeader, pack, unpack
from converge.services.messages.receipts import KEPT, Answers
from converge.testing.fixtures import wait_until
from converge.testing.sides import Link, two_sides


def link(peer: bytes) -> Any:
    """A link that takes every answer."""

    def answer(item: Item) -> bool:
        return True

    return SimpleNamespace(peer=peer, is_closed=False, work=0, answer=answer)


def header(number: int) -> MessageHeader:
    """The header of a question."""
    return MessageHeader(f"{number:032x}", "sender", "recipient", "life", number + 1, 0, wants=HANDLED)


def test_a_peer_that_uses_an_id_again_and_again_keeps_one_answer_and_drives_out_no_other() -> None:
    answers, rogue, honest = Answers(SimpleNamespace(errand=None)), link(b"rogue"), link(b"honest")  # type: ignore[arg-type]  # its link lives
    for _ in range(2 * KEPT):
        answers.owe(rogue, header(0))(b"1", "")
    for number in range(10):
        answers.owe(honest, header(number))(b"2", "")
    assert all(answers.again(honest, header(number)) is not None for number in range(10))
    assert answers.again(rogue, header(0)) is not None


async def test_the_counts_of_a_publication_are_those_of_its_sender_whoever_uses_its_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_sides(agents=3) as (here, there):
        receipts: list[tuple[int, int]] = []

        def note(self: Link, items: list[Item]) -> None:
            told = [unpack(body, ReceiptHeader)[0] for _, body in items]
            receipts.extend((one.taken, one.refused) for one in told)

        monkeypatch.setattr(Link, "post", note)
        await here.to(there.identity.public_key, ())
        assert there.link is not None
        for sender, topic in ((0, "news"), (1, "nobody has this"), (0, "news")):
            one = MessageHeader("0" * 32, here.agents[sender].id, "", "life", 1, 0, wants=ACCEPTED, topic=topic)
            await there.received.on_items(there.link, [(MESSAGE, pack(one, b"1"))])
        assert receipts == [(3, 0), (0, 0), (3, 0)]


async def test_a_sender_that_was_known_is_looked_up_before_it_is_refused() -> None:
    async with two_sides() as (here, there):
        await here.to(there.identity.public_key, ())
        routes, new = here.post.routes, Identity.generate(SYSTEM.entropy)
        assert here.link is not None
        assert routes.speaks(new.id, here.link) is None
        there.publish(new)
        await wait_until(lambda: not routes._is_coming, what="it was looked up")
        assert routes.speaks(new.id, here.link)
        routes.discovery.directory.drop(new.id)
        assert routes.speaks(new.id, here.link) is None
