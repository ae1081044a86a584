"""DiscoveryService: finds agents by topic, capability and pool in the directory of verified descriptors."""

from __future__ import annotations

from collections.abc import Sequence

from converge.contracts.discovery import Discovery, Sighting
from converge.contracts.store import Store
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.services.directory import Directory
from converge.services.opened import Opened
from converge.services.sightings import StoreSightings

FRESH_SEC = 1.0
"""How old the directory may be for a query, where no node keeps it fresh: the default of `poll_sec`."""


class DiscoveryService:
    """Answers queries from memory. The directory is loaded on first use, then read again when it is older than a poll interval.

    A descriptor is listed while its process's lease lives. Being listed is a hint that the agent was alive, not proof, and it grants nothing.
    """

    def __init__(self, *, store: Store, network: str = "converge", discovery: Discovery | None = None, directory: Directory | None = None) -> None:
        self._opened = Opened.of(store)
        self._discovery = discovery or StoreSightings(self._opened)
        self.directory = directory or Directory(network)
        self._read = float("-inf")

    async def query(
        self, query: DiscoveryQuery, candidates: Sequence[AgentDescriptor] | None = None, refresh_from_store: bool = False
    ) -> list[AgentDescriptor]:
        """Return the agents that match, by id.

        Args:
            query: Any of the topics, all of the capabilities, in the pool.
            candidates: Filter these, and read nothing.
            refresh_from_store: Read the latest first.

        Raises:
            StoreError: The store could not be read; never for `candidates`.
        """
        if candidates is None and (refresh_from_store or self._opened.env.monotonic() - self._read > FRESH_SEC):
            await self.refresh()
        return self.directory.query(query, candidates)

    async def refresh(self) -> None:
        """Read the sightings and verify what is new."""
        self.take(await self._discovery.snapshot())

    def take(self, sightings: Sequence[Sighting]) -> None:
        """Make the directory what was sighted just now."""
        self.directory.replace(sightings)
        self._read = self._opened.env.monotonic()
