"""What is special to the etcd store: its clock, its members, servers that allow too little."""

import os
import secrets
import signal
import time
from base64 import b64decode
from functools import partial
from typing import Any

import anyio
import pytest

from converge import Pool, PoolManager, Task, TaskManager, TaskState, open_store
from converge.contracts.store import Batch, Committed, Conflict, Durability, Store, Window
from converge.errors import StoreError, StoreRefused, StoreUnavailable
from converge.model.keys import POOL
from converge.testing.fixtures import wait_until
from converge.testing.servers import free_port
from converge_store_etcd import EtcdOptions, EtcdStore
from converge_store_etcd.client import text

pytestmark = pytest.mark.anyio
HOUR_US = 3_600_000_000
TASKS = 60


@pytest.fixture
def anyio_backend() -> str:
    """Run on one event loop; the kit runs on both."""
    return "asyncio"


@pytest.fixture
def options() -> EtcdOptions:
    """Return options that name a network of its own."""
    return EtcdOptions(network=f"t{secrets.token_hex(6)}")


async def has_passed(store: Store, moment: int) -> bool:
    """Return whether store time is later; a client is behind another by a trip at most."""
    return await store.time() > moment


async def forget_that_somebody_is_there(store: Store) -> None:
    """Do what etcd does when no client has been for `idle_sec`."""
    assert isinstance(store, EtcdStore)
    await store.client.call("kv/deleterange", {"key": text(store.clock._alive)}, writes=True)


async def test_clients_with_wrong_wall_clocks_share_one_clock(
    etcd_url: str, options: EtcdOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EtcdStore.open(etcd_url, options) as one:
        began = await one.time()
        monkeypatch.setattr(time, "time_ns", lambda: (began + HOUR_US) * 1_000)  # of who opens it from now on
        async with EtcdStore.open(etcd_url, options) as other:
            told = [await store.time() for _ in range(5) for store in (one, other)]
            assert told == sorted(told)
            assert told[-1] < began + HOUR_US // 2


async def test_a_clock_that_stood_still_is_set_by_who_finds_nobody_there(
    etcd_url: str, options: EtcdOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EtcdStore.open(etcd_url, options) as store:
        before = await store.time()
        await forget_that_somebody_is_there(store)
    monkeypatch.setattr(time, "time_ns", lambda: (before + HOUR_US) * 1_000)
    async with EtcdStore.open(etcd_url, options) as store:
        assert await store.time() >= before + HOUR_US
        await forget_that_somebody_is_there(store)
    monkeypatch.setattr(time, "time_ns", lambda: before * 1_000)  # a wall clock that is behind sets nothing back
    async with EtcdStore.open(etcd_url, options) as store:
        assert await store.time() >= before + HOUR_US


async def test_a_window_is_compared_with_the_key_and_the_key_is_moved_before(
    etcd_url: str, options: EtcdOptions
) -> None:
    async with EtcdStore.open(etcd_url, options) as one, EtcdStore.open(etcd_url, options) as other:
        now = await one.time()
        await wait_until(partial(has_passed, other, now))
        (late,) = await other.commit([Batch(puts=[(POOL("p"), b"{}")], window=Window(at_most=now))])
        assert late == Conflict((), True)
        (due,) = await other.commit([Batch(puts=[(POOL("p"), b"{}")], window=Window(at_least=now))])
        assert isinstance(due, Committed)
        assert isinstance(other, EtcdStore)
        (kept,) = (await other.client.call("kv/range", {"key": text(other.clock.key)}, writes=False))["kvs"]
        assert now < int(b64decode(kept["value"])) <= await one.time()


async def test_a_member_that_is_away_is_passed_over_and_all_away_is_an_error(
    etcd_url: str, options: EtcdOptions
) -> None:
    away = f"127.0.0.1:{free_port()}"
    async with EtcdStore.open(f"etcd://{away},{etcd_url.removeprefix('etcd://')}", options) as store:
        (done,) = await store.commit([Batch(puts=[(POOL("p"), b"{}")])])
        assert isinstance(done, Committed)
        assert store.durability is Durability.D2, "a server alone"
    with pytest.raises(StoreUnavailable, match=away):
        async with EtcdStore.open(f"etcd://{away}", options):
            pass


async def test_who_only_looks_begins_no_clock(etcd_url: str, options: EtcdOptions) -> None:
    looking = EtcdOptions(network=options.network, must_exist=True)
    for _ in range(2):
        with pytest.raises(StoreRefused, match=options.network):
            async with EtcdStore.open(etcd_url, looking):
                pass


async def test_tasks_are_done_once(etcd_url: str, options: EtcdOptions) -> None:
    """A smoke test of every run; the kit does the rest."""
    async with open_store(etcd_url, plugins=["converge_store_etcd.plugin:"], network=options.network) as store:
        await PoolManager(store).create_pool(Pool(id="docs"))
        tasks = TaskManager(store)
        ids = await tasks.submit_many([Task(pool_id="docs", inputs={"n": number}) for number in range(5)])
        await PoolManager(store).join_pool("agent", "docs")
        claimed = await tasks.claim("agent", pools=["docs"], limit=10)
        assert sorted(task.id for task in claimed) == sorted(ids)
        assert await tasks.claim("agent", pools=["docs"], limit=10) == []
        for task in claimed:
            await tasks.complete(task, {"done": True})
        assert (await tasks.result(ids[0], timeout=30)).state is TaskState.COMPLETED


@pytest.mark.skipif(os.environ.get("FULL_TESTS") != "1", reason="with FULL_TESTS=1 only, for its three servers")
async def test_a_member_that_is_killed_under_load_loses_and_doubles_nothing(
    etcd_cluster: list[Any], options: EtcdOptions
) -> None:
    url = "etcd://" + ",".join(member.removeprefix("etcd://") for member in etcd_cluster)
    written: list[int] = []
    async with EtcdStore.open(url, options) as one, EtcdStore.open(url, options) as other:
        assert one.durability is Durability.D3
        await one.commit([Batch(puts=[(POOL("counter"), b"0")])])

        async def count(store: Store, until: int) -> None:
            """Count on with compare-and-swap, whatever happens, and note what was acknowledged."""
            with anyio.fail_after(90):
                while len(written) < until:
                    try:
                        (entry,) = await store.get([POOL("counter")])
                        assert entry is not None
                        value = int(entry.value) + 1
                        batch = Batch([(POOL("counter"), entry.revision)], [(POOL("counter"), b"%d" % value)])
                        (outcome,) = await store.commit([batch])
                    except StoreError:
                        continue
                    if isinstance(outcome, Committed):
                        written.append(value)

        async with anyio.create_task_group() as group:
            group.start_soon(count, one, 3 * TASKS)
            group.start_soon(count, other, 3 * TASKS)
            await wait_until(lambda: len(written) >= TASKS, timeout=60, what="load")
            os.kill(etcd_cluster[0].pid, signal.SIGKILL)
        (entry,) = await other.get([POOL("counter")])
        assert entry is not None
        assert len(set(written)) == len(written), "two clients have written one number"
        assert int(entry.value) >= max(written), "an acknowledged number is lost"
