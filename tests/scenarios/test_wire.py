"""What stands between two nodes: it reads nothing, and cuts cost no message its receipt, its order or its
uniqueness.
"""

from __future__ import annotations

import base64
import os
import random
import secrets
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from converge import Agent, AgentDescriptor, DiscoveryQuery, Message, Node
from converge.errors import MessageError
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet
from converge.testing.place import Place
from converge.testing.proxy import ByteProxy, byte_proxy
from converge.testing.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]

CANARIES, CUTS, MESSAGES = 1_000, 15, 60


class Sender(Agent):
    """Sends what the test says, and answers what it is asked."""

    async def on_message(self, message: Message) -> object:
        return message.payload


@attrs.frozen
class Between:
    """This process's node, the agents of a process, and the proxy that both of them stand behind."""

    node: Node
    fleet: Fleet
    there: list[AgentDescriptor]
    proxies: list[ByteProxy]

    def recorded(self) -> bytes:
        """Everything that either proxy saw."""
        return b"\n".join(bytes(part) for proxy in self.proxies for part in (proxy.seen_up, proxy.seen_down))


@asynccontextmanager
async def between(place: Place, folder: Path) -> AsyncIterator[Between]:
    """Run a node here and a process there, each known to the other by the address of a proxy only."""
    here, there = free_port(), free_port()
    scheme = place.transport.partition(":")[0]
    fleet = place.fleet(folder)
    try:
        async with (
            byte_proxy(f"{scheme}://127.0.0.1:{there}") as to_there,
            byte_proxy(f"{scheme}://127.0.0.1:{here}") as to_here,
        ):
            ports = [proxy.address.rpartition(":")[2] for proxy in (to_there, to_here)]
            fleet.start(
                "--transport", f"{scheme}://127.0.0.1:{there}", "--advertise", f"127.0.0.1:{ports[0]}", agents=2
            )
            async with place.node(transport=f"{scheme}://127.0.0.1:{here}", advertise=f"127.0.0.1:{ports[1]}") as node:
                found: list[AgentDescriptor] = []

                async def are_there() -> bool:
                    known = await node.discovery.query(DiscoveryQuery(capabilities=["talk"]))
                    found[:] = [
                        one for one in known if one.endpoints[0].rstrip("/") == f"{scheme}://127.0.0.1:{ports[0]}"
                    ]
                    return len(found) == 2

                await wait_until(are_there, timeout=60, what="the other process is known")
                yield Between(node, fleet, found, [to_there, to_here])
    finally:
        fleet.kill_all()


@pytest.fixture(scope="module", params=["tcp", "ws"])
def place(request: pytest.FixtureRequest, place_of: Callable[[str, str], Place]) -> Place:
    """A place on Redis; its server starts before the tests, so that the leak check knows it."""
    return place_of("redis", request.param)


async def test_nothing_of_a_message_can_be_read_on_the_wire(place: Place, tmp_path: Path) -> None:
    canaries = [f"canary-{secrets.token_hex(12)}" for _ in range(CANARIES)]
    async with between(place, tmp_path) as wire:
        (own,) = await wire.node.spawn(Sender)
        for at in range(0, CANARIES, 100):
            answer = await own.ask(wire.there[0].id, {"do": "echo", "say": canaries[at : at + 100]})
            assert answer["said"] == canaries[at : at + 100]
        relayed = await own.ask(wire.there[0].id, {"do": "relay", "to": own.id, "number": 1, "say": canaries[0]})
        assert relayed["answer"]["say"] == canaries[0]
        recorded = wire.recorded()
        ids = [own.id, wire.there[0].id, wire.node.identity.id, wire.node.settings.network]
    assert len(recorded) > 2 * sum(map(len, canaries)), "the messages went past the proxy, so it proves nothing"
    readable = [
        word
        for word in [*canaries, *ids]
        if word.encode() in recorded or base64.b64encode(word.encode()).rstrip(b"=")[:-1] in recorded
    ]
    assert not readable


async def test_cuts_lose_no_message_silently_repeat_none_and_keep_the_order(place: Place, tmp_path: Path) -> None:
    seed = int(os.environ.get("CONVERGE_SEED") or secrets.randbits(32))
    print("seed", seed)  # noqa: T201  # pytest shows it when the test fails
    chance = random.Random(seed)
    async with between(place, tmp_path) as wire:
        senders = await wire.node.spawn(Sender, count=3)
        accepted: dict[tuple[str, str], list[int]] = defaultdict(list)
        errors: list[MessageError] = []

        async def talk(sender: Agent, to: str) -> None:
            for number in range(MESSAGES):
                try:
                    await sender.send(to, {"do": "note", "number": number}, timeout=chance.choice([0.05, 5.0]))
                    accepted[sender.id, to].append(number)
                except MessageError as error:
                    errors.append(error)

        async with anyio.create_task_group() as group:
            for sender in senders:
                for there in wire.there:
                    group.start_soon(talk, sender, there.id)
            await _cut(wire.proxies[0], chance, lambda: sum(map(len, accepted.values())) + len(errors) < MESSAGES * 6)
        for there in wire.there:
            await senders[0].ask(there.id, {"do": "echo"})  # what came before it has been handled
        handled: dict[tuple[str, str], list[int]] = defaultdict(list)
        for line in wire.fleet.ledger():
            if line["what"] == "message":
                handled[line["sender"], line["to"]].append(line["number"])
    assert sum(map(len, accepted.values())) > MESSAGES, f"hardly anything got through: {errors[:3]}"
    for pair, numbers in handled.items():
        assert numbers == sorted(set(numbers)), f"{pair}: out of order, or twice: {numbers}"
        assert set(accepted[pair]) <= set(numbers), (
            f"{pair}: accepted and not handled: {set(accepted[pair]) - set(numbers)}"
        )


async def _cut(proxy: ByteProxy, chance: random.Random, is_talking: Callable[[], bool]) -> None:
    """Cut the connection again and again, after a random number of bytes of one direction."""
    cuts = 0
    while cuts < CUTS and is_talking():
        way = chance.choice(["up", "down"])
        seen: bytearray = getattr(proxy, f"seen_{way}")
        limit = len(seen) + chance.randrange(1, 1_500)
        setattr(proxy, f"cut_{way}_after", limit)
        await wait_until(
            lambda seen=seen, limit=limit: len(seen) >= limit or not is_talking(),  # type: ignore[misc]
            timeout=20,
            what="enough bytes for a cut",
        )
        setattr(proxy, f"cut_{way}_after", None)
        cuts += 1
    assert cuts == CUTS, f"the messages were through after {cuts} cuts"
