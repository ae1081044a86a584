"""G10 between processes on one file: who is listed, who no longer, and when."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import preloaded
import pytest

from converge import DiscoveryQuery, Node
from converge.contracts.discovery import Sighting
from converge.services.discovery.sightings import StoreSightings
from converge.services.store.handle import StoreHandle
from converge.services.store.opening import open_store
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until

LEASE_SEC, POLL_SEC = 5.0, 0.1
LONG_SEC = 60.0
"""A lease that does not end within a test: who vanishes was withdrawn."""
LATE_SEC = 20.0
"""What a loaded machine may add."""

CHILD = """
import sys
import anyio
from converge import Agent, Message, Node

class Listed(Agent):
    topics = ("news",)
    async def on_message(self, message: Message) -> None: ...

async def main():
    async with Node(store=sys.argv[1], lease_sec=float(sys.argv[2]), poll_sec=0.1) as node:
        agents = await node.spawn(Listed, count=3)
        print(*(one.id for one in agents), flush=True)
        async for _ in anyio.wrap_file(sys.stdin):
            break

anyio.run(main)
"""


class Child:
    """A process with three agents."""

    def __init__(self, url: str, lease_sec: float) -> None:
        command = [sys.executable, "-c", CHILD, url, str(lease_sec)]
        self.process = preloaded.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.ids = set(self.process.stdout.readline().split())
        assert len(self.ids) == 3

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("stop\n")
        self.process.stdin.flush()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file:{tmp_path}/state.db"


@pytest.fixture
def lease_sec() -> float:
    """The lease of the other process."""
    return LEASE_SEC


@pytest.fixture
def child(url: str, lease_sec: float) -> Iterator[Child]:
    one = Child(url, lease_sec)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.communicate()


async def listed(node: Node, *, refresh: bool = False) -> set[str]:
    return {one.id for one in await node.discovery.query(DiscoveryQuery(topics=["news"]), refresh_from_store=refresh)}


async def until_gone(node: Node, ids: set[str], within_sec: float) -> float:
    began = time.monotonic()

    async def is_gone() -> bool:
        return not ids & await listed(node)

    await wait_until(is_gone, timeout=within_sec, what="that the agents are listed no longer")
    return time.monotonic() - began


@pytest.mark.parametrize("lease_sec", [LONG_SEC])
async def test_the_agents_of_a_stopped_process_vanish_at_once(url: str, child: Child) -> None:
    async with Node(store=url, poll_sec=POLL_SEC, lease_sec=30.0) as node:
        assert await listed(node) == child.ids
        child.stop()
        await until_gone(node, child.ids, POLL_SEC + LATE_SEC)


async def test_the_agents_of_a_killed_process_vanish_within_its_lease_and_a_poll_and_never_come_back(
    url: str, child: Child
) -> None:
    async with Node(store=url, poll_sec=POLL_SEC, lease_sec=30.0) as node:
        assert await listed(node) == child.ids
        child.process.send_signal(signal.SIGKILL)
        await until_gone(node, child.ids, LEASE_SEC + POLL_SEC + LATE_SEC)
        with anyio.move_on_after(0.5):
            while True:
                assert not child.ids & await listed(node, refresh=True)


async def test_the_agents_of_a_process_that_stands_still_for_longer_than_its_lease_vanish_and_come_back_with_it(
    url: str, child: Child
) -> None:
    async with Node(store=url, poll_sec=POLL_SEC, lease_sec=30.0) as node:
        assert await listed(node) == child.ids
        stand_still(child.process.pid)
        try:
            await until_gone(node, child.ids, LEASE_SEC + POLL_SEC + LATE_SEC)
        finally:
            child.process.send_signal(signal.SIGCONT)

        async def are_back() -> bool:
            return await listed(node) == child.ids

        await wait_until(are_back, timeout=LATE_SEC, what="that they are listed under another lease")


async def test_a_new_process_is_seen_within_a_poll_and_the_index_answers_meanwhile(url: str) -> None:
    async with Node(store=url, poll_sec=POLL_SEC) as node:
        assert await listed(node) == set()
        one = await anyio.to_thread.run_sync(Child, url, LONG_SEC)
        try:

            async def is_there() -> bool:
                return await listed(node) == one.ids

            await wait_until(is_there, timeout=POLL_SEC + LATE_SEC, what="that the new agents are listed")
        finally:
            one.process.kill()
            await anyio.to_thread.run_sync(one.process.communicate)


async def test_twenty_processes_that_publish_at_once_are_all_listed_once(url: str) -> None:
    async with Node(store=url, poll_sec=POLL_SEC, lease_sec=30.0) as node, AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(url)) for _ in range(20)]
        async with anyio.create_task_group() as group:
            for number, store in enumerate(stores):
                group.start_soon(StoreSightings(StoreHandle.of(store)).publish, [Sighting(f"agent-{number}", (), b"x")])
        found = await node.network.sightings.snapshot()
        assert sorted(one.id for one in found) == sorted(f"agent-{number}" for number in range(20))
