"""Wake-ups beside a file: who is told, however long the path, whatever the dead have left."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncGenerator, Collection
from pathlib import Path
from typing import cast

import anyio
import anyio.lowlevel
import pytest

from converge.builtin.file.options import FileOptions
from converge.builtin.file.store import FileStore
from converge.builtin.file.wake import WakeUps
from converge.contracts.store import Batch
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until

SELDOM = FileOptions(poll_sec=60.0)
"""A watch that looks by itself once a minute: who is told sooner was told by a wake-up."""

PUT = [Batch(puts=[(POOL("docs"), b"{}")])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


async def watching(store: FileStore, channels: Collection[str] = ("lane.x",)) -> AsyncGenerator[None, None]:
    """A watch that is in force."""
    watch = cast("AsyncGenerator[None, None]", store.watch(channels))
    await anext(watch)
    return watch


def sockets(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(f"{path}.wake") if name.endswith(".sock"))


def folders(path: Path) -> list[str]:
    return sorted(name for name in os.listdir(f"{path}.wake") if not name.endswith(".sock"))


def die(path: Path, channel: str) -> None:
    """Leave behind what a watcher leaves that was killed."""
    wake_ups = WakeUps(str(path))
    wake_ups.open()
    listener = wake_ups.listen([channel])
    listener.socket.close()
    wake_ups.close()


async def test_a_wake_tells_one_of_several_watchers(path: Path) -> None:
    told: list[int] = []

    async def wait(number: int, watch: AsyncGenerator[None, None]) -> None:
        async for _ in watch:
            told.append(number)

    async with (
        FileStore.open(f"file:{path}", SELDOM) as store,
        store.reopen() as other,
        anyio.create_task_group() as tasks,
    ):
        watches = [await watching(cast(FileStore, handle)) for handle in (store, other, store)]
        for number, watch in enumerate(watches):
            tasks.start_soon(wait, number, watch)
        for count in range(1, 20):
            await store.commit(PUT, wake=["lane.x"])
            await wait_until(lambda count=count: len(told) >= count, what="one watcher is told")  # type: ignore[misc]  # a bound count
            assert len(told) == count
        tasks.cancel_scope.cancel()
    for watch in watches:
        await watch.aclose()
    assert len(set(told)) > 1, "always the same one"


async def test_a_wake_of_one_channel_tells_nobody_of_another(path: Path) -> None:
    async with FileStore.open(f"file:{path}", SELDOM) as store:
        watch = await watching(store, ["lane.x", "lane.y"])
        await store.commit(PUT, wake=["lane.z"])
        with anyio.move_on_after(0.1) as scope:
            await anext(watch)
        assert scope.cancelled_caught
        await watch.aclose()


async def test_a_watcher_is_told_though_dead_ones_are_beside_it(path: Path) -> None:
    async with FileStore.open(f"file:{path}", SELDOM) as store:
        watch = await watching(store)
        for _ in range(10):
            die(path, "lane.x")
        for _ in range(3):
            await store.commit(PUT, wake=["lane.x"])
            with anyio.fail_after(20):
                await anext(watch)
        assert len(sockets(path)) <= 11
        await watch.aclose()
        await store.commit(PUT, wake=["lane.x"])
        assert sockets(path) == [], "what the dead have left is still there, though somebody met it"


async def test_opening_sweeps_out_the_dead_and_leaves_the_living(path: Path) -> None:
    async with FileStore.open(f"file:{path}", SELDOM) as store:
        watch = await watching(store, ["lane.x", "lane.y"])
        living, watched = sockets(path), folders(path)
        for number in range(5):
            die(path, f"notice.{number}")
        assert len(sockets(path)) > 1
        async with FileStore.open(f"file:{path}"):
            assert (sockets(path), folders(path)) == (living, watched)
        await store.commit(PUT, wake=["lane.y"])
        with anyio.fail_after(20):
            await anext(watch)
        await watch.aclose()
        assert (sockets(path), folders(path)) == ([], [])


async def test_a_path_too_long_for_a_sockets_address_serves(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 120) / ("b" * 120)
    os.makedirs(folder)
    async with FileStore.open(f"file:{folder / 'state.db'}", SELDOM) as store:
        watch = await watching(store)
        await store.commit(PUT, wake=["lane.x"])
        with anyio.fail_after(20):
            await anext(watch)
        await watch.aclose()


async def test_a_watch_that_ends_before_it_looks_passes_its_wake_on(path: Path) -> None:
    async with FileStore.open(f"file:{path}", SELDOM) as store:
        first = await watching(store)
        await store.commit(PUT, wake=["lane.x"])
        second = await watching(store)
        await first.aclose()
        with anyio.fail_after(20):
            await anext(second)
        await second.aclose()


async def test_a_lost_wake_is_made_up_for_by_looking(path: Path) -> None:
    async with FileStore.open(f"file:{path}", FileOptions(poll_sec=0.05)) as store:
        watch = await watching(store)
        await store.commit(PUT)
        with anyio.fail_after(20):
            await anext(watch)
        with anyio.move_on_after(0.3) as scope:
            await anext(watch)
        assert scope.cancelled_caught, "told, though nothing has changed"
        await watch.aclose()


async def test_a_watcher_whose_queue_is_full_costs_the_teller_nothing(path: Path) -> None:
    async with FileStore.open(f"file:{path}", SELDOM) as store:
        watch = await watching(store)
        with anyio.fail_after(20):
            for _ in range(2_000):
                await store.commit([], wake=["lane.x"])
        with anyio.fail_after(20):
            await anext(watch)
        await watch.aclose()


def test_a_stranger_in_the_folder_harms_nobody(path: Path) -> None:
    wake_ups = WakeUps(str(path))
    wake_ups.open()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
        stranger.bind(f"{path}.wake/stream.sock")
        stranger.listen()
        Path(f"{path}.wake/notes").write_text("not a folder")
        wake_ups.close()
        wake_ups.open()
        wake_ups.tell(["lane.x"])
        assert sockets(path) == ["stream.sock"]
    wake_ups.close()
