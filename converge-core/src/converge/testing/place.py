"""Places: a store, a transport and a network in which nodes of a test meet, in its own process and in others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from converge.runtime.node import Node
from converge.testing.fleet import Fleet

POLL_SEC = 0.3
"""Short enough that no test waits for long; a fleet has the same."""


@attrs.frozen(kw_only=True)
class Place:
    """Where nodes of one test meet.

    Attributes:
        agent: `module:Class` of a module in `agents_folder`: what the processes of a fleet run.
        options: Those of its backends, by their name: text values only.
    """

    store: str
    plugins: tuple[str, ...]
    transport: str
    network: str
    pool: str
    agent: str
    agents_folder: Path
    options: Mapping[str, Mapping[str, str]] = attrs.field(factory=dict)

    def node(self, **settings: Any) -> Node:
        """Return a node for the test's own process, not yet entered."""
        mine: dict[str, Any] = {
            "poll_sec": POLL_SEC,
            "grace_sec": 0.0,
            "transport": self.transport,
            "options": {name: dict(values) for name, values in self.options.items()},
            **settings,
        }
        return Node(store=self.store, plugins=self.plugins, network=self.network, **mine)

    def fleet(self, folder: Path) -> Fleet:
        """Return a fleet in this place, no process of it started."""
        return Fleet(
            folder,
            self.store,
            agent=self.agent,
            agents_folder=self.agents_folder,
            pool=self.pool,
            network=self.network,
            plugins=list(self.plugins),
            options=self.options,
        )
