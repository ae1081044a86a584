"""IdentityRegistry: which key is whose. It fills itself from verified descriptors, and is a view of the directory."""

from __future__ import annotations

from converge.errors import Undeliverable
from converge.model.identity import verify
from converge.services.directory import Directory


class IdentityRegistry:
    """Public keys by agent id, of the agents that the directory knows."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    def public_key(self, agent_id: str) -> bytes:
        """Return the agent's public key.

        Raises:
            Undeliverable: The agent is not known.
        """
        descriptor = self._directory.get(agent_id)
        if descriptor is None:
            raise Undeliverable(f"agent {agent_id} is not known here; it may have stopped, or was never discovered")
        return bytes.fromhex(descriptor.public_key)

    def verify(self, agent_id: str, signature: bytes, data: bytes) -> bool:
        """Tell whether the signature over `data`, which begins with a domain tag, is the agent's.

        Raises:
            Undeliverable: The agent is not known.
        """
        return verify(self.public_key(agent_id), signature, data)

    def is_spoken_for(self, agent_id: str, node_key: bytes) -> bool:
        """Tell whether the agent's own descriptor names this node key, so that the node's channel may speak for it (G12)."""
        descriptor = self._directory.get(agent_id)
        return descriptor is not None and descriptor.node_key == node_key.hex()
