"""Items that a peer may send, spoiled in every way: a link ends with one typed error, or goes on; nothing else happens.

With `FULL_TESTS=1` there are 400,000 on each event loop, which with the frames of `test_records.py` and the hellos of
`test_secure_frames.py` make two million. A failure names the `FUZZ_SEED` that repeats it.
"""

from __future__ import annotations

import os
import random

import anyio
import pytest

from converge import AgentDescriptor
from converge.env import SYSTEM
from converge.errors import TornRecord
from converge.machines.records import GONE, MESSAGE, PING, RECEIPT, SHOWN, SIGNED, SIGNED_TOGETHER, Item
from converge.model.descriptor import network_tag, sign_descriptor
from converge.model.envelope import MessageHeader, ReceiptHeader, pack, sign
from converge.model.together import sign_together
from converge.services.messages.options import SendOptions
from converge.testing.sides import NETWORK, Side, two_sides

ITEMS = 400_000 if os.environ.get("FULL_TESTS") == "1" else 2_000


INSERTED = (b"\x00", b"\xff" * 9, b'"' * 3, b"[" * 2_000, b"\xed\xa0\x80", b"NaN", b"9" * 400)


def good_items(here: Side, there: Side, draw: random.Random) -> list[Item]:
    """Return an item of each kind, as an honest peer sends it."""
    agent, to = here.agents[0], there.agents[0].id
    header = MessageHeader(SYSTEM.entropy(16).hex(), agent.id, to, "life", draw.randrange(1, 2**40), 0)
    signed = MessageHeader(
        header.id, agent.id, to, "life", header.sequence, 0, key=agent.identity.public_key.hex(), chain=(header.id, to)
    )
    descriptor = AgentDescriptor(
        id=agent.id, public_key=agent.identity.public_key.hex(), node_key=here.identity.public_key.hex(), sequence=2
    )
    return [
        (MESSAGE, pack(header, b'{"n": 1}')),
        (MESSAGE, pack(header, b"[" * 40 + b"]" * 40)),
        (SIGNED, sign(agent.identity, network_tag(NETWORK), signed, b'"signed"')),
        (
            SIGNED_TOGETHER,
            sign_together(agent.identity, network_tag(NETWORK), [pack(signed, b'"one"'), pack(signed, b'"two"')])[1],
        ),
        (RECEIPT, pack(ReceiptHeader(header.id, draw.choice(["handled", "early", "cycle", "?"]), "why", 1, 2), b"1")),
        (SHOWN, sign_descriptor(agent.identity, descriptor, NETWORK)),
        (GONE, agent.id.encode()),
        (PING, b"x"),
    ]


def spoiled(body: bytes, draw: random.Random) -> bytes:
    """Return the body with something wrong, or right."""
    data = bytearray(body)
    for _ in range(draw.choice([0, 1, 1, 2, 8])):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(4)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + draw.randrange(1, 20)]
        elif kind == 2:
            data[at:at] = draw.choice(INSERTED)
        else:
            data = data[:at]
    return bytes(data)


@pytest.mark.timeout(1_800)
async def test_spoiled_items_end_a_link_with_a_typed_error_or_leave_it_as_it_is() -> None:
    seed = int(os.environ.get("FUZZ_SEED", random.randrange(2**32)))
    draw, torn = random.Random(seed), 0
    async with two_sides() as (here, there):
        there_link = (await there.to(here.identity.public_key, ())).end.end
        for number in range(ITEMS):
            if number % 100 == 0:
                items = good_items(here, there, draw)
            if number % 1_000 == 0:
                await anyio.wait_all_tasks_blocked()  # the answers have been read
            kind, body = draw.choice(items)
            try:
                await there.received.on_items(there_link, [(kind, spoiled(body, draw))])
            except TornRecord:
                torn += 1
            except Exception as error:
                raise AssertionError(f"FUZZ_SEED={seed}: an item of kind {kind}") from error
        assert torn > ITEMS // 20
        await here.post.send(here.identity.id, there.agents[0].id, "still here", _options())


def _options() -> SendOptions:
    return SendOptions(timeout=20)
