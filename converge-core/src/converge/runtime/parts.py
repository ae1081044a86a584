"""What a node has while it is entered: one record, complete when it is created."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio
import attrs
from anyio.abc import TaskGroup

from converge.contracts.store import Store
from converge.env import Env
from converge.foreign import children_end_here
from converge.model.identity import Identity
from converge.plugins import PluginHost
from converge.runtime.agents import context as working
from converge.runtime.agents.background import Background
from converge.runtime.agents.boundary import Boundary, worker_kind
from converge.runtime.agents.executor import Executor, Means
from converge.runtime.agents.ticks import Ticks
from converge.runtime.claiming.cancellations import Cancellations
from converge.runtime.claiming.feed import Basis, Feed
from converge.runtime.claiming.groups import Groups
from converge.runtime.claiming.observers import observers_of
from converge.runtime.config.node_settings import NodeSettings
from converge.runtime.keys.identity_dir import IdentityDir
from converge.runtime.network.choosing import choose
from converge.runtime.network.network import Ground, Network
from converge.runtime.probes.probes import Probes
from converge.runtime.reaper import Reaper
from converge.runtime.recovery import Recovery
from converge.runtime.watchdog import Watchdog
from converge.services.durable.manager import TaskManager
from converge.services.pools import PoolManager
from converge.services.store.detached import completed
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.store.opening import open_store


@attrs.frozen(kw_only=True)
class Parts:
    """What an entered node has. `identity` is the node's own, `kept` the folder of its keys, `boundary` is
    where user code runs, and starts every background task, `feeds` are those of `groups`.
    """

    identity: Identity
    kept: IdentityDir
    store: Store
    handle: StoreHandle
    pools: PoolManager
    tasks: TaskManager
    boundary: Boundary
    feeds: dict[int, Feed]
    groups: Groups
    executor: Executor
    ticks: Ticks
    network: Network
    watchdog: Watchdog
    reaper: Reaper


@attrs.frozen(kw_only=True)
class Given:
    """What a node was made with: its settings, and in place of what they name a store that is open, or an identity."""

    settings: NodeSettings
    env: Env
    host: PluginHost
    store: Store | None = None
    identity: Identity | None = None


async def open_parts(stack: AsyncExitStack, given: Given, probes: Probes) -> Parts:
    """Return the parts of a node, open; closing the stack closes them, also after a start that fails.

    Raises:
        ConfigError: What the settings name cannot be used; nothing was opened.
        StoreError: The store cannot be used.
    """
    settings, env, host = given.settings, given.env, given.host
    # Before the store is opened: a mistyped transport must not touch a shared store.
    chosen = choose(settings, host)
    kept = await IdentityDir.open(settings.identity_dir, env)
    stack.callback(kept.close)
    identity = given.identity or (await kept.acquire())[0]
    store = given.store if given.store is not None else await stack.enter_async_context(_open_store(settings, host))
    lease = LeaseSettings(
        lease_sec=settings.lease_sec,
        stall_sec=settings.stall_sec,
        call_sec=settings.call_sec,
        node_key=identity.public_key.hex(),
    )
    handle = StoreHandle.of(store, env, lease)
    pools = PoolManager(store)
    working.NODE.set(identity.id)  # all of the node's own tasks have it from here
    await kept.check_history(handle, settings.store, settings.network, host)
    stack.push_async_callback(kept.note_history)
    stack.push_async_callback(handle.close)  # a lease that nobody ends would be renewed for ever
    stack.enter_context(children_end_here())
    group = await stack.enter_async_context(anyio.create_task_group())
    stack.push_async_callback(_cancel, group)
    boundary = Boundary(await completed(worker_kind), Background(group, env))
    ground = Ground(
        handle=handle,
        identity=identity,
        env=env,
        boundary=boundary,
        settings=settings,
        host=host,
        chosen=chosen,
        kept=kept,
    )
    network = await stack.enter_async_context(Network.open(ground))
    observers = observers_of(host, probes.observers(handle))
    basis = Basis(handle=handle, env=env, boundary=boundary, poll_sec=settings.poll_sec, observers=observers)
    groups = Groups(basis, pools, network.describe_again)
    tasks = TaskManager(store, poll_sec=settings.poll_sec)
    means = Means(store=store, tasks=tasks, pools=pools, members=groups, post=network.post, fanouts=network.fanouts)
    parts = Parts(
        identity=identity,
        kept=kept,
        store=store,
        handle=handle,
        pools=pools,
        tasks=tasks,
        boundary=boundary,
        feeds=groups.feeds,
        groups=groups,
        executor=Executor(env, means, host.decisions),
        ticks=Ticks(env, boundary, groups.supervision),
        network=network,
        watchdog=Watchdog(handle, env, settings.lease_sec, groups.feeds, boundary.background.shared),
        reaper=Reaper(handle, settings.poll_sec),
    )
    await parts.network.add_node()
    _begin(parts, settings)
    return parts


def _begin(parts: Parts, settings: NodeSettings) -> None:
    """Start the background tasks."""
    recovery = Recovery(parts.handle, parts.groups, parts.network, parts.watchdog, settings.poll_sec)
    cancellations = Cancellations(parts.handle, settings.lease_sec, parts.feeds)
    for one in (parts.reaper, parts.watchdog, recovery, parts.ticks, cancellations):
        parts.boundary.background.loop(one.run)


def _open_store(settings: NodeSettings, host: PluginHost) -> Any:
    return open_store(
        settings.store,
        plugins=host,
        network=settings.network,
        options=settings.options,
        require_durability=settings.require_durability,
    )


async def _cancel(group: TaskGroup) -> None:
    group.cancel_scope.cancel()
