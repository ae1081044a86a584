"""How core uses a discovery: D-9."""

from __future__ import annotations

from typing import Any

from converge.contracts.discovery import Sighting
from converge.env import SYSTEM
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, sign_descriptor
from converge.model.identity import Identity
from converge.services.discovery.service import DiscoveryService
from converge.testing._discovery.base import DiscoveryCase, Opening, Process
from converge.testing.clauses import expect_equal

NETWORK = "kit"


class ServiceClauses(DiscoveryCase):
    """A DiscoveryService on it."""

    async def test_d9_a_service_on_it_never_goes_back_to_a_lower_sequence(self, opening: Opening, options: Any) -> None:
        """D-9"""
        who = Identity.generate(SYSTEM.entropy)
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            service = DiscoveryService(store=one.store, network=NETWORK, discovery=one.discovery)
            for sequence, wanted in ((5, 5), (4, 5), (6, 6), (1, 6)):
                await other.discovery.publish([await _described(other, who, sequence)])
                found = await service.query(DiscoveryQuery(topics=["news"]), refresh_from_store=True)
                expect_equal(
                    "D-9",
                    [d.sequence for d in found],
                    [wanted] if self.backend.publishes else [],
                    f"after sequence {sequence} was published",
                )
            await other.discovery.withdraw([who.id])
            expect_equal("D-9", await service.query(DiscoveryQuery(), refresh_from_store=True), [], "it was withdrawn")
            await other.discovery.publish([await _described(other, who, 3)])
            expect_equal(
                "D-9",
                await service.query(DiscoveryQuery(), refresh_from_store=True),
                [],
                "an older one came back after it was withdrawn",
            )

    async def test_d9_a_service_on_it_lists_only_what_verifies(self, opening: Opening, options: Any) -> None:
        """D-9"""
        who, stranger, forged = (Identity.generate(SYSTEM.entropy) for _ in range(3))
        async with self.process(opening, options) as one:
            sound = await _described(one, who, 1)
            unsigned = await _described(one, forged, 1)
            bad = unsigned._replace(descriptor=sound.descriptor[:64] + unsigned.descriptor[64:])
            await one.discovery.publish(
                [sound, Sighting(stranger.id, (), sound.descriptor), bad, Sighting("y", (), b"nonsense")]
            )
            service = DiscoveryService(store=one.store, network=NETWORK, discovery=one.discovery)
            found = [d.id for d in await service.query(DiscoveryQuery(), refresh_from_store=True)]
            expect_equal(
                "D-9",
                found,
                [who.id] if self.backend.publishes else [],
                "one of four descriptors is genuine and at its place",
            )

    async def test_d9_a_service_lists_no_agent_of_a_lease_that_has_ended(self, opening: Opening, options: Any) -> None:
        """D-9, D-6"""
        who = Identity.generate(SYSTEM.entropy)
        async with self.process(opening, options) as one, self.process(opening, options) as other:
            await other.discovery.publish([await _described(other, who, 1)])
            service = DiscoveryService(store=one.store, network=NETWORK, discovery=one.discovery)
            found = [d.id for d in await service.query(DiscoveryQuery(), refresh_from_store=True)]
            expect_equal("D-9", found, [who.id] if self.backend.publishes else [], "while its process lives")
            await self.die(other)
            expect_equal(
                "D-9", await service.query(DiscoveryQuery(), refresh_from_store=True), [], "its process has died"
            )


async def _described(process: Process, who: Identity, sequence: int) -> Sighting:
    lease = await process.handle.lease()
    about = AgentDescriptor(
        id=who.id, public_key=who.public_key.hex(), topics=("news",), lease=lease.id.hex(), sequence=sequence
    )
    return Sighting(who.id, (), sign_descriptor(who, about, NETWORK))
