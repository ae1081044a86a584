"""Pages: each entry under a prefix once, however the pages fall, and nothing to close where a loop ends early."""

from __future__ import annotations

import anyio
import attrs
import pytest
from anyio.lowlevel import checkpoint

from converge import Task, TaskManager
from converge.contracts.store import ABSENT, LIMITS, Batch, Entry, Range, Store
from converge.errors import StoreBroken, StoreUnavailable
from converge.model.keys import MEMBER
from converge.services.store.pages import Pages, parts, read_all


async def members(store: Store, count: int) -> list[str]:
    names = [f"agent{at:02}" for at in range(count)]
    await store.commit([Batch([(MEMBER("p", name), ABSENT)], [(MEMBER("p", name), b'""')]) for name in names])
    return names


def names_of(page: list[Entry] | tuple[Entry, ...]) -> list[str]:
    return [entry.key[2] for entry in page]


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
async def test_each_entry_is_in_one_page(store: Store, count: int) -> None:
    names = await members(store, count)
    pages = [names_of(list(page)) async for page in Pages(store, MEMBER("p"), size=3)]
    assert [name for page in pages for name in page] == names
    assert all(pages)
    assert names_of(await read_all(store, MEMBER("p"))) == names


@pytest.mark.parametrize("are_alike", [True, False], ids=["many pages", "many places"])
async def test_others_run_while_much_is_read(store: Store, monkeypatch: pytest.MonkeyPatch, are_alike: bool) -> None:
    """The embedded stores answer at once, so that nobody else had a turn: not a heartbeat, and no Ctrl-C."""
    monkeypatch.setattr("converge.services.tasks.listing.SHOWN_TOGETHER", 3)
    tasks, turns = TaskManager(store), 0
    await tasks.submit_many([Task(pool_id="docs", topic="" if are_alike else f"topic{at}") for at in range(30)])

    async def run_beside() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        group.start_soon(run_beside)
        await checkpoint()
        before = turns
        assert len(await tasks.list()) == 30
        assert turns - before >= 9
        group.cancel_scope.cancel()


async def test_nobody_has_a_turn_before_the_first_page(store: Store) -> None:
    """Most lists have one page: who reads it is not made to wait, wherever it begins."""
    await members(store, 5)
    has_run = anyio.Event()

    async def run_beside() -> None:
        has_run.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run_beside)
        async for _ in Pages(store, MEMBER("p"), after=("agent02",)):
            break
        assert not has_run.is_set()


async def test_the_pages_begin_after_a_rest(store: Store) -> None:
    names = await members(store, 5)
    assert [names_of(list(page)) async for page in Pages(store, MEMBER("p"), after=("agent02",))] == [names[3:]]


async def test_a_page_that_does_not_go_on_is_a_fault_of_the_store(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await members(store, 7)
    scan = store.scan

    async def from_the_first(ranges: list[Range]) -> object:
        return await scan([one._replace(after=None) for one in ranges])

    monkeypatch.setattr(store, "scan", from_the_first)
    with pytest.raises(StoreBroken, match="a reader never comes to an end; that breaks clause S-2"):
        async for _ in Pages(store, MEMBER("p"), size=3):
            pass
    monkeypatch.setattr("converge.contracts.store.LIMITS", attrs.evolve(LIMITS, keys=3))
    with pytest.raises(StoreBroken):
        await Store.count(store, [MEMBER("p")])


async def test_a_page_whose_scan_failed_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = await members(store, 5)
    pages = Pages(store, MEMBER("p"), size=3)
    first = await anext(pages)

    async def refuse(ranges: list[Range]) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(store, "scan", refuse)
        with pytest.raises(StoreUnavailable):
            await anext(pages)
    assert names_of([*first, *await anext(pages)]) == names
    assert pages.is_last


def test_parts_hold_all_items_in_order() -> None:
    assert [list(part) for part in parts(range(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(parts([], 3)) == []


async def test_two_who_read_the_same_pages_at_once_take_neither_for_a_page_that_never_ends(store: Store) -> None:
    await members(store, 6)

    class Slow:
        """Answers when both have asked."""

        asked, both = 0, anyio.Event()

        async def scan(self, ranges: list[Range]) -> object:
            found = await store.scan(ranges)
            self.asked += 1
            if self.asked == 2:
                self.both.set()
            await self.both.wait()
            return found

    pages = Pages(Slow(), MEMBER("p"), size=3)  # type: ignore[arg-type]  # nothing else is asked of it
    read: list[list[str]] = []

    async def read_one() -> None:
        read.append(names_of(tuple(await pages.read())))

    async with anyio.create_task_group() as group:
        group.start_soon(read_one)
        group.start_soon(read_one)
    assert read == [["agent00", "agent01", "agent02"]] * 2
