"""Every way in which a message between processes may fail to arrive ends in a typed error, and none of them costs
another message: what was accepted was handled, once and in order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest
from anyio.abc import SocketAttribute, SocketStream

from converge import AgentDescriptor, DiscoveryQuery, Node
from converge.errors import MessageError
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until
from converge.testing.fleet import Fleet
from converge.testing.place import Place
from converge.testing.proxy import byte_proxy
from converge.testing.servers import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SHORT_SEC, LONG_SEC = 2.0, 60.0
"""How long a message is tried that cannot arrive, and one that will."""

MESSAGES = 30


@pytest.fixture(scope="module")
def place(place_of: Callable[[str, str], Place]) -> Place:
    """A place on a file."""
    return place_of("file", "tcp")


@asynccontextmanager
async def web_server() -> AsyncIterator[str]:
    """Run what is no node, but answers; give its address."""

    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, answer)
        yield f"tcp://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        group.cancel_scope.cancel()


@attrs.define
class Sent:
    """What came of each message that this process has sent, by its number."""

    node: Node
    fleets: tuple[Fleet, ...]
    outcomes: dict[int, str] = attrs.field(factory=dict)

    async def send(self, to: str, *, timeout: float) -> str:
        """Send one; return the level of its receipt, or its error in words."""
        number = len(self.outcomes)
        self.outcomes[number] = "under way"
        try:
            receipt = await self.node.send(to, {"do": "note", "number": number}, timeout=timeout)
            self.outcomes[number] = str(receipt.level)
        except MessageError as error:
            self.outcomes[number] = f"{type(error).__name__}: {error}"
        return self.outcomes[number]

    def handled(self) -> dict[str, list[int]]:
        """The numbers in the order in which agents have handled them, by agent."""
        found: dict[str, list[int]] = defaultdict(list)
        for fleet in self.fleets:
            for line in fleet.ledger():
                if line["what"] == "message":
                    found[line["to"]].append(line["number"])
        return found


async def found(node: Node, fleet: Fleet, *flags: str) -> AgentDescriptor:
    """Start a process of one agent; return that agent once it is known."""
    talkers = DiscoveryQuery(capabilities=["talk"])
    before = {one.id for one in await node.discovery.query(talkers, refresh_from_store=True)}
    new: list[AgentDescriptor] = []
    process = fleet.start(*flags, agents=1)

    async def is_there() -> bool:
        assert process.poll() is None, fleet.log_of(process)
        new[:] = [one for one in await node.discovery.query(talkers) if one.id not in before]
        return bool(new)

    await wait_until(is_there, timeout=60, what="the agent is known")
    return new[0]


async def test_f12_each_send_ends_in_a_receipt_or_a_typed_error_and_what_was_accepted_was_handled_once(
    place: Place, tmp_path: Path
) -> None:
    port, fleet = free_port(), place.fleet(tmp_path)
    (tmp_path / "later").mkdir()
    later = attrs.evolve(place, agent="later_agents:Talker").fleet(tmp_path / "later")
    try:
        async with place.node() as node, web_server() as web, byte_proxy(f"tcp://127.0.0.1:{port}") as proxy:
            advertised = proxy.address.removeprefix("tcp://")
            there = await found(node, fleet, "--transport", f"tcp://127.0.0.1:{port}", "--advertise", advertised)
            other = await found(node, fleet, "--transport", place.transport)
            unspoken = await found(node, later, "--transport", place.transport)
            sent = Sent(node, (fleet, later))
            # What its address leads to is no node, or another one.
            for target in (web, other.endpoints[0]):
                proxy._target = target
                assert "accepted" not in await sent.send(there.id, timeout=SHORT_SEC)
            for _ in range(10):  # a busy machine may not get so far in the time of one
                if "the peer speaks versions 2 to 2" in (told := await sent.send(unspoken.id, timeout=SHORT_SEC)):
                    break
            else:
                raise AssertionError(told)
            first = len(sent.outcomes)
            # It is the node, and each frame comes byte by byte.
            proxy._target, proxy.chunk_bytes = f"tcp://127.0.0.1:{port}", 1
            for _ in range(MESSAGES):
                assert await sent.send(there.id, timeout=LONG_SEC) == "accepted", sent.outcomes
            assert await sent.send(other.id, timeout=LONG_SEC) == "accepted"
            await node.ask(there.id, {"do": "echo"}, timeout=LONG_SEC)  # what came before it has been handled
            await node.ask(other.id, {"do": "echo"}, timeout=LONG_SEC)
            # It is killed while it has messages without receipt.
            process = fleet.processes[0]
            stand_still(process.pid)
            async with anyio.create_task_group() as group:
                for _ in range(MESSAGES):
                    group.start_soon(lambda: sent.send(there.id, timeout=SHORT_SEC))
                await wait_until(lambda: "under way" in sent.outcomes.values(), what="some are under way")
                process.kill()
                await anyio.to_thread.run_sync(process.wait)
            # Nothing listens at its address any more.
            fleet.processes[1].kill()
            await anyio.to_thread.run_sync(fleet.processes[1].wait)
            await sent.send(other.id, timeout=SHORT_SEC)
            good = list(range(first, first + MESSAGES + 1))
            assert {there.id: good[:-1], other.id: good[-1:]} == sent.handled(), sent.outcomes
            errors = {number: text for number, text in sent.outcomes.items() if text != "accepted"}
            assert sorted(errors) == [number for number in sorted(sent.outcomes) if number not in good]
            assert len(errors) == first + MESSAGES + 1
            assert all(text.startswith(("DeliveryTimeout: ", "Undeliverable: ")) for text in errors.values()), errors
            print(dict(list(errors.items())[:5]))  # noqa: T201  # shown with -s, and when it fails
    finally:
        fleet.kill_all()
        later.kill_all()
