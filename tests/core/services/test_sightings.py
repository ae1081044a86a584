"""Agents are listed as long as the lease lives under which they were published, and no longer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from converge.builtin.memory import MemoryStore
from converge.contracts.discovery import Sighting
from converge.contracts.store import Batch, Committed
from converge.env import SYSTEM
from converge.model.descriptor import AgentDescriptor, sign_descriptor
from converge.model.identity import Identity
from converge.model.keys import AGENT, EXPIRY
from converge.services.discovery.reader import marker_key, marker_value
from converge.services.discovery.sightings import StoreSightings
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import ended


class Listed:
    """A store with one agent that was published on it, and another process's view."""

    async def begin(self) -> None:
        self.store = MemoryStore()
        self.handle = StoreHandle.of(self.store)
        self.lease = await self.handle.lease()
        who = Identity.generate(SYSTEM.entropy)
        descriptor = AgentDescriptor(id=who.id, public_key=who.public_key.hex(), lease=self.lease.id.hex())
        self.sighting = Sighting(who.id, (), sign_descriptor(who, descriptor, "here"))
        self.own = StoreSightings(self.handle)
        await self.own.publish([self.sighting])
        self.view = StoreSightings(StoreHandle(self.store, SYSTEM, None))

    async def write(self, batch: Batch) -> None:
        (outcome,) = await self.store.commit([batch])
        assert isinstance(outcome, Committed)


@pytest.fixture
async def listed() -> AsyncIterator[Listed]:
    one = Listed()
    await one.begin()
    try:
        assert await one.view.snapshot() == [one.sighting]
        yield one
    finally:
        await one.handle.close()


async def test_the_agents_of_an_ended_lease_are_not_listed(listed: Listed) -> None:
    (entry,) = await listed.store.get([EXPIRY(listed.lease.id)])
    assert entry is not None
    await listed.write(ended(listed.lease.id, entry.revision, 0))
    assert await listed.view.snapshot() == []


async def test_the_agents_of_a_lease_whose_time_has_passed_are_not_listed_though_nobody_has_swept(
    listed: Listed,
) -> None:
    await listed.write(Batch((), [(EXPIRY(listed.lease.id), b"1")]))
    assert await listed.view.snapshot() == []
    assert (await listed.store.get([AGENT(listed.lease.id, listed.sighting.id)]))[0] is not None


async def test_a_descriptor_that_was_copied_under_a_living_lease_lists_no_agent_that_has_stopped(
    listed: Listed,
) -> None:
    (entry,) = await listed.store.get([AGENT(listed.lease.id, listed.sighting.id)])
    assert entry is not None
    other = bytes(16)
    marker = (marker_key(other), marker_value(1, [listed.sighting.id]))
    await listed.write(
        Batch((), [(EXPIRY(other), str(2**60).encode()), (AGENT(other, listed.sighting.id), entry.value), marker])
    )
    await listed.own.withdraw([listed.sighting.id])
    assert await listed.view.snapshot() == []
