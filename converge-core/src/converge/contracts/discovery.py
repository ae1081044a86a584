"""The discovery contract: moves sightings.

Verification, sequence, index and matching are core's; a backend only carries what was seen where.

The clauses:

D-1  snapshot answers every sighting that was published and neither withdrawn nor ended, each id once, the latest published.
D-2  publish again with the same id replaces; withdraw of an unknown id is no error; empty calls are legal.
D-3  watch yields a first list when it is in force (what `snapshot` would say), then whole lists after changes; one list may report many
     changes.
D-4  A sighting comes back byte for byte.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import attrs

from converge.contracts.store import Feature

CONTRACT = 1
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


class Discovery(ABC):
    """Moves sightings between processes."""

    @abstractmethod
    async def publish(self, sightings: Sequence[Sighting]) -> None:
        """Tell others of these (D-1, D-2)."""

    @abstractmethod
    async def withdraw(self, ids: Sequence[str]) -> None:
        """Take these back; unknown ones are no error (D-2)."""

    @abstractmethod
    async def snapshot(self) -> list[Sighting]:
        """Answer all that is known now (D-1)."""

    @abstractmethod
    def watch(self) -> AsyncIterator[list[Sighting]]:
        """Yield what is known now, then again after changes (D-3)."""


Open = Callable[..., AbstractAsyncContextManager[Discovery]]
"""`open(options, *, store, poll_sec)`: an async context manager of a Discovery; the node's store and its poll interval may be left unused."""


@attrs.frozen(kw_only=True)
class DiscoveryBackend:
    """The declaration of a discovery: what a plugin's `converge_discoveries` returns. Attributes as `StoreBackend`."""

    name: str
    schemes: tuple[str, ...] = ()
    options: type[Any]
    open: Open
    contract: int = attrs.field()
    features: frozenset[Feature] = frozenset()
