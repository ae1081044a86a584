"""DiscoveryService: finds agents by topic, capability and pool in the directory of verified descriptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing

import anyio
from anyio.lowlevel import checkpoint

from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Store
from converge.errors import ChannelError, LeaseEnded, StoreError
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.services.discovery.directory import Directory
from converge.services.discovery.sightings import StoreSightings
from converge.services.store.handle import StoreHandle
from converge.services.store.limits import timed

FRESH_SEC = 1.0
"""How old the directory may be for a query, where no node keeps it fresh: the default of `poll_sec`."""

VERIFIED_A_TURN = 64
"""Descriptors that are verified before others run: some milliseconds."""

Fetch = Callable[[Sequence[str]], Awaitable[None]]
"""Puts into the directory what the nodes at these endpoints say of their agents."""


class DiscoveryService:
    """Answers queries from memory. The directory is loaded on first use; the node's watch keeps it fresh.

    A descriptor is listed while its process's lease lives: a hint that the agent was alive, which grants nothing.

    Args:
        store: Whose lease is used, and where descriptors stand unless discovery puts them elsewhere.
        network: Whose descriptors count.
        discovery: What knows of agents; by default the store.
        directory: Where verified descriptors are kept; by default one of its own.
        fetch: Asks nodes that are sighted without descriptors.
    """

    def __init__(
        self,
        *,
        store: Store,
        network: str = "converge",
        discovery: Discovery | None = None,
        directory: Directory | None = None,
        fetch: Fetch | None = None,
    ) -> None:
        self._handle = StoreHandle.of(store)
        self._discovery = discovery or StoreSightings(self._handle)
        self._reader = self._discovery.reader()
        self.directory = Directory(network) if directory is None else directory
        self._fetch = fetch
        self.is_wanted = anyio.Event()
        """Set by the first query: from then on it is worth keeping the directory fresh."""
        self._reading = anyio.Lock()
        self._bare: dict[str, tuple[str, ...]] = {}  # sighted without a descriptor
        self._came: dict[str, Sighting] = {}  # read, and not yet verified: outlives a call that is cancelled
        self._read = float("-inf")
        self._fresh_sec = FRESH_SEC

    @timed
    async def query(
        self,
        query: DiscoveryQuery,
        candidates: Sequence[AgentDescriptor] | None = None,
        refresh_from_store: bool = False,
        *,
        timeout: float | None = None,
    ) -> list[AgentDescriptor]:
        """Return the agents that match, by id.

        Args:
            query: Any of the topics, all of the capabilities, in the pool.
            candidates: Filter these, and read nothing.
            refresh_from_store: Read the latest first.

        Raises:
            StoreError: The store could not be read; never for `candidates`.
        """
        if candidates is None:
            self.is_wanted.set()
            if refresh_from_store or self._age_sec() > self._fresh_sec:
                await self.refresh()
        return self.directory.query(query, candidates)

    @timed
    async def refresh(self, *, timeout: float | None = None) -> None:
        """Read what has changed and verify what is new. Calls that come while one reads share the next reading.

        Raises:
            StoreError, ChannelError: It could not be read; the directory stays as it is.
        """
        asked = self._handle.env.monotonic()
        async with self._reading:
            if self._read < asked:
                await self._look()

    async def follow(self, poll_sec: float) -> None:
        """Keep the directory fresh until cancelled; while the store is away, keep what was known last.

        Meanwhile queries read nothing, unless the last look is too old: the store is away, or slow.
        """
        self._fresh_sec = max(FRESH_SEC, 2 * poll_sec)
        while True:
            try:
                async with aclosing(self._hints(poll_sec)) as hints:  # type: ignore[type-var]  # an async generator
                    async for _ in hints:
                        await self.refresh()
                        self._handle.outage.works("discovery")
            except (StoreError, ChannelError, LeaseEnded) as error:
                self._handle.outage.failed("discovery", error)
            await anyio.sleep(poll_sec)

    async def _hints(self, poll_sec: float) -> AsyncIterator[None]:
        """Yield when it is time to look: after changes, or at each poll interval where nodes are asked."""
        if self._fetch is None:
            async with aclosing(self._reader.hints()) as hints:  # type: ignore[type-var]  # an async generator
                async for _ in hints:
                    yield None
        while True:
            yield None
            await anyio.sleep(poll_sec)

    def _age_sec(self) -> float:
        return self._handle.env.monotonic() - self._read

    async def _look(self) -> None:
        began = self._handle.env.monotonic()
        changes = await self._reader.look()
        self._bare.update({one.id: one.endpoints for one in changes.came if not one.descriptor})
        for id_ in [*changes.gone, *(one.id for one in changes.came if one.descriptor)] if self._bare else ():
            self._bare.pop(id_, None)
        for agent_id in changes.gone:
            self._came.pop(agent_id, None)
            self.directory.drop(agent_id)
        self._came |= {sighting.id: sighting for sighting in changes.came}
        verified = 0
        while self._came:
            agent_id = next(iter(self._came))
            verified += self.directory.see(self._came.pop(agent_id))
            if verified >= VERIFIED_A_TURN:
                verified = 0
                await checkpoint()
        if self._fetch is not None:
            await self._fetch([endpoint for endpoints in self._bare.values() for endpoint in endpoints])
        self._read = began
