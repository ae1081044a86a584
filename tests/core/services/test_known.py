"""What a process knows of a task that it has parked: used by the next attempt, unless another came in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from converge import MemoryStore, Pool
from converge.machines.events import Parked, Released, Resumed
from converge.services.durable import ledger as ledgers
from converge.services.durable.ledger import Known, Ledger
from converge.services.store.reads import Recent
from converge.testing._task.base import POOL, Process, another, let_pass
from converge.testing._task.durable import Working, begun


@pytest.fixture(autouse=True)
def _of_one_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "KNOWN_FROM", 1)


@pytest.fixture
async def one() -> AsyncIterator[Process]:
    async with another(MemoryStore()) as process:
        await process.pools.create_pool(Pool(id=POOL))
        yield process


def kept(process: Process, id_: bytes) -> Known | None:
    """What is kept of the task."""
    known = process.handle.recent.take(id_)
    assert known is None or isinstance(known, Known)
    if known is not None:
        process.handle.recent.put(id_, known, 1)
    return known


async def parks(work: Working) -> None:
    """Park as a worker does."""
    keep, event = work.attempt.ledger.keep, work.attempt.event
    assert event is None
    finish = work.attempt._on_park

    def on_park() -> None:
        assert isinstance(work.attempt.event, Parked)
        keep(work.attempt.event)
        finish()

    work.attempt._on_park = on_park
    assert await work.parks(work.attempt.wait_for(("go",), 3_600.0))


async def goes_on(process: Process, work: Working) -> Working:
    """Signal the task, and begin its next attempt."""
    await process.tasks.signal(work.task.id, "go")
    return Working(process, await process.claim_one())


def value(of: int) -> Any:
    return lambda: of


async def test_the_next_attempt_of_the_process_reads_nothing(one: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    work = await begun(one)
    await work.step("a", value(1))
    await parks(work)
    loads = list[str]()
    load = Ledger._load

    async def counted(self: Ledger) -> None:
        loads.append("load")
        await load(self)

    monkeypatch.setattr(Ledger, "_load", counted)
    work = await goes_on(one, work)
    assert await work.step("a", value(2)) == 1
    assert await work.attempt.wait_for(("go",), 3_600.0) is None
    assert not loads
    await work.ends(Released())
    assert await Working(one, await one.claim_one()).step("a", value(3)) == 1
    assert loads == ["load"]


@pytest.mark.parametrize("end", ["released", "parked", "resumed", "dies"])
async def test_what_another_process_has_recorded_in_between_is_not_run_again(one: Process, end: str) -> None:
    first = await begun(one, max_attempts=5)
    await first.step("a", value(1))
    await parks(first)
    async with another(one.store) as two:
        second = await goes_on(two, first)
        assert await second.step("b", value(2)) == 2
        if end == "released":
            await second.ends(Released())
        elif end == "resumed":  # as the first might have been, so that its end is told by its claim alone
            assert isinstance(first.attempt.event, Parked)
            await second.ends(Resumed(first.attempt.event.puts))
        elif end == "parked":
            assert await second.parks(second.attempt.wait_for(("more",), 3_600.0))
            await one.tasks.signal(first.task.id, "more")
        else:
            await let_pass(one.store, (await two.handle.lease()).id)
            await one.sweep_all()
    assert kept(one, first.attempt.ledger.id) is not None
    third = Working(one, await one.claim_one())
    assert await third.step("b", value(3)) == 2


async def test_a_park_that_was_not_stored_is_not_known(one: Process) -> None:
    first = await begun(one)
    first.attempt._on_park = lambda: first.attempt.ledger.keep(first.attempt.event)  # type: ignore[arg-type]  # it parks
    with anyio.move_on_after(0.05):  # in which the handler's end would come
        await first.attempt.wait_for(("go",), 3_600.0)
    await first.ends(Released())
    assert kept(one, first.attempt.ledger.id) is not None
    second = Working(one, await one.claim_one())
    assert await second.attempt.ledger.recorded("?go") is None


async def test_of_a_write_that_was_cut_off_nobody_knows(one: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    work = await begun(one)
    await work.step("a", value(1))
    written = anyio.Event()

    async def never(*args: Any) -> bool:
        written.set()
        await anyio.sleep_forever()
        return True

    async with anyio.create_task_group() as group:
        with monkeypatch.context() as patch:
            patch.setattr(work.attempt.ledger, "_write", never)
            group.start_soon(work.step, "b", value(2))
            await written.wait()
            group.cancel_scope.cancel()
    await parks(work)
    assert kept(one, work.attempt.ledger.id) is None


async def test_what_is_written_after_the_park_takes_back_what_was_kept(one: Process) -> None:
    work = await begun(one)
    await work.step("a", value(1))
    work.attempt.ledger.keep(Parked(None, 0))  # type: ignore[arg-type]  # of which nothing is read
    assert kept(one, work.attempt.ledger.id) is not None
    await work.step("b", value(2))
    assert kept(one, work.attempt.ledger.id) is None


def test_the_oldest_goes_where_there_is_no_room() -> None:
    recent = Recent[int](10)
    for number in range(4):
        recent.put(b"%d" % number, number, 4)
    assert [recent.take(b"%d" % number) for number in range(4)] == [None, None, 2, 3]
    recent.put(b"a", 1, 10)
    recent.put(b"b", 2, 11)
    assert recent.take(b"a") == 1 and recent.take(b"b") is None
    recent.put(b"a", 1, 10)
    recent.put(b"a", 2, 10)
    recent.clear()
    recent.put(b"b", 2, 10)
    assert recent.take(b"a") is None and recent.take(b"b") == 2
