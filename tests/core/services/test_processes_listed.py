"""Listing the processes of a store: in as many calls for a hundred as for two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from converge.builtin.memory import MemoryStore
from converge.codec import encode
from converge.contracts.store import Batch, Entry, Range
from converge.model.keys import AGENT, EXPIRY, HELD, LEASE, Key
from converge.services.store.processes import leases, remaining_sec


class Counted(MemoryStore):
    """Counts the calls that read."""

    calls = 0

    async def get(self, keys: Sequence[Key]) -> Sequence[Entry | None]:
        self.calls += 1
        return await super().get(keys)

    async def scan(self, ranges: Sequence[Range]) -> Sequence[Sequence[Entry]]:
        self.calls += 1
        return await super().scan(ranges)

    async def count(self, prefixes: Sequence[Any]) -> Sequence[int]:
        self.calls += 1
        return await super().count(prefixes)

    async def time(self) -> int:
        self.calls += 1
        return await super().time()


async def filled(processes: int) -> Counted:
    store = Counted()
    now = await store.time()
    for number in range(processes):
        id_ = number.to_bytes(16)
        record = encode({"pid": number, "host": "h", "unready": ["starting"] if number else None})
        held = [(HELD(id_, b"\0" * 8, task.to_bytes(16)), b"x") for task in range(number % 3)]
        puts = [(LEASE(id_), record), (EXPIRY(id_), str(now + number * 1_000_000).encode()), (AGENT(id_, "a"), b"x")]
        await store.commit([Batch((), [*puts, *held])])
    store.calls = 0
    return store


async def test_many_processes_cost_hardly_more_calls_than_a_few() -> None:
    few, many = await filled(2), await filled(100)
    found = await leases(many)
    assert [one.pid for one in found] == list(range(99, -1, -1))
    assert [(one.agents, one.held) for one in found] == [(1, number % 3) for number in range(99, -1, -1)]
    assert (found[0].unready, found[-1].unready, found[0].host) == (("starting",), None, "h")
    assert found[0].remaining_sec == pytest.approx(99, abs=1) and not found[-1].is_alive
    await leases(few)
    assert (few.calls, many.calls) == (4, 10)  # 32 counts fit in one call
    assert (await remaining_sec(few)).keys() == {bytes(16).hex(), (1).to_bytes(16).hex()}
