"""`converge agents`: list agents by their verified descriptors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import NONE, Common, OfPool
from converge.cli.run import loop_options
from converge.errors import InputError
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.operations import run as main
from converge.runtime.config.config import Config
from converge.runtime.network.discovery_store import store_url
from converge.services.discovery.service import DiscoveryService
from converge.services.pools import rests_of
from converge.services.tasks.records import moment

ID_SHOWN = 15
"""How much of an id a table shows: `cv1` and 60 bits, which tell all agents of a network apart and fit beside the other
columns.
"""

NODE_SHOWN = 12
"""How much of a node's key a table shows."""


def list_agents(
    *,
    pool: OfPool = None,
    topic: Annotated[
        list[str] | None,
        Parameter(
            metavar="NAME", negative=(), help="Only agents with this topic, or another one given; may be repeated."
        ),
    ] = None,
    capability: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="Only agents with this capability; may be repeated."),
    ] = None,
    limit: Annotated[int | None, Parameter(metavar="N", help="How many at most; by default all.")] = None,
    common: Common = NONE,
) -> int:
    """List the agents of live processes, as their signed descriptors describe them."""
    settings = common.configured()
    query = DiscoveryQuery(topics=tuple(topic or ()), capabilities=tuple(capability or ()), pool_id=pool, limit=limit)
    found = anyio.run(_query, settings, query, backend_options=loop_options())
    if common.json:
        for one in found.agents:
            output.line(_record(one, found))
        return DONE
    columns = ("id", "name", "topics", "capabilities", "pools", "node", "endpoints", "age", "rest")
    output.table(
        columns,
        [_cells(one, found) for one in found.agents],
        has_lines=True,
        empty="no agents" if query == DiscoveryQuery() else "no agents that fit",
    )
    return DONE


def show(
    agent_id: Annotated[str, Parameter(help="The agent's id, or the beginning of it if no other agent's begins so.")],
    /,
    *,
    common: Common = NONE,
) -> int:
    """Show one agent's descriptor: its keys, topics, capabilities, pools, and where it is reached."""
    settings = common.configured()
    found = anyio.run(_query, settings, DiscoveryQuery(), backend_options=loop_options())
    record = _record(_one(found.agents, agent_id), found)
    if common.json:
        output.line(record)
        return DONE
    shown = [(name, " ".join(value) if isinstance(value, list) else value) for name, value in record.items()]
    output.table(("field", "value"), [row for row in shown if row[1] != ""])
    return DONE


def _one(found: list[AgentDescriptor], agent_id: str) -> AgentDescriptor:
    """Return the agent that has this id, or is the only one whose id begins so.

    Raises:
        InputError: None has, or several do.
    """
    some = [one for one in found if one.id.startswith(agent_id)]
    if len(some) == 1:
        return some[0]
    if not some:
        near = difflib.get_close_matches(agent_id[:ID_SHOWN], [one.id[:ID_SHOWN] for one in found], n=1)
        way = f'did you mean "{near[0]}"?' if near else "`converge agents list` shows those that are"
        raise InputError(f'agent "{agent_id}" is not listed: no process that lives runs it; {way}')
    raise InputError(f'agent "{agent_id}" is not one agent: the ids of {len(some)} begin so; write more of it')


class Listed(NamedTuple):
    """What is listed: descriptors, until when those agents rest that do, and the store's time."""

    agents: list[AgentDescriptor]
    rests: Mapping[str, int]
    now: int


def _rest(one: AgentDescriptor, found: Listed) -> str:
    """Return whether its circuit breaker is open."""
    until = found.rests.get(one.id, 0)
    return "" if not until else f"rests {output.age((until - found.now) / 1e6)}" if until > found.now else "on trial"


def _record(one: AgentDescriptor, found: Listed) -> dict[str, Any]:
    record = attrs.asdict(one, filter=attrs.filters.exclude("v"))
    record = {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}
    record["issued_at"] = moment(one.issued_at)
    record["age_sec"] = _age_sec(one, found.now)
    record["rest"] = _rest(one, found)
    return record


def _cells(one: AgentDescriptor, found: Listed) -> tuple[object, ...]:
    names = [" ".join(names) for names in (one.topics, one.capabilities, one.pools)]
    return (
        one.id[:ID_SHOWN],
        one.name,
        *names,
        one.node_key[:NODE_SHOWN],
        " ".join(one.endpoints),
        output.age(_age_sec(one, found.now)),
        _rest(one, found),
    )


def _age_sec(one: AgentDescriptor, now: int) -> float:
    """Return how long ago it was signed; never negative, since its process may have read store time a little ahead."""
    return max(0, now - one.issued_at) // 1_000 / 1_000


async def _query(config: Config, query: DiscoveryQuery) -> Listed:
    if config.discovery_store:
        config = attrs.evolve(config, store=store_url(config.discovery_store))
    async with main.opened_store(config) as store:
        found = await DiscoveryService(store=store, network=config.network).query(query, refresh_from_store=True)
        rests = await rests_of(store, [(one.id, one.lease, one.pools) for one in found])
        return Listed(found, rests, await store.time())
