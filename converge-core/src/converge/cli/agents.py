"""`converge agents` and `converge ps`: agents by their verified descriptors, and the processes that run them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import anyio
import attrs
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE
from converge.cli.options import NONE, Common, OfPool
from converge.cli.run import loop_options
from converge.cli.tasks.verbs import short
from converge.errors import InputError
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.model.identity import SHOWN
from converge.operations import run as main
from converge.operations.probing import messages
from converge.runtime.config.config import Config
from converge.runtime.network.discovery_store import store_url
from converge.services.discovery.service import DiscoveryService
from converge.services.pools import rests_of
from converge.services.store.processes import LeaseSeen, id_of_node, leases, remaining_sec
from converge.services.tasks.records import moment

COLUMNS = ("id", "name", "topics", "capabilities", "pools", "node", "endpoints", "age", "lease", "rest", "verifies")


def list_agents(
    *,
    pool: OfPool = None,
    topic: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="Only agents with this topic; repeat it for any of several."),
    ] = None,
    capability: Annotated[
        list[str] | None,
        Parameter(metavar="NAME", negative=(), help="Only agents with this capability; repeat it to require several."),
    ] = None,
    limit: Annotated[int | None, Parameter(metavar="N", help="How many at most; by default all.")] = None,
    common: Common = NONE,
) -> int:
    """List the agents of live processes, as their signed descriptors describe them, and how long their leases run.

    A descriptor that does not verify grants nothing. Without a filter it is listed by the id it stands under, with the
    reason; `verifies` is `yes` for all others.
    """
    settings = common.configured()
    query = DiscoveryQuery(topics=tuple(topic or ()), capabilities=tuple(capability or ()), pool_id=pool, limit=limit)
    found = anyio.run(_query, settings, query, backend_options=loop_options())
    if common.json:
        for one in found.agents:
            output.line(_record(one, found))
        for id_, why in found.refused.items():
            output.line({"id": id_, "verifies": False, "why": why})
        return DONE
    blank = [""] * (len(COLUMNS) - 2)
    output.table(
        COLUMNS,
        [
            *(_cells(one, found) for one in found.agents),
            *((id_[:SHOWN], *blank, f"no: {why}") for id_, why in found.refused.items()),
        ],
        has_lines=True,
        empty="no agents" if query == DiscoveryQuery() else "no agents that fit",
    )
    return DONE


def show(
    agent_id: Annotated[str, Parameter(help="The agent's id, or an unambiguous beginning of it.")],
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


def ping(
    agent_id: Annotated[str, Parameter(help="The agent's id, or an unambiguous beginning of it.")],
    /,
    *,
    count: Annotated[int, Parameter(metavar="N", help="How many messages are measured.")] = 5,
    timeout: Annotated[
        float, Parameter(metavar="SECONDS", help="How long one message may take, in seconds.")
    ] = messages.TIMEOUT_SEC,
    common: Common = NONE,
) -> int:
    """Send a real message to an agent's node and wait for its receipt: found in discovery, dialled, both keys verified,
    encrypted. No handler of the agent sees it.

    A process that lives for this command sends it, from an address that is not published; the agent's process need not
    be able to reach it. If the message does not arrive, the reason is shown and the exit code is not 0: the process
    listens nowhere, or cannot be reached, does not trust strangers, has ended, or the agent's inbox is full.

    Example: converge agents ping cv1k7x2 --store redis://db:6379/0
    """
    if count < 1:
        raise InputError(f"--count {count} is not allowed; expected at least 1")
    settings = common.configured()
    found = anyio.run(_query, settings, DiscoveryQuery(), backend_options=loop_options())
    one = _one(found.agents, agent_id)
    answer = anyio.run(messages.ping, settings, one, count, timeout, backend_options=loop_options())
    if common.json:
        output.line(_ping_record(answer))
        return DONE
    trips = answer.round_trips_sec
    counted = "1 message" if len(trips) == 1 else f"{len(trips)} messages"
    output.write(
        f"agent {one.id} ({one.name}) at {' '.join(one.endpoints)}: {counted}, round trip "
        f"{answer.round_trip_sec * 1_000:.1f} ms ({min(trips) * 1_000:.1f} to {max(trips) * 1_000:.1f}); "
        f"{answer.connect_sec * 1_000:.0f} ms with the connection"
    )
    return DONE


def _ping_record(answer: messages.Pinged) -> dict[str, Any]:
    one = answer.agent
    return {
        "id": one.id, "name": one.name, "node": id_of_node(one.node_key), "endpoints": list(one.endpoints),
        "connect_sec": round(answer.connect_sec, 6), "round_trip_sec": round(answer.round_trip_sec, 6),
        "round_trips_sec": [round(sec, 6) for sec in answer.round_trips_sec],
    }  # fmt: skip


def _one(found: list[AgentDescriptor], agent_id: str) -> AgentDescriptor:
    """Return the agent that has this id, or is the only one whose id begins so.

    Raises:
        InputError: None has, or several do.
    """
    some = [one for one in found if one.id.startswith(agent_id)]
    if len(some) == 1:
        return some[0]
    if not some:
        near = difflib.get_close_matches(agent_id[:SHOWN], [one.id[:SHOWN] for one in found], n=1)
        way = f'did you mean "{near[0]}"?' if near else "`converge agents list` shows those that are"
        raise InputError(f'agent "{agent_id}" is not listed: no process that lives runs it; {way}')
    raise InputError(f'agent "{agent_id}" is ambiguous: the ids of {len(some)} agents begin with it; write more of it')


class Listed(NamedTuple):
    """What is listed: descriptors, until when those agents rest that do, how long each lease still runs, why what does
    not verify was refused, and the store's time.
    """

    agents: list[AgentDescriptor]
    rests: Mapping[str, int]
    leases: Mapping[str, float]
    refused: Mapping[str, str]
    now: int


def _rest(one: AgentDescriptor, found: Listed) -> str:
    """Return whether its circuit breaker is open."""
    until = found.rests.get(one.id, 0)
    return "" if not until else f"rests {output.age((until - found.now) / 1e6)}" if until > found.now else "on trial"


def _record(one: AgentDescriptor, found: Listed) -> dict[str, Any]:
    record = attrs.asdict(one, filter=attrs.filters.exclude("v"))
    record = {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}
    record["node"] = id_of_node(one.node_key)  # as `converge ps` and `claimed_by` have it
    record["issued_at"] = moment(one.issued_at)
    record["age_sec"] = _age_sec(one, found.now)
    record["lease_sec"] = round(found.leases[one.lease], 3) if one.lease in found.leases else None
    record["rest"], record["verifies"] = _rest(one, found), True
    return record


def _cells(one: AgentDescriptor, found: Listed) -> tuple[object, ...]:
    names = [" ".join(names) for names in (one.topics, one.capabilities, one.pools)]
    return (
        one.id[:SHOWN],
        one.name,
        *names,
        id_of_node(one.node_key)[:SHOWN],
        " ".join(one.endpoints),
        output.age(_age_sec(one, found.now)),
        _lease_state(found.leases[one.lease]) if one.lease in found.leases else "",
        _rest(one, found),
        "yes",
    )


def _age_sec(one: AgentDescriptor, now: int) -> float:
    """Return how long ago it was signed; never negative, since its process may have read store time a little ahead."""
    return max(0, now - one.issued_at) // 1_000 / 1_000


async def _query(config: Config, query: DiscoveryQuery) -> Listed:
    if config.discovery_store:
        config = attrs.evolve(config, store=store_url(config.discovery_store))
    async with main.opened_store(config) as store:
        service = DiscoveryService(store=store, network=config.network)
        found = await service.query(query, refresh_from_store=True)
        rests = await rests_of(store, [(one.id, one.lease, one.pools) for one in found])
        refused = service.directory.refusals if query == DiscoveryQuery() else {}
        return Listed(found, rests, await remaining_sec(store), refused, await store.time())


PROCESS_COLUMNS = (
    "process",
    "host",
    "pid",
    "release",
    "since",
    "ready",
    "agents",
    "running",
    "resting",
    "lease",
    "endpoints",
)


class Process(NamedTuple):
    """One process: its lease, how many agents it has listed, and how many of them rest."""

    lease: LeaseSeen
    agents: int
    resting: int


def ps(*, common: Common = NONE) -> int:
    """List the processes that work on the store: where each runs, since when, and what it does.

    `process` is the id that its logs, `tasks explain` and `tasks list` name; `running` counts the tasks that it holds,
    `resting` its agents whose circuit breaker is open. A lease that has not been renewed is shown as late, then as
    ended: its tasks go back. `ready` is what the process said of itself last, within a second or two: yes, or the codes
    of what keeps it from working, which its own /readyz explains.
    """
    settings = common.configured()
    found = anyio.run(_read_processes, settings, backend_options=loop_options())
    if common.json:
        for one in found:
            output.line(_process_record(one))
        return DONE
    output.table(PROCESS_COLUMNS, [_process_cells(one) for one in found], has_lines=True, empty="no processes")
    return DONE


def _lease_state(remaining_sec: float) -> str:
    return f"{remaining_sec:.0f} s left" if remaining_sec >= 0 else f"ended {output.age(-remaining_sec)} ago"


def _ready(lease: LeaseSeen) -> str:
    if not lease.is_alive:
        return "no: its lease has ended"
    return "" if lease.unready is None else f"no: {' '.join(lease.unready)}" if lease.unready else "yes"


def _process_cells(one: Process) -> tuple[object, ...]:
    lease = one.lease
    since = moment(lease.started) if lease.started else ""
    return (
        short(lease.node_id) or lease.id[:12], lease.host, lease.pid or "", lease.release, since, _ready(lease),
        one.agents, lease.held, one.resting, _lease_state(lease.remaining_sec), " ".join(lease.endpoints),
    )  # fmt: skip


def _process_record(one: Process) -> dict[str, Any]:
    lease = one.lease
    return {
        "id": lease.node_id, "lease": lease.id, "host": lease.host, "pid": lease.pid, "release": lease.release,
        "since": moment(lease.started) if lease.started else None, "agents": one.agents, "running": lease.held,
        "resting": one.resting, "ready": lease.is_ready, "unready": list(lease.unready or ()),
        "is_alive": lease.is_alive, "lease_sec": round(lease.remaining_sec, 3),
        "endpoints": list(lease.endpoints),
    }  # fmt: skip


async def _read_processes(config: Config) -> list[Process]:
    async with main.opened_store(config) as store:
        found = await leases(store)
        service = DiscoveryService(store=store, network=config.network)
        agents = await service.query(DiscoveryQuery(), refresh_from_store=True)
        rests, now = await rests_of(store, [(one.id, one.lease, one.pools) for one in agents]), await store.time()
        listed = Counter(one.lease for one in agents if one.id != id_of_node(one.node_key))
        resting = Counter(one.lease for one in agents if rests.get(one.id, 0) > now)
        return [Process(one, listed[one.id], resting[one.id]) for one in found]
