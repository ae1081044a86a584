"""On every store a node hears its own renewals: one that is well is ready all the time, and one whose wake-ups are lost
is not.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio
import pytest

from converge import Agent, Node, Task
from converge.contracts.store import Store
from converge.runtime.agents.ailments import Code
from converge.testing.fixtures import wait_until
from converge.testing.place import Place

LEASE_SEC = 6.0
RENEWALS = 3
# A busy machine may keep the loop, or the store, from running for a second; nothing else may ail a node.
OF_A_STALL = {Code.LOOP_BLOCKED, Code.RENEWAL_LATE, Code.LEASE_LOST, Code.STORE_AWAY}


class Idle(Agent):
    """Has nothing to do."""

    async def on_task(self, task: Task) -> None:
        """See the class."""


@pytest.fixture(scope="module", params=["file", "redis", "sql"])
def place(request: pytest.FixtureRequest, place_of: Callable[[str, str], Place]) -> Place:
    """A store of each kind."""
    return place_of(request.param, "tcp")


async def test_a_node_that_is_well_is_ready_through_many_renewals(place: Place) -> None:
    async with Node(
        store=place.store, plugins=place.plugins, network=place.network, lease_sec=LEASE_SEC, poll_sec=0.2
    ) as node:
        await node.spawn(Idle, count=3, pool=place.pool)
        with anyio.fail_after(60):
            while (lease := node.handle.lease_opened) is None or lease.renewals < RENEWALS:  # a stall ends a lease
                health = node.health()
                assert {reason.code for reason in health.reasons} <= OF_A_STALL, health.reasons
                await anyio.sleep(0.05)
        await wait_until(lambda: not node.health().reasons, timeout=30)


async def test_a_node_that_no_wake_up_reaches_is_not_ready(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"store": place.store, "plugins": place.plugins, "network": place.network}
    # short: its renewals are waited for
    async with Node(**names, lease_sec=3.0, call_sec=2.9, poll_sec=0.2) as node:  # type: ignore[arg-type]  # several

        async def deaf(self: Store, channels: object) -> object:
            yield None
            await anyio.sleep_forever()

        monkeypatch.setattr(type(node.store), "watch", deaf)
        await node.spawn(Idle, pool=place.pool)
        await wait_until(lambda: Code.WATCH_DEAF in {reason.code for reason in node.health().reasons}, timeout=30)
