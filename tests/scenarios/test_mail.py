"""A mailbox across processes that are killed: what was stored is handled, in order, and again only by an attempt with a
greater token.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from converge import DiscoveryQuery, Node
from converge.testing.fixtures import wait_until
from converge.testing.fleet import expire_leases
from converge.testing.place import Place

pytestmark = [pytest.mark.slow, pytest.mark.timeout(90)]


@pytest.fixture
def place(place_of: Callable[[str, str], Place]) -> Place:
    """One file, and TCP between its processes."""
    return place_of("file", "tcp")


async def test_mail_outlives_the_process_that_was_killed_while_it_handled_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVERGE_IDENTITY_DIR", str(tmp_path / "keys"))
    fleet = place.fleet(tmp_path)
    try:
        first = fleet.start("--transport", place.transport, agents=2)
        monkeypatch.delenv("CONVERGE_IDENTITY_DIR")
        async with place.node() as node:
            address, other = await agents_of(node, 2)
            for number in range(3):
                await node.send(address, {"do": "note", "number": number}, mailbox=True, ack="handled", timeout=30)
            await node.send(address, {"do": "hold"}, mailbox=True)
            for number in range(3, 6):
                await node.send(address, {"do": "note", "number": number}, mailbox=True)
            await wait_until(lambda: len(holds(fleet.ledger())) == 1, timeout=30, what="a handler holds the message")
            first.send_signal(signal.SIGKILL)
            first.wait()
            await expire_leases(node.store, first.pid)
            await node.send(address, {"do": "note", "number": 6}, mailbox=True)  # while nobody is there
            monkeypatch.setenv("CONVERGE_IDENTITY_DIR", str(tmp_path / "keys"))
            fleet.start("--transport", place.transport, agents=2)
            await wait_until(lambda: len(holds(fleet.ledger())) == 2, timeout=30, what="the message is handled again")
            assert await agents_of(node, 2) == [address, other], "they have their identities again"
            await node.ask(other, {"do": "release"}, timeout=30)
            await node.send(address, {"do": "note", "number": 7}, mailbox=True, ack="handled", timeout=30)
    finally:
        fleet.kill_all()
    noted = [line["number"] for line in fleet.ledger() if line["what"] == "message"]
    assert noted == list(range(8)), "each once, and in the order in which they were stored"


async def agents_of(node: Node, count: int) -> list[str]:
    """Return the ids of so many talkers, once they are known."""
    found: list[str] = []

    async def are_there() -> bool:
        found[:] = [one.id for one in await node.discovery.query(DiscoveryQuery(capabilities=["talk"]))]
        return len(found) == count

    await wait_until(are_there, timeout=90, what=f"{count} talkers are known")
    return found


def holds(ledger: list[dict[str, object]]) -> list[dict[str, object]]:
    """The lines of a handler that holds a message."""
    return [line for line in ledger if line["what"] == "hold"]
