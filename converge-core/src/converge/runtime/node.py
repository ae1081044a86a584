"""The node: one process's store, lease, agents and feeds, and its endpoint where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from math import inf
from types import TracebackType
from typing import Any, TypeVar, Unpack

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from converge.contracts.store import Store
from converge.env import SYSTEM, Env
from converge.errors import InvalidValue
from converge.model.identity import Identity
from converge.model.message import Fanout, Receipt
from converge.model.pool import Pool
from converge.plugins import PluginHost
from converge.runtime.agents import context as working
from converge.runtime.agents.agent import Agent, check_agent_class, decides
from converge.runtime.agents.decide import DecideLoop
from converge.runtime.agents.executor import Executor
from converge.runtime.agents.starting import start_all
from converge.runtime.agents.ticks import Ticks
from converge.runtime.claiming.cancellations import Cancellations
from converge.runtime.claiming.feed import Feed
from converge.runtime.claiming.groups import Groups
from converge.runtime.claiming.observers import observers_of
from converge.runtime.config.node_settings import NodeArguments, NodeSettings
from converge.runtime.health import Health, Vitals
from converge.runtime.keys.identity_dir import IdentityDir
from converge.runtime.network.network import Network, choose
from converge.runtime.reaper import Reaper
from converge.runtime.recovery import Recovery
from converge.runtime.stopping import Stopping
from converge.runtime.watchdog import Watchdog
from converge.services.messages.sending import SendOptions
from converge.services.pools import PoolManager
from converge.services.store.handle import StoreHandle
from converge.services.store.lease import LeaseSettings
from converge.services.store.opening import open_store
from converge.services.tasks.manager import TaskManager

A = TypeVar("A", bound=Agent)

MADE_BEFORE_YIELD = 100
"""Agents made before others may run: each draws a key, and thousands are started at once."""


class Node:
    """One process of the network. Entered with `async with`, it opens the store and, if a transport is named, listens;
    leaving it stops everything.

    Its keyword arguments are the attributes of `NodeSettings`; a store that is open already may be given in place of a
    URL, and is not closed.
    `identity`: the node's own; else it is drawn at each start, or kept in `identity_dir`.

    Raises:
        ConfigError: An argument is not known, or outside its bounds: all that are.
    """

    def __init__(
        self,
        *,
        store: str | Store = "memory:",
        env: Env = SYSTEM,
        identity: Identity | None = None,
        **settings: Unpack[NodeArguments],
    ) -> None:
        self._given = store if isinstance(store, Store) else None
        self.settings = NodeSettings.of("" if self._given is not None else store, settings)
        self.env = env
        self.agents: dict[str, Agent] = {}
        self.identity = identity or Identity.generate(
            env.entropy
        )  # with an identity_dir the kept one, once it is entered
        self._identity = identity
        self._stack = AsyncExitStack()
        self._feeds: dict[int, Feed] = {}
        self._stopping: bool = False
        self._host = PluginHost(self.settings.plugins)
        self.vitals = Vitals(env)

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseExceptionGroup as group:
            raise _only(group) from None
        self._host.observe("converge_node_started", node_id=self.identity.id)
        return self

    async def _start(self) -> None:
        chosen = choose(
            self.settings, self._host
        )  # before the store is opened: a mistyped transport must not touch a shared store
        async with AsyncExitStack() as stack:
            kept = self._kept = await IdentityDir.open(self.settings.identity_dir, self.env)
            stack.callback(kept.close)
            self.identity = self._identity or (await kept.take())[0]
            self.store = self._given if self._given is not None else await stack.enter_async_context(self._open_store())
            lease = LeaseSettings(
                lease_sec=self.settings.lease_sec,
                stall_sec=self.settings.stall_sec,
                node_key=self.identity.public_key.hex(),
            )
            self.handle = StoreHandle.of(self.store, self.env, lease)
            self._watchdog = Watchdog(self.handle, self.env, self.settings.lease_sec, self._feeds)
            self.pools = PoolManager(self.store)
            self.tasks = TaskManager(self.store, poll_sec=self.settings.poll_sec)
            working.NODE.set(self.identity.id)  # all of the node's own tasks have it from here
            await kept.check_history(self.handle, self.settings.store, self.settings.network, self._host)
            stack.push_async_callback(kept.note_history)
            stack.push_async_callback(
                self.handle.close
            )  # also of a start that fails: a lease that nobody ends would be renewed for ever
            self._group: TaskGroup = await stack.enter_async_context(anyio.create_task_group())
            stack.push_async_callback(self._cancel_group)
            self.groups = Groups(
                self.handle,
                self.pools,
                self.env,
                self._group,
                self.settings.poll_sec,
                observers_of(self._host),
                self._feeds,
            )
            self.supervision = self.groups.supervision
            self.vitals.sources.append(self.groups.ailments)
            self.executor = Executor(self.env, self._host.decisions)
            self.ticks = Ticks(self.env, self._group, self.supervision)
            self.network = Network(
                self.handle, self.identity, self.env, self._group, self.settings, self._host, chosen, kept
            )
            await stack.enter_async_context(self.network.running())
            self.discovery, self.registry = self.network.discovery, self.network.registry
            await self.network.add_node()
            reaper = Reaper(self.handle, self.settings.poll_sec)
            self._group.start_soon(reaper.run)
            self._group.start_soon(self._watchdog.run)
            self._group.start_soon(
                Recovery(self.handle, self.groups, self.network, self._watchdog, self.settings.poll_sec).run
            )
            self._group.start_soon(self.ticks.run)
            self._group.start_soon(Cancellations(self.handle, self.settings.lease_sec, self._feeds).run)
            self.vitals.started(self.handle, self._watchdog, reaper, self.settings.stall_sec)
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return await self._end(kind, error, trace)
        except BaseExceptionGroup as group:
            if (one := _only(group)) is error:
                # the block's own error goes on as it is, so that `except ConvergeError` around the block catches it
                return False
            raise one from None

    async def _end(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            await self.stop()
        finally:
            is_handled = await self._stack.__aexit__(kind, error, trace)
            self.vitals.stopped()
            working.NODE.set("")
            self.handle.hurry(inf)  # a store that was given is used on by others
        return is_handled

    def _open_store(self) -> AbstractAsyncContextManager[Store]:
        one = self.settings
        return open_store(
            one.store,
            plugins=self._host,
            network=one.network,
            options=one.options,
            require_durability=one.require_durability,
        )

    async def _cancel_group(self) -> None:
        self._group.cancel_scope.cancel()

    async def spawn(
        self,
        agent: type[A],
        count: int = 1,
        pool: str | Sequence[str] | None = None,
        *,
        secret: str | None = None,
        identities: Sequence[Identity] | None = None,
    ) -> list[A]:
        """Start `count` agents of the class in the pool, several pools, or none (messages only); create pools that are
        missing.

        `secret`: the join secret of pools that ask for one; then none is created. `identities`: those of the agents,
            one each; else they are drawn
        at each start, or kept in `identity_dir`.

        Raises:
            InvalidValue, InvalidName, Unsupported: The class, the count or the pool cannot be used; nothing was
                started.
            PoolClosed: A pool does not admit them.
        """
        check_agent_class(agent)
        self.executor.check_agent_class(agent)
        if type(count) is not int or count < 1:
            raise InvalidValue("count", count, "an integer, at least 1")
        if identities is not None and len(identities) != count:
            raise InvalidValue("identities", len(identities), f"as many as agents, {count}")
        pools = (pool,) if isinstance(pool, str) else tuple(pool or ())
        for pool_id in pools if secret is None else ():
            await self.pools.create_pool(Pool(id=pool_id))
        agents: list[A] = []
        for number, identity in enumerate(identities or await self._kept.take(agent.__name__, count)):
            if number % MADE_BEFORE_YIELD == 0:
                await checkpoint()
            agents.append(self._make(agent, pools, identity))
        joined_under = await self.handle.lease()
        try:
            await self.groups.start(agents, pools, secret)
        except BaseException:
            self._kept.keyring.give_back(one.id for one in agents)
            raise
        try:
            await start_all(agents, lambda one: self.agents.update({one.id: one}))
        except Exception:
            # None of them will claim. Those that did start keep their keys until their `on_stop`.
            await self.groups.withdraw(agents)
            self._kept.keyring.give_back(one.id for one in agents if one.id not in self.agents)
            raise
        await self.network.add(agents)
        # From here on the loop is watched: the first handler may block it before the watchdog has had its first turn.
        lease = await self.handle.lease()
        lease.beat()
        self.groups.add(agents)
        if lease is not joined_under:
            self._watchdog.lease_lost.set()  # while `on_start` ran: these agents are joined again too
        self.ticks.add(agents)
        return agents

    def _make(self, cls: type[A], pools: tuple[str, ...], identity: Identity) -> A:
        one = cls()
        one.identity = identity
        one.id, one.node, one.pools = one.identity.id, self, pools
        self.supervision.add(one)
        if decides(cls):
            one.decide_loop = DecideLoop(one, self._group, self.executor, self.supervision)
        return one

    def health(self) -> Health:
        """Return whether the node lives and is ready, and why not; from any thread, also while the event loop is
        blocked.
        """
        return self.vitals.read()

    @property
    def feeds(self) -> Sequence[Feed]:
        """The feeds, one per group of agents that claim alike."""
        return tuple(self._feeds.values())

    async def send(
        self,
        to: str,
        payload: Any,
        *,
        ack: str | None = "accepted",
        timeout: float = 10.0,
        mailbox: bool = False,
        proof: str = "channel",
        sender: str | None = None,
        task_id: str = "",
    ) -> Receipt:
        """Send a message to an agent's id, or to any one agent that has a `Capability`. `sender`: an agent of this
        node; None: the node itself.

        It returns when the message is in the agent's inbox (`ack="accepted"`), when its handler has returned
        (`"handled"`), when it was handed to the connection (None), or when it is stored (`mailbox=True`).

        Raises:
            Undeliverable, Backpressure, DeliveryTimeout, HandlerFailed: It did not get so far; a typed error by the
            deadline (`timeout` seconds). InvalidName, InvalidValue, MessageTooLarge: It cannot be sent as asked.
            StoreError: It could not be stored.
        """
        how = SendOptions(ack=ack, timeout=timeout, mailbox=mailbox, proof=proof, task_id=task_id)
        return await self.network.post.send(sender or self.identity.id, to, payload, how)

    async def ask(
        self, to: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None, task_id: str = ""
    ) -> Any:
        """Send a message and return what the recipient's `on_message` returned.

        Raises:
            HandlerFailed: The recipient's handler raised.
            As `send`.
        """
        return await self.network.post.ask(
            sender or self.identity.id, to, payload, SendOptions(timeout=timeout, task_id=task_id)
        )

    async def publish(
        self, topic: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None
    ) -> list[Fanout]:
        """Send a message to every agent that has the topic, but the sender: once to each node, which fans it out.
        Returns one outcome for each node.

        Raises:
            InvalidName, InvalidValue, MessageTooLarge: It cannot be sent as asked. What fails on the way to a node
            stands in its outcome.
        """
        return await self.network.fanouts.publish(sender or self.identity.id, topic, payload, timeout)

    async def broadcast(
        self, pool_id: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None
    ) -> list[Fanout]:
        """Send a message to every agent of the pool, but the sender. See `publish`."""
        return await self.network.fanouts.broadcast(sender or self.identity.id, pool_id, payload, timeout)

    async def stop(self, *, grace_sec: float | None = None) -> None:
        """Stop claiming, let handlers end within the grace time, hand the rest back, end the lease. A second call
        returns at once.
        """
        if self._stopping:
            return
        self._stopping = self._watchdog.is_stopping = True
        self.vitals.stopping()
        self._host.observe("converge_node_stopping", node_id=self.identity.id)
        grace_sec = self.settings.grace_sec if grace_sec is None else grace_sec
        await Stopping(self.handle, self.network, self._feeds, self.agents, self.ticks, self.settings.poll_sec).run(
            grace_sec
        )


def _only(error: BaseException) -> BaseException:
    """Return the one error that a group of task groups carries; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
