"""What `converge doctor --probe` does: a message to each process, and a task through a pool of its own."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import anyio

from converge.contracts.store import Batch, Finding, Store, error, fine, warning
from converge.env import SYSTEM
from converge.errors import ConfigError, ConvergeError, Undeliverable
from converge.ids import id_text
from converge.machines.task import TERMINAL, TaskState
from converge.model.descriptor import AgentDescriptor, DiscoveryQuery
from converge.model.identity import SHOWN
from converge.model.keys import LANE, MEMBER, POOL, READY
from converge.model.pool import Pool
from converge.model.task import Task
from converge.operations.probing.messages import TIMEOUT_SEC, pinged, transports_to, visitor
from converge.operations.run import opened_store
from converge.runtime.agents.agent import Agent
from converge.runtime.config.config import Config
from converge.runtime.node import Node
from converge.services.discovery.service import DiscoveryService
from converge.services.durable.manager import TaskManager
from converge.services.store.handle import StoreHandle
from converge.services.store.pages import read_all
from converge.services.store.processes import id_of_node
from converge.services.tasks.lanes import close_lane
from converge.services.tasks.purge import purge

PEERS = 16
"""Processes that a probe sends to at most."""

POOL_OF_PROBES = re.compile(r"converge-probe-(\d{10})-[0-9a-f]{8}")
"""Pools of this name are for probes: the second when it was made, and what no other probe draws."""

LEFT_SEC = 600
"""A probe's pool that is so old, and has no member, was left by one that was killed."""

SLOW_SEC = 1.0
"""From here on a probe that went through is a warning."""


async def probe(config: Config) -> AsyncIterator[Finding]:
    """Send a message to each live process, and a task through a pool that is removed again; yield what came of it.

    Raises:
        StoreError, ConfigError: Nothing could be sent.
    """
    async with opened_store(config) as store:
        found = await DiscoveryService(store=store, network=config.network).query(
            DiscoveryQuery(), refresh_from_store=True
        )
    peers = list({one.node_key: one for one in found if one.endpoints}.values())
    lives = len({one.node_key for one in found})
    try:
        transports_to(config, peers)
    except (ConfigError, Undeliverable) as problem:
        if peers:
            yield error("probe-message", str(problem), "install the transport, or configure it here as there")
        peers = []
    else:
        if len(peers) > PEERS:
            yield fine("probe-message", f"{PEERS} of {len(peers)} processes are tried")
        if peers and lives > len(peers):
            text = f"{lives - len(peers)} of {lives} processes listen nowhere, and are not tried: they have no"
            yield fine("probe-message", f"{text} transport, or are reached only over connections that they make")
    findings: list[Finding] = []
    async with visitor(config, peers[:PEERS]) as node:
        async with anyio.create_task_group() as group:
            for peer in peers[:PEERS]:
                group.start_soon(_probe_peer, node, peer, findings)
        if not peers:
            yield fine("probe-message", "no process that lives is reached over a network, so no message was sent")
        findings.append(await _probe_task(node))
    async with opened_store(config) as store:
        await _remove_pools(store)
    for finding in findings:
        yield finding


async def _probe_peer(node: Node, peer: AgentDescriptor, findings: list[Finding]) -> None:
    whom = f"process {id_of_node(peer.node_key)[:SHOWN]} at {' '.join(peer.endpoints)}"
    try:
        one = await pinged(node, peer, 3, TIMEOUT_SEC)
    except ConvergeError as problem:
        text = f"no message reaches {whom}: {problem}"
        findings.append(error("probe-message", text, "`converge agents ping` tries one agent; compare its own log"))
        return
    text = (
        f"a message to {whom} and its receipt take {one.round_trip_sec * 1_000:.1f} ms, "
        f"{one.connect_sec * 1_000:.0f} ms with the connection"
    )
    findings.append(_measured("probe-message", text, one.round_trip_sec))


class _Probe(Agent):
    """Takes the probe's task."""

    async def on_task(self, task: Task) -> object:
        return task.inputs


async def _probe_task(node: Node) -> Finding:
    now, drawn = await node.store.time(), SYSTEM.entropy(4).hex()
    pool = Pool(id=f"converge-probe-{now // 1_000_000:010d}-{drawn}", keep_completed_sec=60.0, keep_failed_sec=60.0)
    try:
        await node.pools.create_pool(pool)
        (agent,) = await node.spawn(_Probe, pool=pool.id)
        began = anyio.current_time()
        task_id = await node.tasks.submit(Task(pool_id=pool.id, inputs={"probe": drawn}))
        submitted_sec = anyio.current_time() - began
        task = await node.tasks.result(task_id, timeout=TIMEOUT_SEC)
        took_sec = anyio.current_time() - began
        await node.retire(agent)
        await _remove(node.handle, pool.id)
    except ConvergeError as problem:
        return error("probe-task", f"no task went through: {problem}", "look at the findings about the store")
    if task.state != TaskState.COMPLETED.value:
        return error("probe-task", f"the probe's task is {task.state}", f"`converge tasks show {task_id}` says why")
    text = (
        f"a task takes {took_sec * 1_000:.1f} ms from submit to result, {submitted_sec * 1_000:.1f} ms of it until it "
        f"is stored (pool {pool.id}, removed again)"
    )
    return _measured("probe-task", text, took_sec)


def _measured(code: str, text: str, took_sec: float) -> Finding:
    return fine(code, text) if took_sec < SLOW_SEC else warning(code, text, "look for load, and for a distant store")


async def _remove_pools(store: Store) -> None:
    """Remove pools of probes that were killed."""
    handle, now = StoreHandle.of(store), await store.time() // 1_000_000
    for entry in await read_all(store, POOL()):
        found = POOL_OF_PROBES.fullmatch(entry.key[1])
        if found and now - int(found[1]) > LEFT_SEC and not await read_all(store, MEMBER(entry.key[1])):
            await _remove(handle, entry.key[1])


async def _remove(handle: StoreHandle, pool_id: str) -> None:
    """Remove a pool of a probe, with its tasks."""
    lanes = await read_all(handle.store, LANE(pool_id))
    for lane in lanes:
        for ready in await read_all(handle.store, READY(lane.key[2])):
            await TaskManager(handle.store).cancel(id_text(ready.key[3]))
    async for _ in purge(handle, [pool_id], TERMINAL, None, is_dry_run=False):
        pass
    for lane in await read_all(handle.store, LANE(pool_id)):
        await close_lane(handle, lane)
    (pool,) = await handle.store.get([POOL(pool_id)])
    if pool is not None:
        await (await handle.commits()).commit([Batch([(pool.key, pool.revision)], (), [pool.key])])
