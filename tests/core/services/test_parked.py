"""What tasks cost that wait: the idle rounds of a process make as many calls to the store with few as with many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from converge import MemoryStore, Pool
from converge.model.keys import HELD, LATER
from converge.testing._task.base import POOL, another
from converge.testing._task.durable import begun

CALLS = ("get", "scan", "count", "turn", "commit")


def counted(name: str, calls: list[str]) -> Callable[..., Any]:
    """The method of this name, which notes its calls."""
    method: Callable[..., Any] = getattr(MemoryStore, name)

    def call(*args: Any, **more: Any) -> Any:
        calls.append(name)
        return method(*args, **more)

    return call


async def calls_of_an_idle_round(parked: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls to the store of a process that sweeps and claims where so many tasks wait."""
    store, calls = MemoryStore(), list[str]()
    async with another(store) as worker:
        await worker.pools.create_pool(Pool(id=POOL))
        for _ in range(parked):
            work = await begun(worker)
            assert await work.parks(work.attempt.wait_for(("go",), 3_600.0))
        assert await store.count([LATER(), HELD()]) == [parked, 0]
    async with another(store) as idle:
        assert await idle.claim() == []  # its first round begins a lease
        for name in CALLS:
            monkeypatch.setattr(MemoryStore, name, counted(name, calls))
        await idle.sweep_all()
        assert await idle.claim() == []
        monkeypatch.undo()
    return calls


async def test_idle_rounds_make_as_many_calls_however_many_tasks_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    few, many = [await calls_of_an_idle_round(count, monkeypatch) for count in (2, 200)]
    assert few and sorted(few) == sorted(many)
