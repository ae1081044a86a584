"""A message to a topic crosses the wire once for all agents of a process, and is decoded once there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import listening_agents
import preloaded
import pytest
from listening_agents import Listener

from converge import Capability, DiscoveryQuery, Node
from converge.testing.fixtures import wait_until
from converge.testing.proxy import byte_proxy
from converge.testing.servers import free_port

CHILD = Path(listening_agents.__file__)
IS_FULL = os.environ.get("FULL_TESTS") == "1"
EACH = 5_000 if IS_FULL else 100
"""Agents of each of the two processes."""

SENDS = 5
LONGEST_SEC = 1.0
"""From the send until all agents have handled it, at best: the machine may be busy with something else at times."""

PAYLOAD = {"text": "x" * 20_000}
WIRE_BYTES = 2_048
"""Beside the payload at most: its header, the record's, a receipt, and what the two nodes say to each other."""

pytestmark = [pytest.mark.timeout(240 if IS_FULL else 60)]


@contextmanager
def listening(url: str, port: int, advertise: str) -> Iterator[None]:
    """Run the other process."""
    command = [sys.executable, str(CHILD), url, str(port), advertise, str(EACH)]
    with preloaded.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            yield
        finally:
            child.communicate(timeout=60)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_message_to_a_topic_crosses_the_wire_once_and_is_decoded_once_by_each_process(tmp_path: Path) -> None:
    url, port = f"file:{tmp_path / 'state.db'}", free_port()
    async with byte_proxy(f"tcp://127.0.0.1:{port}") as proxy:
        with listening(url, port, proxy.address.removeprefix("tcp://")):
            async with Node(store=url, plugins=["tcp"], transport="tcp://127.0.0.1:0") as node:
                await node.spawn(Listener, count=EACH)

                async def are_known() -> bool:
                    return len(await node.discovery.query(DiscoveryQuery(topics=("news",)))) == 2 * EACH

                await wait_until(are_known, timeout=60, what="all agents are known")
                assert await node.ask(Capability("tell"), None) == [0, 0]
                took: list[float] = []
                for number in range(1, SENDS + 1):
                    before, began = len(proxy.seen_up), anyio.current_time()
                    outcomes = await node.publish("news", PAYLOAD)
                    assert [(one.accepted, one.refused, one.error) for one in outcomes] == [(EACH, 0, "")] * 2
                    assert len(PAYLOAD["text"]) < len(proxy.seen_up) - before < len(PAYLOAD["text"]) + WIRE_BYTES
                    await wait_until(lambda: Listener.heard == number * EACH, timeout=30, what="all here have it")  # noqa: B023  # bound now
                    while await node.ask(Capability("tell"), None) != [number * EACH, number]:
                        assert anyio.current_time() - began < 30, "some agents there have not"
                    took.append(anyio.current_time() - began)
                assert len(Listener.objects) == SENDS
    assert not IS_FULL or min(took) < LONGEST_SEC, took
