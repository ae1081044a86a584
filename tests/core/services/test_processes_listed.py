"""Listing the processes of a store: in as many calls for a hundred as for two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from converge.builtin.memory import MemoryStore
from converge.codec import encode
from converge.contracts.store import Batch
from converge.model.keys import AGENT, EXPIRY, HELD, LEASE
from converge.services.store.processes import leases, remaining_sec


async def filled(processes: int) -> MemoryStore:
    store = MemoryStore()
    now = await store.time()
    for number in range(processes):
        id_ = number.to_bytes(16)
        record = encode({"pid": number, "host": "h", "unready": ["starting"] if number else None})
        held = [(HELD(id_, b"\0" * 8, task.to_bytes(16)), b"x") for task in range(number % 3)]
        puts = [(LEASE(id_), record), (EXPIRY(id_), str(now + number * 1_000_000).encode()), (AGENT(id_, "a"), b"x")]
        await store.commit([Batch((), [*puts, *held])])
    return store


async def test_many_processes_cost_hardly_more_calls_than_a_few(calls_of: Callable[..., Counter[str]]) -> None:
    few, many = await filled(2), await filled(100)
    of_few, of_many = (calls_of(store, "get", "scan", "count", "time") for store in (few, many))
    found = await leases(many)
    assert [one.pid for one in found] == list(range(99, -1, -1))
    assert [(one.agents, one.held) for one in found] == [(1, number % 3) for number in range(99, -1, -1)]
    assert (found[0].unready, found[-1].unready, found[0].host) == (("starting",), None, "h")
    assert found[0].remaining_sec == pytest.approx(99, abs=1) and not found[-1].is_alive
    await leases(few)
    assert (of_few.total(), of_many.total()) == (4, 10)  # 32 counts fit in one call
    assert (await remaining_sec(few)).keys() == {bytes(16).hex(), (1).to_bytes(16).hex()}
