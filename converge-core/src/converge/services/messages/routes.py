"""Routes: from an agent's id to the link to its node, by the directory of verified descriptors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import anyio

from converge.env import Env
from converge.errors import ConvergeError, StoreError, Undeliverable
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.services.discovery.registry import IdentityRegistry
from converge.services.discovery.service import DiscoveryService
from converge.services.messages.unsettled import Link

log = logging.getLogger("converge.post")

REFRESH_SEC = 0.5
"""The directory is not read again more often than this on behalf of unknown agents: a stranger must not make us hammer
the store. Who asks waits.
"""

LOOKED_UP = 1_000
"""Unknown senders that are being looked up at a time."""


class Links(Protocol):
    """Finds or makes the link to a node."""

    async def to(self, node_key: bytes, endpoints: tuple[str, ...]) -> Link: ...


StartSoon = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


class Routes:
    """Finds links; reads the directory again, at a bounded rate, where it does not know an agent.

    Args:
        env: Its clock.
        node_key: This node's: it has no link to itself.
        discovery: Which agents there are.
        registry: Which of them are trusted.
        links: The links to other nodes; None: this node has no transport.
        start_soon: Given where a refresh asks nodes: it is then a task of its own, since its answer may be behind the
            message, on the same link, that waits for it.
    """

    def __init__(
        self,
        env: Env,
        node_key: bytes,
        discovery: DiscoveryService,
        registry: IdentityRegistry,
        links: Links | None = None,
        start_soon: StartSoon | None = None,
    ) -> None:
        self.links = links
        self._node_key = node_key
        self.discovery = discovery
        self._start_soon = start_soon
        self._looked_up: dict[str, float] = {}
        self._is_coming = False
        self._env, self._registry = env, registry
        self._refreshed = self._tried = float("-inf")
        self._refreshing = anyio.Lock()

    def admits(self, sender: str) -> bool:
        """Return whether the sender may be heard: as `IdentityRegistry.admits`."""
        return self._registry.admits(sender)

    async def link_of(self, agent_id: str) -> Link:
        """Return the link to the agent's node.

        Raises:
            Undeliverable: The agent is not known, or this node has no transport.
            ConnectFailed, ChannelError: Its node cannot be reached now.
            StoreError: It is not known, and the store is away.
        """
        descriptor = self.discovery.directory.get(agent_id)
        if descriptor is None:
            await self.refresh()
            descriptor = self.discovery.directory.get(agent_id)
        if descriptor is None:
            raise Undeliverable(
                f"agent {agent_id} is not known here: it has stopped, or was never started in this network"
            )
        return await self.link_to(bytes.fromhex(descriptor.node_key), descriptor.endpoints, f"agent {agent_id}")

    async def link_to(self, node_key: bytes, endpoints: tuple[str, ...], whom: str) -> Link:
        """Return the link to a node. See `link_of`."""
        if node_key == self._node_key:
            raise Undeliverable(f"{whom} is not here any more: it has stopped")
        if self.links is None:
            raise Undeliverable(
                f"{whom} is in another process, and this node has no transport; give it one with --transport"
            )
        return await self.links.to(node_key, endpoints)

    async def is_spoken_for(self, sender: str, node_key: bytes) -> bool | None:
        """Return whether the sender's own descriptor names the node (G12); None: that is being looked up, ask again."""
        if self._registry.is_spoken_for(sender, node_key):
            return True
        if self._start_soon is None:
            await self.refresh()
        elif self._looked_up.setdefault(sender, self._env.monotonic()) > self._refreshed:
            if len(self._looked_up) > LOOKED_UP:
                self._looked_up.clear()
            if not self._is_coming:
                self._is_coming = True
                self._start_soon(self._refresh_quietly)
            return None
        self._looked_up.pop(sender, None)
        return self._registry.is_spoken_for(sender, node_key)

    async def query(self, query: DiscoveryQuery) -> Sequence[AgentDescriptor]:
        """Return the agents that match, no older than discovery is; while the store is away, those known last."""
        try:
            return await self.discovery.query(query)
        except StoreError as error:
            log.info("agents are looked up among those known last: %s", error)
            return self.discovery.directory.query(query)

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except ConvergeError as error:
            log.info("agents could not be looked up: %s", error)
        finally:
            self._is_coming = False

    async def refresh(self) -> None:
        """Return once the directory is no older than this call; calls that come while one reads share the next
        reading.
        """
        asked = self._env.monotonic()
        async with self._refreshing:
            if self._refreshed >= asked:
                return
            await anyio.sleep(max(0.0, self._tried + REFRESH_SEC - self._env.monotonic()))
            began = self._tried = self._env.monotonic()
            await self.discovery.refresh()
            self._refreshed = began
