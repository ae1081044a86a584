"""The probes of one node: what counts its attempts, what reads its state, and the endpoint that shows both."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import anyio
import attrs

from converge.env import Env
from converge.errors import ConfigError, StoreError
from converge.machines.breaker import CircuitState
from converge.runtime.agents.background import Background
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.supervision import Supervision
from converge.runtime.claiming.feed import Feed
from converge.runtime.claiming.observers import NO_OBSERVERS, Observers
from converge.runtime.network.network import Network
from converge.runtime.probes.answer import Health
from converge.runtime.probes.tally import Tally
from converge.services.store.handle import StoreHandle
from converge.services.tasks.counts import oldest_ready_sec
from converge.threads import in_own_thread

if TYPE_CHECKING:
    from converge.runtime.probes.metrics import Gauges

SAMPLE_SEC = 10.0
"""How often the age of the oldest ready task is read: an alert on it waits for minutes."""

FIRST_SEC = 1.0
"""The same while there is none to show: no agent is in a pool yet, or the store was away."""


class Probes:
    """Observes a node from its start to its end; `url` is where, None: nowhere."""

    def __init__(self, tally: Tally | None = None, gauges: Gauges | None = None, url: str | None = None) -> None:
        self._tally, self._gauges, self.url = tally, gauges, url

    def observers(self, handle: StoreHandle) -> Observers:
        """Return what observes attempts at the store's tasks."""
        if (tally := self._tally) is None:
            return NO_OBSERVERS
        return Observers(
            lambda found, task: tally.claimed(found),
            lambda found, event: tally.finished(found, event, handle.about_now()),
            tally.dropped,
        )

    def started(self, observed: Observed) -> None:
        """Read from a node that has started."""
        if (gauges := self._gauges) is None:
            return
        gauges.running, gauges.agents, gauges.lease_sec = observed.running, observed.count, observed.lease_sec
        gauges.pools = observed.pools
        network = observed.network
        gauges.sent, gauges.received = network.post.outcomes.copy, network.received.outcomes.copy
        gauges.refusals, gauges.connections = network.refusals, (lambda: len(network.links or ()))
        observed.background.loop(_sample, observed, gauges)


@attrs.frozen(kw_only=True)
class Observed:
    """What is read of a node while it runs; all but the ages from any thread."""

    handle: StoreHandle
    background: Background
    agents: Mapping[str, Hosted]
    feeds: Mapping[int, Feed]
    supervision: Supervision
    network: Network

    def running(self) -> int:
        """Return how many attempts are under way."""
        return sum(feed.slots.running for feed in tuple(self.feeds.values()))

    def count(self) -> dict[str, int]:
        """Return how many agents live, and how many of them have a handler that rests or is on trial."""
        resting = sum(one.state is not CircuitState.CLOSED for one in self.supervision.troubled)
        return {"live": len(self.agents), "resting": resting}

    def lease_sec(self) -> float:
        """Return how long the lease lasts if it is not renewed."""
        lease = self.handle.lease_opened
        return 0.0 if lease is None else max(0.0, lease.remaining_sec())

    def pools(self) -> set[str]:
        """Return the pools of the agents."""
        return {pool_id for agent in tuple(self.agents.values()) for pool_id in agent.pools}

    async def ages(self) -> dict[str, float]:
        """Return how long tasks have waited in each pool of the agents, as `oldest_ready_sec`."""
        return await oldest_ready_sec(self.handle, sorted(self.pools()))


async def _sample(observed: Observed, gauges: Gauges) -> None:
    """Read now and then how long tasks wait, as long as the store answers."""
    while True:
        try:
            gauges.oldest_ready_sec = await observed.ages()
        except StoreError:  # health says so; no figure is better than an old one
            gauges.oldest_ready_sec = {}
        pause_sec = SAMPLE_SEC if gauges.oldest_ready_sec else FIRST_SEC
        await anyio.sleep(pause_sec * observed.handle.env.uniform(0.75, 1.0))


@asynccontextmanager
async def probes_of(address: str, health: Callable[[], Health], env: Env) -> AsyncIterator[Probes]:
    """Serve the health of a node at an address, from before its store is opened until after it was closed.

    Raises:
        ConfigError: The address cannot be listened at, or what serves it is not installed.
    """
    if not address:
        yield Probes()
        return
    check_installed()
    from converge.runtime.probes.metrics import Gauges, NodeCollector, registry_of
    from converge.runtime.probes.server import HealthServer

    tally, gauges = Tally(env.monotonic), Gauges()
    registry = registry_of(NodeCollector(tally, gauges, health))
    server = await in_own_thread(HealthServer, address, health, registry)
    try:
        yield Probes(tally, gauges, server.url)
    finally:
        server.close()


def check_installed() -> None:
    """Refuse a health endpoint where the libraries that serve it are missing.

    Raises:
        ConfigError: With the command that brings them.
    """
    for name in ("prometheus_client", "waitress"):
        if find_spec(name) is None:
            raise ConfigError(f"health: {name} is not installed; pip install 'converge-core[health]' brings it")
