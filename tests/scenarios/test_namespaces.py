"""Two processes in two network namespaces, and a cut between them: messages end in typed errors and tasks go on, and
when the cut is mended messages pass again. Run with `FULL_TESTS=1`, by root, where `ip` is there.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from converge import DiscoveryQuery, Node, Task
from converge.testing._transport.certificates import Authority
from converge.testing.fixtures import wait_until
from converge.testing.place import Place

COUNT = 200

needs_full = pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its length")
pytestmark = [needs_full, pytest.mark.slow, pytest.mark.timeout(240)]


class Wire:
    """Two namespaces with a cable between them."""

    def __init__(self) -> None:
        name = secrets.token_hex(3)
        self.names = f"cva{name}", f"cvb{name}"
        self.addresses = "10.213.77.1", "10.213.77.2"
        for one in self.names:
            _ip("netns", "add", one)
        near, far = self.names
        _ip("-n", near, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", far)
        for one, address in zip(self.names, self.addresses, strict=True):
            _ip("-n", one, "address", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                _ip("-n", one, "link", "set", device, "up")

    def pull(self) -> None:
        """Pull the cable out."""
        _ip("-n", self.names[0], "link", "set", "cable", "down")

    def plug(self) -> None:
        """Put it in again."""
        _ip("-n", self.names[0], "link", "set", "cable", "up")

    def remove(self) -> None:
        """Remove the namespaces."""
        for one in self.names:
            subprocess.run(["ip", "netns", "delete", one], check=False, capture_output=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """The namespaces; where they cannot be made, the test is not run, which the closing lines say."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and `ip`, for network namespaces")
    try:
        one = Wire()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    try:
        yield one
    finally:
        one.remove()


@pytest.fixture(params=["tcp", "tls"])
def place(request: pytest.FixtureRequest, wire: Wire, tmp_path: Path) -> Place:
    """A file that both see, since namespaces part networks only."""
    keys = Authority(tmp_path, "house", wire.addresses).issue("node") if request.param == "tls" else {}
    return Place(
        store=f"file:{tmp_path / 'state.db'}",
        plugins=("tcp",),
        transport=f"{request.param}://",
        network="converge",
        pool="near",
        agent="crossing_agents:Crosser",
        agents_folder=Path(__file__).parent,
        options={"tcp": keys} if keys else {},
    )


async def crossed(node: Node, pool: str, to: str, timeout: float, count: int) -> dict[str, int]:
    """What came of messages from an agent of the pool to another."""
    task = Task(pool_id=pool, inputs={"to": to, "count": count, "timeout": timeout})
    ended = await node.tasks.result(await node.tasks.submit(task), timeout=120)
    return dict(ended.result)


async def test_a_cut_between_two_hosts_ends_messages_in_typed_errors_and_its_end_lets_them_pass(
    place: Place, wire: Wire, tmp_path: Path
) -> None:
    for pool in ("near", "far"):
        (tmp_path / pool).mkdir()
    fleets = [attrs.evolve(place, pool=pool).fleet(tmp_path / pool) for pool in ("near", "far")]
    try:
        for fleet, name, address in zip(fleets, wire.names, wire.addresses, strict=True):
            flags = ("--transport", f"{place.transport}{address}:0")
            process = fleet.start(*flags, agents=1, within=("ip", "netns", "exec", name))
            await fleet.until_running(process)
        async with Node(store=place.store, poll_sec=0.3, grace_sec=0) as node:
            found = {
                one.pools[0]: one.id
                for one in await node.discovery.query(DiscoveryQuery(capabilities=["cross"]), refresh_from_store=True)
            }
            assert await crossed(node, "near", found["far"], 20, COUNT) == {"answer": COUNT}
            assert await crossed(node, "far", found["near"], 20, COUNT) == {"answer": COUNT}
            wire.pull()
            for pool, to in (("near", "far"), ("far", "near")):  # tasks pass, since the store is there
                assert await crossed(node, pool, found[to], 1.0, 2) == {"DeliveryTimeout": 2}
            wire.plug()

            async def passes() -> bool:
                return await crossed(node, "near", found["far"], 5, 1) == {"answer": 1}

            await wait_until(passes, timeout=90, what="messages pass again")
            assert await crossed(node, "far", found["near"], 20, COUNT) == {"answer": COUNT}
    finally:
        for fleet in fleets:
            fleet.kill_all()
