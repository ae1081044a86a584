"""IdentityRegistry: the keys of agents, and the pinned ids. A view of the directory's verified descriptors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from enum import StrEnum

from converge.env import SYSTEM
from converge.errors import BadSignature, InvalidKey, InvalidName, InvalidValue, Undeliverable
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.model.identity import agent_id as id_of
from converge.model.identity import is_agent_id, predecessors, verify
from converge.net.throttle import Throttle
from converge.services.discovery.directory import Directory

log = logging.getLogger("converge.registry")

WARNED = 10_000
"""Senders that are remembered as warned about; past that some are warned about again."""

SUCCESSORS = 100_000
"""Keys whose successor is remembered, however many a stranger makes up; those that concern a pin always are."""


class Trust(StrEnum):
    """The policy for senders that verify, but are not pinned here."""

    DROP = "drop"  # its messages are refused
    WARN = "warn"  # they are taken, and the first of each sender is logged
    ALLOW = "allow"
    LISTED = "listed"  # they are taken, if discovery has listed it under a living lease


class IdentityRegistry:
    """Public keys by agent id, of the agents that the directory knows; and the ids that are pinned.

    An id proves its key, so to pin an id is to pin a key. A pin follows rotation: once a verified descriptor shows that
    a pinned key has signed another one as its successor, that one is pinned in its place. The first successor that is
    seen counts; a second one, signed by the same old key, is refused: two holders of one key cannot be told apart.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        trust: str = Trust.ALLOW,
        pins: Iterable[str] = (),
        monotonic: Callable[[], float] = SYSTEM.monotonic,
    ) -> None:
        """`trust`: `drop`, `warn`, `allow` or `listed`. `pins`: ids. `monotonic`: seconds, for the rate of log lines.

        Raises:
            InvalidName: A pin is not an agent's id.
            InvalidValue: There is no such trust.
        """
        self.directory = directory
        if trust not in list(Trust):
            raise InvalidValue("trust", trust, ", ".join(Trust))
        self.trust = Trust(trust)
        self._pins: set[str] = set()
        self._successors: dict[str, str] = {}
        self._warned: set[str] = set()
        self._quietly = Throttle(log, monotonic)  # a stranger may speak for any number of agents
        for one in pins:
            self.pin(one)
        for descriptor in directory.query(DiscoveryQuery()):
            self._saw(descriptor)
        directory.listeners.append(self._saw)

    @property
    def pins(self) -> frozenset[str]:
        """The ids that are pinned now, rotations followed."""
        return frozenset(self._pins)

    def pin(self, agent_id: str) -> None:
        """Trust this agent, and any successor that its key has signed.

        Raises:
            InvalidName: It is not an agent's id.
        """
        if not is_agent_id(agent_id):
            raise InvalidName("pin", agent_id, "an agent's id: cv1 and 52 characters")
        self._pins.add(self.current(agent_id))

    def unpin(self, agent_id: str) -> None:
        """Stop trusting this agent and its successors; a no-op if it is not pinned."""
        self._pins -= {agent_id, self.current(agent_id)}

    def current(self, agent_id: str) -> str:
        """Return the id that has succeeded this one, as far as that was seen; the id itself if none has."""
        seen = {agent_id}
        while (newer := self._successors.get(agent_id)) is not None and newer not in seen:
            seen.add(newer)
            agent_id = newer
        return agent_id

    def admits(self, agent_id: str) -> bool:
        """Return whether a verified sender's messages are accepted, by `trust`; `warn` logs the first of each."""
        if self.trust in (Trust.ALLOW, Trust.LISTED) or agent_id in self._pins:
            return True
        if agent_id not in self._warned:
            if len(self._warned) >= WARNED:
                self._warned.clear()
            self._warned.add(agent_id)
            what = "are refused" if self.trust is Trust.DROP else "are taken all the same"
            text = "messages of agent %s %s: it verifies, but is not pinned here (trust = %s)"
            self._quietly.warning(agent_id, text, agent_id, what, self.trust)
        return self.trust is Trust.WARN

    def is_listed_or_exempt(self, agent_id: str) -> bool:
        """Return whether the agent has been listed, is pinned, or need not be, by `trust`."""
        return self.trust is not Trust.LISTED or self.directory.has_listed(agent_id) or agent_id in self._pins

    def public_key(self, agent_id: str) -> bytes:
        """Return the agent's public key.

        Raises:
            Undeliverable: The agent is not known.
        """
        descriptor = self.directory.get(agent_id)
        if descriptor is None:
            raise Undeliverable(f"agent {agent_id} is not known here; it may have stopped, or was never discovered")
        return bytes.fromhex(descriptor.public_key)

    def verify(self, agent_id: str, signature: bytes, data: bytes) -> bool:
        """Return whether the signature over `data`, which begins with a domain tag, is the agent's.

        Raises:
            Undeliverable: The agent is not known.
        """
        return verify(self.public_key(agent_id), signature, data)

    def is_spoken_for(self, agent_id: str, node_key: bytes) -> bool:
        """Return whether the agent's own descriptor names this node key, so that its channel may speak for it (G12).

        A node speaks for itself: its id is that of the key which the channel has proven.
        """
        descriptor = self.directory.get(agent_id)
        if descriptor is not None:
            return descriptor.node_key == node_key.hex()
        return agent_id == id_of(node_key)

    def _saw(self, descriptor: AgentDescriptor) -> None:
        """Follow the rotations that a verified descriptor tells of."""
        if not descriptor.succession:
            return
        try:
            older = predecessors(bytes.fromhex(descriptor.public_key), descriptor.succession)
        except (BadSignature, InvalidKey) as error:
            log.warning("the rotation that agent %.16s tells of was refused: %s", descriptor.id, error)
            return
        newer = descriptor.id
        for one in older:
            if one not in self._successors and len(self._successors) >= SUCCESSORS and self._pins.isdisjoint(older):
                return
            known = self._successors.setdefault(one, newer)
            if known != newer:
                log.warning("a second successor of agent %s was refused: %s; the first was %s", one, newer, known)
                break
            newer = one
        for one in self._pins.intersection(older):
            if (now := self.current(one)) != one:
                self._pins.discard(one)
                self._pins.add(now)
                log.info("the pinned agent %s has another key: it is %s now", one, now)
