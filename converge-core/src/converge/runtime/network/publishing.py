"""What this node publishes of its agents: their signed descriptors, under the lease, again after each change."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress

import anyio
import attrs

from converge.contracts.discovery import Discovery, Sighting
from converge.errors import LeaseEnded, StoreError
from converge.model.descriptor import AgentDescriptor, sign_descriptor
from converge.model.identity import Identity
from converge.runtime.keys.keyring import Keyring
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import parts

SIGNED_TOGETHER = 500
"""Descriptors that are signed and published before others run: some tens of milliseconds."""

Described = Mapping[str, tuple[Identity, AgentDescriptor]]


class Announced:
    """The descriptors of this node and its agents.

    Attributes:
        endpoints: Where this node is dialled; none: it does not listen.
        signed: The signed bytes by agent id, as published last: what a peer is given that asks for them.
        credentials: The signed bytes by agent id, from before the agent starts until the node ends, or the agent does
            alone: they are shown to a peer before the agent speaks to it.
        changes: How often that has changed.
    """

    def __init__(
        self,
        handle: StoreHandle,
        sightings: Discovery,
        node_key: bytes,
        network: str,
        keyring: Keyring,
        endpoints: tuple[str, ...] = (),
    ) -> None:
        self._handle, self._sightings, self._network, self._keyring = handle, sightings, network, keyring
        self._node_key, self.endpoints = node_key.hex(), endpoints
        self._described: dict[str, tuple[Identity, AgentDescriptor]] = {}
        self._lock = anyio.Lock()
        self.signed: dict[str, bytes] = {}
        self.credentials: dict[str, bytes] = {}
        self._prepared: dict[str, tuple[AgentDescriptor, str]] = {}  # what was signed, and its lease, not yet published
        self._left = set[str]()  # ended, and perhaps still listed: nobody waits for long where that cannot be written
        self.changes = 0

    def __contains__(self, agent_id: object) -> bool:
        return agent_id in self._described

    async def prepare(self, described: Described) -> None:
        """Sign these, so that their agents may speak before they are published.

        Raises:
            InvalidValue: A descriptor is longer than anybody accepts.
            StoreError, LeaseEnded, KeyFileRefused: Some were not signed.
        """
        async with self._lock:
            lease = (await self._handle.lease()).id.hex()
            for some in parts(list(described), SIGNED_TOGETHER):
                await self._sign(some, described, lease)
                self._prepared |= {agent_id: (described[agent_id][1], lease) for agent_id in some}

    async def publish(self, described: Described) -> None:
        """Sign and publish these. One call at a time: what is published last must have the highest sequence.

        Raises:
            StoreError, LeaseEnded, KeyFileRefused: Some were not; `again` publishes all.
        """
        self._described |= described  # at once: an agent may end while this waits
        self._left -= described.keys()
        async with self._lock:
            await self._publish(described)

    async def again(self) -> None:
        """Publish under the new lease what was published under the old one.

        Raises:
            StoreError, LeaseEnded, KeyFileRefused: As `publish`.
        """
        async with self._lock:
            await self._publish(dict(self._described))

    async def withdraw(self) -> None:
        """Withdraw all of them."""
        async with self._lock:
            gone, self._described, self.signed = [*self._described, *self._left], {}, {}
            self.changes += 1
            await self._sightings.withdraw(gone)

    async def retire(self, agent_ids: Collection[str]) -> None:
        """Withdraw some alone: they end. Their credentials stay, for what they say until then.

        Raises:
            StoreError, LeaseEnded: They are listed until others are published, or the lease ends.
        """
        self.forget(agent_ids)
        async with self._lock:
            await self._withdraw_left()

    def forget(self, agent_ids: Iterable[str]) -> None:
        """Publish these no more, whatever is under way."""
        for agent_id in agent_ids:
            if self._described.pop(agent_id, None) is not None:
                self._left.add(agent_id)
            self.signed.pop(agent_id, None)
            self._prepared.pop(agent_id, None)
        self.changes += 1

    async def _publish(self, described: Described) -> None:
        lease, ids = (await self._handle.lease()).id.hex(), list(described)
        for some in parts(ids, SIGNED_TOGETHER):
            new = [one for one in some if self._prepared.pop(one, None) != (described[one][1], lease)]
            await self._sign(new, described, lease)
            signed = {agent_id: self.credentials[agent_id] for agent_id in some if agent_id in self._described}
            await self._sightings.publish([Sighting(agent_id, self.endpoints, one) for agent_id, one in signed.items()])
            self.signed |= {agent_id: one for agent_id, one in signed.items() if agent_id in self._described}
            self.changes += 1
        with suppress(StoreError, LeaseEnded):
            await self._withdraw_left()

    async def _withdraw_left(self) -> None:
        if gone := list(self._left):
            await self._sightings.withdraw(gone)
            self._left.difference_update(gone)

    async def _sign(self, agent_ids: Sequence[str], described: Described, lease: str) -> None:
        if not agent_ids:
            return
        now = await self._handle.now()
        for agent_id, sequence in zip(agent_ids, await self._keyring.sequences(agent_ids, now), strict=True):
            identity, descriptor = described[agent_id]
            full = attrs.evolve(
                descriptor,
                node_key=self._node_key,
                endpoints=self.endpoints,
                lease=lease,
                sequence=sequence,
                succession=identity.succession,
                issued_at=now,
            )
            self.credentials[agent_id] = sign_descriptor(identity, full, self._network)
