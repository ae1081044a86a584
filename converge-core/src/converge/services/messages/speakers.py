"""Who may speak over which link: agents whose signed descriptor the peer has shown over it, or that are listed as its.

A descriptor that was shown gives the right to speak, and nothing else: it is in no index, in no pool, and none of its
endpoints is dialled. It counts while the link lives, until a higher sequence of the agent is seen anywhere, or its end.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from weakref import WeakKeyDictionary

from converge.env import Env
from converge.errors import BadSignature, InvalidKey, SchemaTooNew, TornRecord
from converge.model.descriptor import SEQUENCE_GREATEST, open_descriptor
from converge.model.identity import node_name
from converge.net.throttle import Throttle
from converge.services.discovery.registry import IdentityRegistry
from converge.services.messages.under_way import Link

log = logging.getLogger("converge.post")

SHOWN_BYTES = 8_388_608
"""Descriptors of agents that one peer may have shown over its link and that are not gone; further ones must be listed.
"""

HIGHEST = 100_000
"""Agents whose highest shown sequence is remembered when their links are gone."""


class Speakers:
    """What the peers of one node have shown."""

    def __init__(self, env: Env, registry: IdentityRegistry) -> None:
        self._registry, self._directory = registry, registry.directory
        self._highest: OrderedDict[str, int] = OrderedDict()
        self._sizes: WeakKeyDictionary[Link, dict[str, int]] = WeakKeyDictionary()
        self.quietly = Throttle(log, env.monotonic)

    def show(self, link: Link, signed: bytes) -> None:
        """Verify a descriptor that a peer shows, and let its agent speak over the link."""
        name = node_name(link.peer)
        if link.speakers_bytes + len(signed) > SHOWN_BYTES:
            self._refused(name, "node %s shows more than %d bytes of descriptors", name, SHOWN_BYTES)
            return
        try:
            descriptor = open_descriptor(signed, self._directory.network)
        except (BadSignature, InvalidKey, TornRecord, SchemaTooNew) as error:
            self._refused(name, "a descriptor that node %s shows was refused: %s", name, error)
            return
        if descriptor.node_key != link.peer.hex():
            self._refused(name, "a descriptor that node %s shows was refused: it names another node", name)
            return
        if descriptor.sequence < self._highest_of(descriptor.id):
            self._refused(name, "a descriptor that node %s shows was refused: a higher one is known", name)
            return
        self._remember(descriptor.id, descriptor.sequence, link)
        sizes = self._sizes.setdefault(link, {})
        link.speakers_bytes += len(signed) - sizes.get(descriptor.id, 0)
        link.speakers[descriptor.id], sizes[descriptor.id] = descriptor.sequence, len(signed)

    def _refused(self, name: str, text: str, *arguments: object) -> None:
        self.quietly.refused("descriptor_shown", name, text, *arguments)

    def gone(self, link: Link, agent_id: str) -> None:
        """Note that an agent has ended, as the node says that speaks for it: nobody speaks as it any more."""
        if self.speaks(agent_id, link):
            self._remember(agent_id, min(self._highest_of(agent_id), SEQUENCE_GREATEST) + 1, None)
            self._directory.drop(agent_id)

    def speaks(self, agent_id: str, link: Link) -> bool:
        """Return whether the peer may speak for the agent: it is the node itself, or the descriptor with the highest
        sequence known names it; and where trust is `listed`, either has been listed.
        """
        if not self._registry.is_listed_or_exempt(agent_id):
            return False
        sequence = link.speakers.get(agent_id)
        if sequence is None or sequence < self._directory.highest(agent_id):
            return self._is_highest(agent_id) and self._registry.is_spoken_for(agent_id, link.peer)
        return True

    def _is_highest(self, agent_id: str) -> bool:
        """Return whether what the directory has of an agent is the latest that is known of it."""
        return self._directory.highest(agent_id) >= self._highest.get(agent_id, 0)

    def _highest_of(self, agent_id: str) -> int:
        return max(self._directory.highest(agent_id), self._highest.get(agent_id, 0))

    def _remember(self, agent_id: str, sequence: int, link: Link | None) -> None:
        """Remember a sequence as the highest; what was shown with a lower one, over other links, ends."""
        if self._highest.pop(agent_id, sequence) != sequence:
            for other, sizes in self._sizes.items():
                if other is not link and other.speakers.get(agent_id, sequence) < sequence:
                    del other.speakers[agent_id]
                    other.speakers_bytes -= sizes.pop(agent_id)
        self._highest[agent_id] = sequence
        if len(self._highest) > HIGHEST:
            self._highest.popitem(last=False)
