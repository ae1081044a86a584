"""The one directory of verified descriptors; discovery, registry and routing are views of it."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Collection, Sequence

from converge.contracts.discovery import Sighting
from converge.errors import BadSignature, InvalidKey, SchemaTooNew, TornRecord
from converge.machines.match import matches
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery, open_descriptor
from converge.services.discovery.index import Postings

log = logging.getLogger("converge.directory")

GONE = 100_000
"""Agents that are gone whose highest sequence is remembered, those that left last. An older descriptor of one that left
before could come back only under its own lease, and a lease that has ended never lives again."""

REFUSALS = 1_000
"""Descriptors that do not verify of which it is known why: whoever writes to the store could list any number."""

_NEVER = (0, "")

FEW = 8
"""Where less than this part is wanted, the first are picked out; else all are sorted."""


class Directory:
    """Verified descriptors by agent id, indexed by topic, capability and pool. An agent's highest sequence wins.

    Attributes:
        network: Descriptors of another one are refused.
        refused: Descriptors that were refused, so far.
        refusals: Why, by the id that they stood under; the last `REFUSALS`, until one verifies or is gone.
        listeners: Called with each descriptor that was taken in.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self._signed: dict[str, bytes] = {}
        self._descriptors: dict[str, AgentDescriptor] = {}
        self._postings = Postings()
        self._gone: dict[str, tuple[int, str]] = {}  # their highest sequence, and the key of their node
        self._at_node: dict[str, set[str]] = {}  # the agents by the key of their node
        self.refused = 0
        self.refusals: dict[str, str] = {}
        self.listeners: list[Callable[[AgentDescriptor], None]] = []

    def __len__(self) -> int:
        return len(self._descriptors)

    def get(self, agent_id: str) -> AgentDescriptor | None:
        """Return the agent's descriptor, if it is known."""
        return self._descriptors.get(agent_id)

    def signed(self, agent_id: str) -> bytes:
        """Return the signed bytes of the agent's descriptor; empty if it is not known."""
        return self._signed.get(agent_id, b"")

    def replace(self, sightings: Collection[Sighting]) -> None:
        """Replace the contents by what was sighted: verify what is new, drop what is gone."""
        seen = {sighting.id for sighting in sightings}
        for sighting in sightings:
            self.see(sighting)
        for agent_id in [known for known in self._descriptors if known not in seen]:
            self.drop(agent_id)

    def see(self, sighting: Sighting) -> bool:
        """Process one sighting; return whether it had to be verified."""
        if not sighting.descriptor or self._signed.get(sighting.id) == sighting.descriptor:
            return False
        self.offer(sighting.id, sighting.descriptor)
        return True

    def offer(self, agent_id: str, signed: bytes) -> bool:
        """Verify a descriptor and add it, unless a higher sequence is known; return whether it was added."""
        try:
            descriptor = open_descriptor(signed, self.network)
        except (BadSignature, InvalidKey, TornRecord, SchemaTooNew) as error:
            return self._refuse(agent_id, str(error))
        if descriptor.id != agent_id:
            return self._refuse(agent_id, "it is another agent's")
        return self.put(descriptor, signed)

    def refuse(self, why: str) -> None:
        """Count a descriptor that was refused, and log why."""
        self.refused += 1
        log.warning("%s", why)

    def _refuse(self, agent_id: str, why: str) -> bool:
        self.refuse(f"the descriptor of {agent_id:.16} was refused: {why}")
        self.refusals[agent_id] = why
        if len(self.refusals) > REFUSALS:
            del self.refusals[next(iter(self.refusals))]
        return False

    def put(self, descriptor: AgentDescriptor, signed: bytes) -> bool:
        """Add a verified descriptor, unless a higher sequence is known; return whether it was added."""
        agent_id = descriptor.id
        if descriptor.sequence < self.highest(agent_id):
            return self._refuse(agent_id, "its sequence is lower than one that was seen")
        if agent_id in self._descriptors:
            self._postings.remove(self._descriptors[agent_id])
            self._leave_node(self._descriptors[agent_id])
        self._gone.pop(agent_id, None)
        self.refusals.pop(agent_id, None)
        self._at_node.setdefault(descriptor.node_key, set()).add(agent_id)
        self._signed[agent_id] = signed
        self._descriptors[agent_id] = descriptor
        self._postings.add(descriptor)
        for listener in self.listeners:
            listener(descriptor)
        return True

    def drop(self, agent_id: str) -> None:
        """Forget the agent's descriptor; its highest sequence is remembered."""
        self.refusals.pop(agent_id, None)
        descriptor = self._descriptors.pop(agent_id, None)
        if descriptor is None:
            return
        del self._signed[agent_id]
        self._postings.remove(descriptor)
        self._leave_node(descriptor)
        self._gone[agent_id] = descriptor.sequence, descriptor.node_key
        if len(self._gone) > GONE:
            del self._gone[next(iter(self._gone))]

    def query(
        self, query: DiscoveryQuery, candidates: Sequence[AgentDescriptor] | None = None
    ) -> list[AgentDescriptor]:
        """Return the matching descriptors by id; of the candidates, if there are any, else of all that are known."""
        found = self._postings.find(query) if candidates is None else [one for one in candidates if _fits(query, one)]
        if query.limit is not None and query.limit * FEW < len(found):
            return heapq.nsmallest(query.limit, found, key=_id)
        found.sort(key=_id)
        return found if query.limit is None else found[: query.limit]

    def highest(self, agent_id: str) -> int:
        """Return the highest sequence that was listed of an agent, also of one that is gone; 0: none was."""
        known = self._descriptors.get(agent_id)
        return known.sequence if known is not None else self._gone.get(agent_id, _NEVER)[0]

    def has_listed(self, agent_id: str) -> bool:
        """Return whether the agent is listed, or was."""
        return agent_id in self._descriptors or agent_id in self._gone

    def was_at(self, agent_id: str) -> bytes:
        """Return the key of the node of an agent that is listed no longer; empty: it never was."""
        return bytes.fromhex(self._gone.get(agent_id, _NEVER)[1])

    def runs_at(self, node_key: bytes) -> bool:
        """Return whether any agent that is listed names the node."""
        return node_key.hex() in self._at_node

    def endpoints_at(self, node_key: bytes) -> Sequence[str]:
        """Return where the agents of a node say that it is, each endpoint once."""
        agents = self._at_node.get(node_key.hex(), ())
        return list(dict.fromkeys(url for agent_id in agents for url in self._descriptors[agent_id].endpoints))

    def _leave_node(self, descriptor: AgentDescriptor) -> None:
        agents = self._at_node[descriptor.node_key]
        agents.discard(descriptor.id)
        if not agents:
            del self._at_node[descriptor.node_key]


def _id(one: AgentDescriptor) -> str:
    return one.id


def _fits(query: DiscoveryQuery, one: AgentDescriptor) -> bool:
    has = (set(one.topics), set(one.capabilities), set(one.pools))
    return matches(topics=query.topics, capabilities=query.capabilities, pool_id=query.pool_id, has=has)
