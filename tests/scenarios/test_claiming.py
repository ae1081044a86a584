"""What a process that claims ahead, or that hangs, keeps from others: nothing for long."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import anyio
import preloaded
import pytest
from anyio import to_thread

from converge import Agent, Node, Pool, Task, open_store
from converge.contracts.store import Batch, Range, Store
from converge.model.keys import READY
from converge.testing._processes.still import stand_still
from converge.testing.fixtures import wait_until
from converge.testing.fleet import expire_leases

PARTS, RACES = (8, 12_500) if os.environ.get("FULL_TESTS") == "1" else (1, 150)
"""Parts that may run beside each other, and the races of each."""

PLUGINS = {"redis": ["redis"], "postgresql": ["sql"]}
LANE = bytes(16)

pytestmark = [
    pytest.mark.parametrize("anyio_backend", ["asyncio"]),
    pytest.mark.timeout(500 if PARTS > 1 else 90),
]


@pytest.fixture(scope="module", params=["redis", "postgresql"])
def server(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """The URL of a server, and its plugin."""
    url = str(request.getfixturevalue("redis_url" if request.param == "redis" else "postgres_url"))
    return url, PLUGINS[request.param]


@pytest.fixture
def place(server: tuple[str, list[str]]) -> tuple[str, list[str], str]:
    """Return the server with a network of the test's own."""
    return *server, f"t{random.getrandbits(60):x}"


def child(script: str, url: str, plugins: list[str], network: str) -> subprocess.Popen[bytes]:
    """Start a script of this folder."""
    command = [sys.executable, str(Path(__file__).with_name(script)), url, network, *plugins]
    return preloaded.start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class Worker(Agent):
    """Works on anything."""

    concurrency = 20

    async def on_task(self, task: Task) -> str:
        return "the living one"


async def test_what_a_killed_process_held_ahead_is_done_by_another(place: tuple[str, list[str], str]) -> None:
    url, plugins, network = place
    async with Node(store=url, plugins=plugins, network=network, poll_sec=0.5) as node:
        await node.pools.create_pool(Pool(id="docs"))
        with child("claiming_ahead.py", url, plugins, network) as victim:
            assert victim.stdout is not None
            ids = (await to_thread.run_sync(victim.stdout.readline)).decode().split()
            os.kill(victim.pid, signal.SIGKILL)
        assert len(ids) == 8
        await expire_leases(node.store, victim.pid)
        await node.spawn(Worker, pool="docs")
        for id_ in ids:
            assert (await node.tasks.result(id_, timeout=60)).result == "the living one"


async def test_ten_sleepers_that_hang_keep_no_task_for_longer_than_a_poll_interval(
    place: tuple[str, list[str], str],
) -> None:
    url, plugins, network = place
    async with Node(store=url, plugins=plugins, network=network, poll_sec=1.0) as node:
        await node.pools.create_pool(Pool(id="docs"))
        with child("sleeping.py", url, plugins, network) as sleepers:
            try:
                assert sleepers.stdout is not None
                assert await to_thread.run_sync(sleepers.stdout.readline) == b"ready\n"
                stand_still(sleepers.pid)
                await node.spawn(Worker, pool="docs")
                await wait_until(lambda: node.feeds[0].hears, timeout=30)
                for _ in range(3):
                    # A poll interval with its jitter, and what a busy machine needs; the sleepers poll once a minute.
                    with anyio.fail_after(1.25 + 10):
                        id_ = await node.tasks.submit(Task(pool_id="docs"))
                        assert (await node.tasks.result(id_)).result == "the living one"
            finally:
                os.kill(sleepers.pid, signal.SIGKILL)


@pytest.mark.parametrize("part", range(PARTS))
async def test_no_submit_falls_between_a_take_and_the_watch(place: tuple[str, list[str], str], part: int) -> None:
    url, plugins, network = place
    async with (
        open_store(url, plugins=plugins, network=network) as store,
        open_store(url, plugins=plugins, network=network) as other,
    ):
        watch = cast("Any", store.watch(["lane"]))
        submitted = anyio.Event()

        async def submit(number: int) -> None:
            await anyio.sleep(random.uniform(0, 0.002))  # the time that the race is about
            key = READY(LANE, number, number.to_bytes(16, "big"))
            await other.commit([Batch((), [(key, b"")])], wake=["lane"])
            submitted.set()

        async with anyio.create_task_group() as group:
            try:
                await anext(watch)
                for number in range(1, RACES + 1):
                    submitted = anyio.Event()
                    group.start_soon(submit, number)
                    with anyio.fail_after(8):  # sooner than a sleeper looks by itself
                        while not await _is_there(store, number):
                            await anext(watch)
                    await submitted.wait()
                    await store.commit([Batch((), (), [READY(LANE, number, number.to_bytes(16, "big"))])])
            finally:
                await watch.aclose()


async def _is_there(store: Store, number: int) -> bool:
    (page,) = await store.scan([Range(READY(LANE), None, 1)])
    return bool(page) and page[0].key[2] == number
