"""The one directory of verified descriptors; discovery, registry and routing are views of it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from converge.contracts.discovery import Sighting
from converge.errors import BadSignature, InvalidKey, SchemaTooNew, TornRecord
from converge.machines.match import matches
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, open_descriptor

log = logging.getLogger("converge.directory")


class Directory:
    """Verified descriptors by agent id, indexed by topic, capability and pool. The highest sequence of an agent wins, here as everywhere."""

    def __init__(self, network: str) -> None:
        self._network = network
        self._signed: dict[str, bytes] = {}
        self._descriptors: dict[str, AgentDescriptor] = {}
        self._indexes: dict[tuple[str, str], set[str]] = {}
        self._highest: dict[str, int] = {}
        self.refused = 0

    def __len__(self) -> int:
        return len(self._descriptors)

    def get(self, agent_id: str) -> AgentDescriptor | None:
        """Return the agent's descriptor, if it is known."""
        return self._descriptors.get(agent_id)

    def replace(self, sightings: Collection[Sighting]) -> None:
        """Make the directory what was sighted: verify what is new, drop what is no longer there."""
        seen = {sighting.id for sighting in sightings}
        for sighting in sightings:
            if sighting.descriptor and self._signed.get(sighting.id) != sighting.descriptor:
                self.offer(sighting.id, sighting.descriptor)
        for agent_id in [known for known in self._descriptors if known not in seen]:
            self.drop(agent_id)

    def offer(self, agent_id: str, signed: bytes) -> bool:
        """Verify a descriptor and take it in, unless a higher sequence is known; tells whether it was taken."""
        try:
            descriptor = open_descriptor(signed, self._network)
        except (BadSignature, InvalidKey, TornRecord, SchemaTooNew) as error:
            self.refused += 1
            log.warning("the descriptor of %.16s was refused: %s", agent_id, error)
            return False
        if descriptor.id != agent_id or descriptor.sequence < self._highest.get(agent_id, 0):
            self.refused += 1
            log.warning("the descriptor of %.16s was refused: another agent's, or older than one that was seen", agent_id)
            return False
        self.drop(agent_id)
        self._highest[agent_id] = descriptor.sequence
        self._signed[agent_id] = signed
        self._descriptors[agent_id] = descriptor
        for key in _keys(descriptor):
            self._indexes.setdefault(key, set()).add(agent_id)
        return True

    def drop(self, agent_id: str) -> None:
        """Forget the agent's descriptor; its highest sequence is remembered."""
        descriptor = self._descriptors.pop(agent_id, None)
        self._signed.pop(agent_id, None)
        for key in () if descriptor is None else _keys(descriptor):
            members = self._indexes[key]
            members.discard(agent_id)
            if not members:
                del self._indexes[key]

    def query(self, query: DiscoveryQuery, candidates: Sequence[AgentDescriptor] | None = None) -> list[AgentDescriptor]:
        """Return the matching descriptors by id; of the candidates, if there are any, else of all that are known."""
        if candidates is not None:
            found = [one for one in candidates if _fits(query, one)]
        else:
            found = [self._descriptors[agent_id] for agent_id in self._matching(query)]
        found.sort(key=lambda one: one.id)
        return found if query.limit is None else found[: query.limit]

    def _matching(self, query: DiscoveryQuery) -> Collection[str]:
        """Intersect the smallest sets first: a query costs what its rarest term has."""
        sets = [self._indexes.get(("capability", str(name)), set()) for name in query.capabilities]
        if query.pool_id is not None:
            sets.append(self._indexes.get(("pool", query.pool_id), set()))
        if query.topics:
            sets.append(set().union(*(self._indexes.get(("topic", str(name)), set()) for name in query.topics)))
        if not sets:
            return self._descriptors
        sets.sort(key=len)
        return sets[0].intersection(*sets[1:])


def _keys(descriptor: AgentDescriptor) -> list[tuple[str, str]]:
    return [
        *(("topic", name) for name in descriptor.topics),
        *(("capability", name) for name in descriptor.capabilities),
        *(("pool", name) for name in descriptor.pools),
    ]


def _fits(query: DiscoveryQuery, one: AgentDescriptor) -> bool:
    has = (set(one.topics), set(one.capabilities), set(one.pools))
    return matches(topics=query.topics, capabilities=query.capabilities, pool_id=query.pool_id, has=has)
