"""A wake of the memory store reaches its watch, whichever thread is faster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing

from converge.builtin.memory import MemoryStore


async def test_a_watch_that_hears_while_another_thread_still_rings_hears_the_next_wake_too() -> None:
    store = MemoryStore()
    async with aclosing(store.watch(["c"])) as watch:  # type: ignore[type-var]  # every watch is an async generator
        await anext(watch)
        (waiter,) = store._bell._waiters["c"]
        rung = []

        def call(hear: Callable[[], None]) -> None:
            rung.append(hear)
            waiter.is_told = False  # as the watch does in its own thread, which may be faster than the one that rings

        waiter._call = call
        for _ in range(2):
            await store.commit([], wake=["c"])
        assert len(rung) == 2
