"""The discovery contract: moves sightings.

Verification, sequence, index and matching are core's; a backend only carries what was seen where.

The clauses:

D-1  snapshot answers every sighting that was published and neither withdrawn nor ended, each id once, the latest
     published.
D-2  publish again with the same id replaces; withdraw of an unknown id is no error; empty calls are legal.
D-3  watch yields a first list when it is in force (what `snapshot` would say), then whole lists after changes; one list
     may report many changes.
D-4  A sighting comes back byte for byte.
D-5  A backend that declares `publishes=False` says what it was configured with: publish and withdraw are accepted, and
     change nothing for anybody.
D-6  What one handle publishes every other handle on the same place sees at its next snapshot; what a process published
     ends with the process: at once when it closes, within its lease when it dies.
D-7  reader().look answers what has changed since the look before, at first everything: the changes of all looks make up
     the snapshot.
D-8  A call that fails raises a StoreError or ChannelError, and the next one works: a reader misses nothing and takes
     nothing twice for it.
D-9  A DiscoveryService on it lists what verifies, of each agent the highest sequence that was seen, and nobody whose
     lease has ended. (Core's part.)
D-10 A discovery that is left passes through what its block raised, as it is: exceptions, `SystemExit`, a cancellation.
     It leaves no descriptor open, and no call keeps the thread of the event loop waiting.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, NamedTuple

import attrs

from converge.contracts.store import Feature
from converge.model.descriptor import AgentDescriptor, sign_descriptor

__all__ = [
    "CONTRACT", "AgentDescriptor", "Changes", "Discovery", "DiscoveryBackend", "Reader", "Sighting", "sign_descriptor",
]  # fmt: skip

CONTRACT = 2
"""The number of this contract."""


class Sighting(NamedTuple):
    """An endpoint, perhaps with the signed bytes of a descriptor.

    Attributes:
        id: The agent's id, or the endpoint itself where no descriptor is known.
        endpoints: URLs at which its node can be reached; empty for a node that only dials.
        descriptor: The signed bytes, or empty: core then fetches and verifies the descriptor over the channel.
    """

    id: str
    endpoints: tuple[str, ...] = ()
    descriptor: bytes = b""


class Changes(NamedTuple):
    """What has changed since the last look: `came` are new or changed, `gone` are the ids that are no longer there."""

    came: Sequence[Sighting]
    gone: Sequence[str]


class Discovery(ABC):
    """Moves sightings between processes."""

    @abstractmethod
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        """Publish these to others (D-1, D-2)."""

    @abstractmethod
    async def withdraw(self, ids: Sequence[str]) -> None:
        """Withdraw these; unknown ones are no error (D-2)."""

    @abstractmethod
    async def snapshot(self) -> list[Sighting]:
        """Return all that is known now (D-1)."""

    @abstractmethod
    def watch(self) -> AsyncIterator[list[Sighting]]:
        """Yield what is known now, then again after changes (D-3)."""

    def reader(self) -> Reader:
        """Return what reads changes (D-7); the inherited one compares snapshots."""
        return Reader(self)


class Reader:
    """One reader of a discovery: it knows what it has seen. Used by one task at a time."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery
        self._known: dict[str, Sighting] = {}

    async def look(self) -> Changes:
        """Return what has changed since the look before (D-7); one that fails or is cancelled counts as not made (D-8).

        Raises:
            StoreError, ChannelError: As `snapshot`.
        """
        now = {sighting.id: sighting for sighting in await self._discovery.snapshot()}
        changes = Changes(
            [one for one in now.values() if self._known.get(one.id) != one],
            [id_ for id_ in self._known if id_ not in now],
        )
        self._known = now
        return changes

    async def hints(self) -> AsyncIterator[None]:
        """Yield when it is time to look: at once, after changes, and each poll interval where the backend polls."""
        async with aclosing(self._discovery.watch()) as watch:  # type: ignore[type-var]  # every watch is an async generator
            async for _ in watch:
                yield None


Open = Callable[..., AbstractAsyncContextManager[Discovery]]
"""`open(options, *, store, poll_sec)`: an async context manager of a Discovery; it need not use the node's store."""


@attrs.frozen(kw_only=True)
class DiscoveryBackend:
    """The declaration of a discovery: what a plugin's `converge_discoveries` returns.

    Attributes:
        publishes: False: it reports what it was configured with, and accepts nothing else (D-5).
        others: As `StoreBackend`.
    """

    name: str
    schemes: tuple[str, ...] = ()
    options: type[Any]
    open: Open
    contract: int = attrs.field()
    features: frozenset[Feature] = frozenset()
    publishes: bool = True
