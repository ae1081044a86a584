"""A message to an agent's node and back, sent by a process that exists only for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import median
from typing import TYPE_CHECKING

import anyio
import attrs

from converge.errors import ConfigError, Undeliverable
from converge.model.descriptor import AgentDescriptor
from converge.operations.run import node_of
from converge.plugins import PluginHost
from converge.runtime.config.config import Config

if TYPE_CHECKING:
    from converge.runtime.node import Node

TIMEOUT_SEC = 10.0
"""How long one message may take."""


@attrs.frozen(kw_only=True)
class Pinged:
    """The result of pinging an agent.

    Attributes:
        agent: Whom.
        connect_sec: From the first message to its receipt: the way is found, dialled and secured meanwhile.
        round_trips_sec: How long each later message took, there and back.
    """

    agent: AgentDescriptor
    connect_sec: float
    round_trips_sec: tuple[float, ...]

    @property
    def round_trip_sec(self) -> float:
        """The median."""
        return median(self.round_trips_sec)


async def ping(config: Config, agent: AgentDescriptor, count: int, timeout_sec: float = TIMEOUT_SEC) -> Pinged:
    """Send an agent's node so many messages, and one before them that makes the connection.

    Raises:
        Undeliverable, Backpressure, DeliveryTimeout, ChannelError: Why messages do not reach the agent.
        ConfigError: No transport to it can be used here.
    """
    async with visitor(config, [agent]) as node:
        return await pinged(node, agent, count, timeout_sec)


async def pinged(node: Node, agent: AgentDescriptor, count: int, timeout_sec: float) -> Pinged:
    """Ping an agent from this node. See `ping`."""
    post, began = node.network.post, anyio.current_time()
    await post.ping(node.identity.id, agent.id, timeout_sec)
    connect_sec = anyio.current_time() - began
    trips = [await post.ping(node.identity.id, agent.id, timeout_sec) for _ in range(count)]
    return Pinged(agent=agent, connect_sec=connect_sec, round_trips_sec=tuple(trips))


@asynccontextmanager
async def visitor(config: Config, agents: Sequence[AgentDescriptor]) -> AsyncIterator[Node]:
    """Enter a node that lives for a probe: it can dial these agents, is known nowhere, and keeps no key."""
    listened = transports_to(config, agents) if agents else ()
    visiting = attrs.evolve(
        config,
        transport=",".join(listened),
        advertise="none" if listened else "",
        require_tls=config.require_tls and bool(listened),
        health="",
        identity_dir="",
    )
    async with node_of(visiting) as node:
        yield node


def transports_to(config: Config, agents: Sequence[AgentDescriptor]) -> tuple[str, ...]:
    """Return where to listen so that these agents can be dialled: a node has a transport if it listens there.

    Raises:
        Undeliverable: None of them can be.
        ConfigError: Not with what is installed here.
    """
    host, found, problems = PluginHost(config.plugins), dict[str, str](), list[ConfigError]()
    for endpoint in dict.fromkeys(endpoint for agent in agents for endpoint in agent.endpoints):
        scheme = endpoint.partition(":")[0]
        if scheme == "local":
            continue
        try:
            backend = host.transport_backend(endpoint)
        except ConfigError as problem:
            problems.append(problem)
            continue
        plain = [one for one in backend.schemes if one not in backend.secure_schemes]
        own = plain[0] if plain and not config.require_tls else scheme
        found[backend.name] = f"{own}://127.0.0.1:0{'/' if '/' in endpoint.partition('://')[2] else ''}"
    if found:
        return tuple(found.values())
    if problems:
        raise problems[0]
    whom = f"agent {agents[0].id}" if len(agents) == 1 else "each of them"
    raise Undeliverable(
        f"{whom} is in a process that listens nowhere: it has no transport, or is reached only over connections that "
        "it makes itself"
    )
