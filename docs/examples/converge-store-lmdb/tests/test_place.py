"""What is special to the LMDB store: its size, its clock after a boot, the longest keys."""

from pathlib import Path

import pytest

from converge.contracts.store import Batch, Durability
from converge.errors import StoreFull, StoreRefused
from converge.model.keys import DONE, POOL
from converge_store_lmdb import LmdbOptions, LmdbStore
from converge_store_lmdb.place import CLOCK, PLACES, U64

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """Return the one event loop of these tests."""
    return "asyncio"


async def test_a_file_that_is_full_refuses_a_commit_whole_and_takes_deletes(tmp_path: Path) -> None:
    async with LmdbStore.open(f"lmdb:{tmp_path}", LmdbOptions(size_mb=4, sync=False)) as store:
        await store.commit([Batch(puts=[(POOL("first"), b"{}")])])
        with pytest.raises(StoreFull, match="size_mb"):
            for number in range(100):
                await store.commit([Batch(puts=[(POOL("last"), b"1"), (POOL(f"p{number}"), bytes(1_000_000))])])
        (last,) = await store.get([POOL("last")])
        assert last is not None
        (again,) = await store.commit([Batch(deletes=[POOL("p0")], checks=[(POOL("last"), last.revision)])])
        assert again.revision == last.revision + 1, "a commit that was refused took a revision"


async def test_the_longest_key_of_all_families_fits(tmp_path: Path) -> None:
    key = DONE("p" * 200, "s" * 200, 2**63 - 1, b"\xff" * 16)
    async with LmdbStore.open(f"lmdb:{tmp_path}", LmdbOptions(sync=False)) as store:
        assert store.durability is Durability.D1
        await store.commit([Batch(puts=[(key, b"{}")])])
        (entry,) = await store.get([key])
        assert entry is not None and entry.key == key


async def test_after_a_boot_the_clock_does_not_begin_before_what_the_file_has_seen(tmp_path: Path) -> None:
    options = LmdbOptions(sync=False)
    async with LmdbStore.open(f"lmdb:{tmp_path}", options) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"{}")])])
        before = await store.time()
    ahead = before + 3_600_000_000  # the wall clock was an hour ahead before the boot
    with PLACES.opened(str(tmp_path), options) as place:
        place.write(lambda txn: txn.put(CLOCK, U64.pack(2**63) + U64.pack(ahead) + b"another boot"))
    async with LmdbStore.open(f"lmdb:{tmp_path}", options) as store:
        assert await store.time() >= ahead


async def test_a_network_that_stored_nothing_is_refused_to_who_only_looks(tmp_path: Path) -> None:
    async with LmdbStore.open(f"lmdb:{tmp_path}", LmdbOptions(sync=False)) as store:
        await store.commit([Batch(puts=[(POOL("p"), b"{}")])])
    with pytest.raises(StoreRefused, match="other"):
        async with LmdbStore.open(f"lmdb:{tmp_path}", LmdbOptions(network="other", must_exist=True)):
            pass
