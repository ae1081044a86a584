"""Routes: from an agent's id to the link to its node, by the directory of verified descriptors."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import anyio
import attrs

from converge.env import Env
from converge.errors import ChannelError, ConnectFailed, ConvergeError, StoreError, Undeliverable
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.model.identity import agent_id as id_of
from converge.net.throttle import Throttle
from converge.services.discovery.registry import IdentityRegistry
from converge.services.discovery.service import DiscoveryService
from converge.services.messages.speakers import Speakers
from converge.services.messages.under_way import Link

log = logging.getLogger("converge.post")

REFRESH_SEC = 0.5
"""The directory is read again for unknown agents at most so often: a stranger must not make us hammer the store."""

LOOKED_UP = 1_000
"""Unknown senders that are being looked up at a time."""

UNLISTED_SEC = 5.0
"""How long an agent that is reached over a link, and not listed, is not looked up again."""

MOMENT_SEC = 0.02
"""How long a dial to a node is waited for that failed before, where another agent may be tried."""

ENDPOINTS = 4
"""Endpoints of a node that are dialled where its own descriptor is not known."""


class Links(Protocol):
    """Finds or makes the link to a node."""

    def open(self, node_key: bytes) -> Link | None: ...

    def all(self) -> Iterable[Link]: ...

    async def to(self, node_key: bytes, endpoints: Sequence[str]) -> Link: ...

    def failure(self, node_key: bytes) -> ChannelError | None: ...

    def is_dialling(self, node_key: bytes) -> bool: ...


StartErrand = Callable[..., object]
"""Starts a coroutine function with its arguments, as a task that ends by itself."""


@attrs.frozen(kw_only=True)
class Outside:
    """How a node deals with others.

    Attributes:
        links: The links to other nodes; None: it has no transport.
        errand: Starts what may wait for others; None: nothing is looked up.
        credential: Returns the signed descriptor of an agent of this node, which is shown to peers before it speaks.
        why_not: Returns why an endpoint can never be dialled from here; empty: it can be.
    """

    links: Links | None = None
    errand: StartErrand | None = None
    credential: Callable[[str], bytes | None] = lambda agent_id: None
    why_not: Callable[[str], str] = lambda endpoint: ""


class Routes:
    """Finds links; reads the directory again, at a bounded rate, where it does not know an agent.

    Args:
        env: Its clock.
        node_key: This node's: it has no link to itself.
        discovery: Which agents there are.
        registry: Which of them are trusted.
        outside: Links to other nodes.
    """

    def __init__(
        self,
        env: Env,
        node_key: bytes,
        discovery: DiscoveryService,
        registry: IdentityRegistry,
        outside: Outside = Outside(),  # frozen
    ) -> None:
        self.links, self.errand, self.credential = outside.links, outside.errand, outside.credential
        self._why_not = outside.why_not
        self.discovery, self.quietly = discovery, Throttle(log, env.monotonic)
        self.speakers = Speakers(env, registry)
        self._node_key = node_key
        self._env, self._registry = env, registry
        self._looked_up: dict[str, float] = {}
        self._unlisted: dict[str, float] = {}
        self._is_coming = False
        self._refreshed = self._tried = float("-inf")
        self._refreshing = anyio.Lock()

    def admits(self, sender: str) -> bool:
        """Return whether the sender may be heard: as `IdentityRegistry.admits`."""
        return self._registry.admits(sender)

    def is_own(self, node_id: str) -> bool:
        """Return whether this is the node's own id."""
        return node_id == id_of(self._node_key)

    def is_stranger(self, node_key: bytes) -> bool:
        """Return whether nothing is listed of the node."""
        directory = self.discovery.directory
        return directory.get(id_of(node_key)) is None and not directory.runs_at(node_key)

    def open(self, node_key: bytes) -> Link | None:
        """Return the link to a node, if there is one."""
        return None if self.links is None else self.links.open(node_key)

    def open_to(self, agent_id: str) -> Link | None:
        """Return the link to an agent's node, if there is one and the agent is known."""
        descriptor = self.discovery.directory.get(agent_id)
        return None if descriptor is None or self.links is None else self.links.open(descriptor.node_key_bytes)

    async def link_soon(self, node_key: bytes, whom: str, first_sec: float, again_sec: float) -> Link:
        """Return the link to a node as `link_to`, within so many seconds, `again_sec` where the last dial to it failed.
        A dial that takes longer goes on, for whoever asks next.

        Raises:
            ConnectFailed: It took longer.
        """
        link = self.open(node_key)
        if link is not None:
            return link
        failure = None if self.links is None else self.links.failure(node_key)
        wait_sec, where = first_sec if failure is None else again_sec, ", ".join(self.endpoints(node_key))
        with anyio.move_on_after(wait_sec):
            return await self.link_to(node_key, whom)
        before = "" if failure is None else f"; the try before: {failure}"
        raise ConnectFailed(f"connecting to {whom} at {where} takes more than {wait_sec:g} s, and goes on{before}")

    async def link_of_candidate(self, agent_id: str) -> Link:
        """Return the link to the node of an agent that is one of several candidates: as `link_of`, but where the last
        dial to the node failed, one that takes longer than a moment goes on without the caller.
        """
        descriptor = self.discovery.directory.get(agent_id)
        if descriptor is None:
            return await self.link_of(agent_id)
        return await self.link_soon(descriptor.node_key_bytes, f"agent {agent_id}", math.inf, MOMENT_SEC)

    def is_dialling(self, agent_id: str) -> bool:
        """Return whether the agent's node is being dialled."""
        descriptor = self.discovery.directory.get(agent_id)
        return self.links is not None and descriptor is not None and self.links.is_dialling(descriptor.node_key_bytes)

    def dialled_at(self, agent_id: str) -> str:
        """Return where the agent's node is being dialled; empty: it is not."""
        descriptor = self.discovery.directory.get(agent_id)
        if descriptor is None or not self.is_dialling(agent_id):
            return ""
        return ", ".join(self.endpoints(descriptor.node_key_bytes))

    async def first_reached(self, agent_ids: Sequence[str], within_sec: float) -> str:
        """Return the first of these agents to whose node there is a link, dialling them all; empty: there is none
        within this time. The dials go on.
        """
        first = ""

        async def reach(agent_id: str) -> None:
            nonlocal first
            try:
                await self.link_of_candidate(agent_id)
            except (ChannelError, StoreError, Undeliverable):
                return
            first = first or agent_id
            group.cancel_scope.cancel()

        with anyio.move_on_after(within_sec):
            async with anyio.create_task_group() as group:
                for agent_id in agent_ids:
                    group.start_soon(reach, agent_id)
        return first

    async def link_of(self, agent_id: str) -> Link:
        """Return the link to the agent's node.

        Raises:
            Undeliverable: The agent is not known, this node has no transport, or its node has no endpoint.
            ConnectFailed, ChannelError: Its node cannot be reached now.
            StoreError: It is not known, and the store is away.
        """
        descriptor = self.discovery.directory.get(agent_id)
        link = None if descriptor is not None else self._over(agent_id)
        if descriptor is None and (link is None or self._unlisted.get(agent_id, 0.0) < self._env.monotonic()):
            try:
                await self.refresh()
            except StoreError:
                if link is None:
                    raise
            descriptor = self.discovery.directory.get(agent_id)
        if descriptor is not None:
            return await self.link_to(descriptor.node_key_bytes, f"agent {agent_id}")
        link = self._over(agent_id)
        if link is None:
            raise Undeliverable(
                f"agent {agent_id} is not known here: it has stopped, or was never started in this network"
            )
        if len(self._unlisted) > LOOKED_UP:
            self._unlisted.clear()
        self._unlisted[agent_id] = self._env.monotonic() + UNLISTED_SEC
        return link

    def _over(self, agent_id: str) -> Link | None:
        """Return the link over which an agent is reached that is not listed: to the node where it was, or that has
        shown it. Its node knows best whether it is there: a lease that ended parts nobody who is connected.
        """
        if self.links is None:
            return None
        node_key = self.discovery.directory.was_at(agent_id)
        link = self.links.open(node_key) if node_key else None
        return link or next((one for one in self.links.all() if agent_id in one.speakers), None)

    async def link_to(self, node_key: bytes, whom: str) -> Link:
        """Return the link to a node. See `link_of`."""
        if node_key == self._node_key:
            raise Undeliverable(f"{whom} is no longer here: it has stopped")
        if self.links is None:
            raise Undeliverable(
                f"{whom} is in another process, and this node has no transport; give it one with --transport"
            )
        link = self.links.open(node_key)
        return await self.links.to(node_key, self._dialled(node_key, whom)) if link is None else link

    def _dialled(self, node_key: bytes, whom: str) -> Sequence[str]:
        """Return the endpoints of a node that can be dialled from here.

        Raises:
            Undeliverable: There is none, and waiting would not change that.
        """
        endpoints = self.endpoints(node_key)
        if self.is_stranger(node_key):
            raise Undeliverable(f"{whom} is not known here any more: it has stopped, or its lease has ended")
        if not endpoints:
            where = "" if whom.startswith("node ") else " is at a node that"
            raise Undeliverable(
                f"{whom}{where} listens nowhere, and has no connection to this one: it certainly does not have the "
                "message; it can be reached while it talks to this node"
            )
        why_not = [self._why_not(endpoint) for endpoint in endpoints]
        if all(why_not):
            raise Undeliverable(
                f"{whom} is at {' and '.join(endpoints)}, and {why_not[0]}: it certainly does not have the message; "
                "give both nodes a common transport (transport may be a list)"
            )
        return [endpoint for endpoint, why in zip(endpoints, why_not, strict=True) if not why]

    def endpoints(self, node_key: bytes) -> Sequence[str]:
        """Return where a node is dialled: what its own descriptor says counts. Only where that is not known, what its
        agents say does: any agent can name any node.
        """
        directory = self.discovery.directory
        own = directory.get(id_of(node_key))
        if own is not None:
            return own.endpoints[:ENDPOINTS]
        return directory.endpoints_at(node_key)[:ENDPOINTS]

    def is_listed_or_exempt(self, sender: str) -> bool:
        """Return what the registry says: as `IdentityRegistry.is_listed_or_exempt`."""
        return self._registry.is_listed_or_exempt(sender)

    def speaks(self, sender: str, link: Link, *, is_signed: bool = False) -> bool | None:
        """Return whether the peer may speak for the sender (G12), or pass on what the sender has signed; None: that is
        being looked up, ask again.
        """
        if self.is_listed_or_exempt(sender) if is_signed else self.speakers.speaks(sender, link):
            self._looked_up.pop(sender, None)  # should it be unknown again, it is looked up again
            return True
        if self.errand is None:
            return False
        if self._looked_up.setdefault(sender, self._env.monotonic()) > self._refreshed:
            if len(self._looked_up) > LOOKED_UP:
                self._looked_up.clear()
            if not self._is_coming:
                self._is_coming = True
                self.errand(self._refresh_quietly)
            return None
        self._looked_up.pop(sender, None)
        return False

    async def query(self, query: DiscoveryQuery) -> Sequence[AgentDescriptor]:
        """Return the agents that match, no older than discovery is; while the store is away, those known last."""
        try:
            return await self.discovery.query(query)
        except StoreError as error:
            self.quietly.info("", "agents are looked up among those known last: %s", error)
            return self.discovery.directory.query(query)

    async def _refresh_quietly(self) -> None:
        try:
            await self.refresh()
        except ConvergeError as error:
            self.quietly.info("", "agents could not be looked up: %s", error)
        finally:
            self._is_coming = False

    async def refresh(self) -> None:
        """Return once the directory is no older than this call; calls during a reading share the next."""
        asked = self._env.monotonic()
        async with self._refreshing:
            if self._refreshed >= asked:
                return
            await anyio.sleep(max(0.0, self._tried + REFRESH_SEC - self._env.monotonic()))
            began = self._tried = self._env.monotonic()
            await self.discovery.refresh()
            self._refreshed = began
