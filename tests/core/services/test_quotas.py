"""The share of a node's event loop that strangers have: for each key and each address, and for all of them together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from converge.machines.records import SIGNED
from converge.services.messages.quotas import BURST_SEC, PENALTY_SEC, SLICE, STRANGER_PER_SEC, STRANGERS_PER_SEC, Quotas
from converge.testing.sides import two_sides

KEYS = 256
HEAVY = 10_000


class Clock:
    """Stands still until it is set, and counts how often it is read."""

    now = 0.0
    reads = 0

    def monotonic(self) -> float:
        self.reads += 1
        return self.now


def link(number: int, host: str) -> Any:
    """A link of a key of its own from an address."""
    return SimpleNamespace(peer=number.to_bytes(32, "big"), address=f"{host}:{number}", is_closed=False)


@pytest.mark.parametrize("work", [SLICE, HEAVY])
async def test_many_keys_of_one_address_have_the_share_of_one_and_keep_no_other_address_waiting(work: int) -> None:
    clock, passed = Clock(), list[int]()
    quotas = Quotas(clock)  # type: ignore[arg-type]  # which reads its clock only

    async def spend(number: int) -> None:
        await quotas.spend(link(number, "10.0.0.1"), work, is_stranger=True)
        passed.append(number)

    async with anyio.create_task_group() as group:
        for number in range(KEYS):
            group.start_soon(spend, number)
        with anyio.fail_after(30):
            while clock.reads < 4 * KEYS:  # each has looked at its two shares more than once, but for the few that pass
                await checkpoint()
        burst = 1 + int(STRANGER_PER_SEC * BURST_SEC) // SLICE if work == SLICE else 1
        assert len(passed) <= burst, "the share of one address"
        clock.now += work / STRANGERS_PER_SEC  # as long as the one that went on has used of what all strangers share
        with anyio.fail_after(30):
            await quotas.spend(link(KEYS, "10.0.0.2"), SLICE, is_stranger=True)
            await quotas.spend(link(KEYS + 1, "10.0.0.3"), SLICE, is_stranger=False)
        group.cancel_scope.cancel()


async def test_what_takes_long_waits_for_its_address_before_anything_is_made_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two_sides() as (here, there):
        end = (await there.to(here.identity.public_key, ())).end.end
        quotas, made = there.received._quotas, list[bytes]()
        monkeypatch.setattr(there.received._routes, "is_stranger", lambda peer: True)
        monkeypatch.setattr(there.received, "_on_message", lambda link, body, *_, **__: made.append(body))
        heavy = (SIGNED, b"," * 900_000)
        with anyio.fail_after(30):
            await there.received.on_items(end, [heavy])
        assert len(made) == 1
        quotas._spend(end.address.rpartition(":")[0], int(STRANGER_PER_SEC * PENALTY_SEC))
        with anyio.move_on_after(0.2):  # far less than it has to wait
            await there.received.on_items(end, [heavy])
        assert len(made) == 1
