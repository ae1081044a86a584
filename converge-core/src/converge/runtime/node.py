"""The node: one process's store, lease, agents and feeds, and its endpoint where it has one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import StrEnum
from functools import partial
from math import inf
from types import TracebackType
from typing import Any, TypeVar, Unpack

import anyio
from anyio.lowlevel import checkpoint

from converge.contracts.store import Store
from converge.env import SYSTEM, Env
from converge.errors import InvalidValue, WrongNodeState
from converge.foreign import Raised, as_exception, detached, guard_logs, guarded, name_of
from converge.model.identity import Identity
from converge.model.message import Fanout, Receipt
from converge.model.pool import Pool
from converge.plugins import PluginHost
from converge.runtime.agents import context as working
from converge.runtime.agents.agent import Agent, check_agent_class, decides, kind_of
from converge.runtime.agents.agent_health import AgentHealth
from converge.runtime.agents.decide import DecideLoop
from converge.runtime.agents.executor import Executor
from converge.runtime.agents.hosted import Hosted, Kind, host, hosted_of
from converge.runtime.agents.starting import start_all
from converge.runtime.agents.supervision import Supervision
from converge.runtime.agents.ticks import Ticks
from converge.runtime.claiming.feed import Feed
from converge.runtime.claiming.groups import Groups
from converge.runtime.config.node_settings import NodeArguments, NodeSettings
from converge.runtime.health import Vitals
from converge.runtime.network.network import Network
from converge.runtime.parts import Given, Parts, open_parts
from converge.runtime.probes.answer import Health
from converge.runtime.probes.probes import Observed, probes_of
from converge.runtime.retiring import retire
from converge.runtime.stopping import RELEASE_SEC, Stopping
from converge.runtime.telling import Telling
from converge.services.discovery.registry import IdentityRegistry
from converge.services.discovery.service import DiscoveryService
from converge.services.durable.agents import AgentRef
from converge.services.durable.manager import TaskManager
from converge.services.messages.options import DEFAULTS, SendArguments, SendOptions, options_of
from converge.services.pools import PoolManager
from converge.services.store.detached import completed
from converge.services.store.handle import StoreHandle
from converge.services.store.limits import timed

A = TypeVar("A", bound=Agent)

MADE_BEFORE_YIELD = 100
"""Agents made before others may run: each draws a key, and thousands are started at once."""


class State(StrEnum):
    """Where a node is; its value is what an error says of it."""

    NEW = "has not been entered"
    ENTERED = "is entered already, or is being entered"
    LEFT = "was left"


class Node:
    """One process of the network. Entered with `async with`, it opens the store and, if a transport is named, listens;
    leaving it stops everything.

    Its keyword arguments are the attributes of `NodeSettings`; a store that is open already may be given in place of a
    URL, and is not closed.
    `identity`: the node's own; else it is drawn at each start, or kept in `identity_dir`.
    A node is entered once; before and after, all but `health` raises `WrongNodeState`.

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
        given = store if isinstance(store, Store) else None
        self.settings = NodeSettings.of("" if given is not None else store, settings)
        self.env = env
        self.agents: dict[str, Hosted] = {}
        self.vitals = Vitals(env)
        self.health_url: str | None = None
        """Where its health is served once it is entered; None: nowhere."""
        self._host = PluginHost(self.settings.plugins)
        self._given = Given(settings=self.settings, env=env, host=self._host, store=given, identity=identity)
        self._identity = identity
        self._stack = AsyncExitStack()
        self._parts: Parts | None = None
        self._state = State.NEW
        self._is_stopping = False

    async def __aenter__(self) -> Node:
        if self._state is not State.NEW:
            raise WrongNodeState(f"the node {self._state}: it can be entered only once; make another one")
        self._state = State.ENTERED
        try:
            async with AsyncExitStack() as stack:
                probes = await stack.enter_async_context(probes_of(self.settings.health, self.vitals.read, self.env))
                parts = await open_parts(stack, self._given, probes)
                self._stack = stack.pop_all()
        except BaseException as error:
            self._state = State.LEFT
            if isinstance(error, BaseExceptionGroup):
                raise _only(error) from None
            raise
        guard_logs()  # all that logs is imported by now, and no user code has run
        self._parts, self._identity = parts, parts.identity
        self.vitals.started(parts.handle, parts.watchdog, parts.reaper, self.settings.stall_sec)
        self.vitals.sources += [parts.boundary.background.ailments, parts.groups.supervision.rests]
        probes.started(
            Observed(
                handle=parts.handle,
                background=parts.boundary.background,
                agents=self.agents,
                feeds=parts.feeds,
                supervision=parts.groups.supervision,
                network=parts.network,
            )
        )
        parts.boundary.background.loop(Telling(parts.handle, self.vitals.read).run)
        self.health_url = probes.url
        self._host.observe("converge_node_started", node_id=parts.identity.id)
        return self

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
        handle = self.parts.handle
        try:
            await self.stop()
        finally:
            try:
                is_handled = await self._stack.__aexit__(kind, error, trace)
            finally:
                self._state, self._parts = State.LEFT, None
                self.vitals.stopped()
                working.NODE.set("")
                handle.hurry(inf)  # a store that was given is used on by others
        return is_handled

    @property
    def parts(self) -> Parts:
        """What the node has while it is entered.

        Raises:
            WrongNodeState: It has not been entered, or was left. So do all uses of the node but `health`.
        """
        if self._parts is None:
            raise WrongNodeState(f"the node {self._state}: use it inside `async with Node(...) as node:`")
        return self._parts

    @property
    def identity(self) -> Identity:
        """The node's own identity: the one that was given, else the one that it has from its start on."""
        return self._identity or self.parts.identity

    @property
    def store(self) -> Store:
        """The store."""
        return self.parts.store

    @property
    def handle(self) -> StoreHandle:
        """The store with this process's lease."""
        return self.parts.handle

    @property
    def tasks(self) -> TaskManager:
        """The tasks of the store."""
        return (self._parts or self.parts).tasks  # each call saved counts: every submit passes here

    @property
    def pools(self) -> PoolManager:
        """The pools of the store."""
        return self.parts.pools

    @property
    def network(self) -> Network:
        """Messages, descriptors and links."""
        return self.parts.network

    @property
    def discovery(self) -> DiscoveryService:
        """The agents that this node knows of."""
        return self.parts.network.discovery

    @property
    def registry(self) -> IdentityRegistry:
        """The identities that this node knows, and which it trusts."""
        return self.parts.network.registry

    @property
    def executor(self) -> Executor:
        """What carries out the actions of the node's agents."""
        return (self._parts or self.parts).executor

    @property
    def supervision(self) -> Supervision:
        """What counts the failures of the node's agents."""
        return self.parts.groups.supervision

    @property
    def groups(self) -> Groups:
        """The node's agents, by what they claim."""
        return self.parts.groups

    @property
    def ticks(self) -> Ticks:
        """The ticks of the node's agents."""
        return self.parts.ticks

    @timed
    async def spawn(
        self,
        agent: type[A],
        count: int = 1,
        pool: str | Sequence[str] | None = None,
        *,
        secret: str | None = None,
        identities: Sequence[Identity] | None = None,
        timeout: float | None = None,
    ) -> list[A]:
        """Start `count` agents of the class in the pool, several pools, or none (messages only); create missing ones.

        `secret`: the join secret of pools that ask for one; then none is created. `identities`: those of the agents,
            one each; else they are drawn at each start, or kept in `identity_dir`. `timeout`: seconds for all that the
            store is asked; None: `call_sec` for each call on it.

        Raises:
            InvalidValue, InvalidName, Unsupported: The class, the count or the pool cannot be used; nothing was
                started.
            PoolClosed: A pool does not admit them.
            WrongNodeState: The node stops, or began to while they started.
        """
        parts = self.parts
        self._check_starts()
        check_agent_class(agent)
        parts.executor.check_agent_class(agent)
        if type(count) is not int or count < 1:
            raise InvalidValue("count", count, "an integer, at least 1")
        if identities is not None and len(identities) != count:
            raise InvalidValue("identities", len(identities), f"as many as agents, {count}")
        pools = (pool,) if isinstance(pool, str) else tuple(pool or ())
        for pool_id in pools if secret is None else ():
            await parts.pools.create_pool(Pool(id=pool_id))
        agents, kind = list[Hosted](), kind_of(agent)
        identities = identities or await parts.kept.acquire(agent.__name__, count)
        async with self._whole_or_not(agents, identities):
            for number, identity in enumerate(identities):
                if number % MADE_BEFORE_YIELD == 0:
                    await checkpoint()
                agents.append(self._make(agent, kind, pools, identity))
            joined_under = await parts.handle.lease()
            await parts.network.prepare(agents)
            await parts.groups.start(agents, pools, secret)
            await start_all(parts.boundary, agents, lambda one: self.agents.update({one.id: one}))
            for one in agents:
                if one.is_retired and self.agents.pop(one.id, None) is not None:  # in its own `on_start`
                    await completed(partial(retire, parts, one, 0.0))
            self._check_starts()
            await parts.network.add([one for one in agents if not one.is_retired], parts.groups.supervision)
            # From here on the loop is watched: the first handler may block it before the watchdog has its first turn.
            lease = await parts.handle.lease()
            self._check_starts()
        lease.beat()
        living = [one for one in agents if not one.is_retired]
        parts.groups.add(living)
        if lease is not joined_under:
            parts.watchdog.lease_lost.set()  # while `on_start` ran: these agents are joined again too
        parts.ticks.add(living)
        return [one.agent for one in agents]

    def _check_starts(self) -> None:
        """Start nothing that would claim tasks under another lease once the node's own has ended."""
        if self._is_stopping:
            raise WrongNodeState("the node is stopping: it starts no agents")

    @asynccontextmanager
    async def _whole_or_not(self, agents: Sequence[Hosted], identities: Sequence[Identity]) -> AsyncIterator[None]:
        """Leave nothing behind of agents that do not start in the block, however it ends; none of them claims. Those
        whose `on_start` has returned keep their keys, and the right to speak, until their `on_stop`.
        """
        parts = self.parts
        try:
            yield
        except BaseException:
            parts.network.hush(one for one in agents if one.id not in self.agents)
            own = [one for one in agents if self.agents.get(one.id, one) is one]  # not one before, of the same identity
            parts.network.forget(own)
            try:
                with anyio.move_on_after(RELEASE_SEC, shield=True):
                    await parts.groups.withdraw(own)
            finally:
                parts.kept.keyring.give_back(one.id for one in identities if one.id not in self.agents)
            raise

    async def retire(self, agent: Agent, *, grace_sec: float | None = None) -> None:
        """End one agent, while the node and its other agents go on. It leaves discovery and claims nothing more at
        once; its handlers have the grace time (that of the node), then its tasks are handed back; `on_stop` is called.
        A second call returns at once. In a handler of the agent's own it does not wait for that one, but ends a call of
        `decide`. An agent that is still starting ends when its `on_start` has returned, without grace time.

        Raises:
            InvalidValue: It is not an agent of this node.
        """
        hosted = guarded(hosted_of, agent)
        if type(hosted) is Raised:  # it may have cleared its `__dict__`
            hosted = next((one for one in self.agents.values() if one.agent is agent), None)
        if type(hosted) is not Hosted or hosted.node is not self:
            raise InvalidValue("agent", f"one of {name_of(type(agent))}", "an agent of this node")
        if hosted.is_retired:
            return
        hosted.is_retired = True
        grace_sec = self.settings.grace_sec if grace_sec is None else grace_sec
        if self.agents.pop(hosted.id, None) is not None:
            await completed(partial(retire, self.parts, hosted, grace_sec))

    def _make(self, cls: type[Agent], kind: Kind, pools: tuple[str, ...], identity: Identity) -> Hosted:
        parts, own = self.parts, detached(cls)
        if type(own) is Raised:
            raise as_exception(own)
        health = AgentHealth(identity.id, kind.breaker, self.env)
        one = Hosted(agent=own, kind=kind, identity=identity, id=identity.id, node=self, pools=pools, health=health)
        host(own, one)
        if decides(cls):
            one.loop = DecideLoop(one, parts.boundary, parts.executor, parts.groups.supervision)
        return one

    def health(self) -> Health:
        """Return whether the node lives and is ready, and why not; from any thread, even while its loop is blocked."""
        return self.vitals.read()

    @property
    def feeds(self) -> Sequence[Feed]:
        """The feeds, one per group of agents that claim alike."""
        return tuple(self.parts.feeds.values())

    def agent(self, key: str, *, pool: str) -> AgentRef:
        """Return the virtual agent of this name, whose messages agents of the pool take that have `on_ask`.

        Raises:
            InvalidName: There cannot be one.
        """
        return AgentRef(self.parts.tasks, self.parts.handle, pool, key)

    async def send(
        self, to: str, payload: Any, *, sender: str | None = None, **options: Unpack[SendArguments]
    ) -> Receipt:
        """Send a message; return when it has got as far as asked.

        Args:
            to: An agent's id, or `Capability("x")`: any one agent that has it.
            payload: Plain data.
            sender: An agent of this node; None: the node itself.
            options: `ack`: return when the message is in the agent's inbox (`"accepted"`, the default), when its
                handler has returned (`"handled"`), or when it was handed to the connection (None). `timeout`: seconds
                after which it ends in an error (10). `mailbox`: store it, and return then; it waits for its recipient.
                `proof`: `"channel"`, or `"signed"`: the message itself is signed. `task_id`: the task that it is about.

        Raises:
            Undeliverable, Backpressure, DeliveryTimeout, HandlerFailed: It did not get so far; a typed error by the
            deadline (`timeout` seconds). InvalidName, InvalidValue, MessageTooLarge: It cannot be sent as asked.
            StoreError: It could not be stored.
        """
        post = (self._parts or self.parts).network.post
        return await post.send(sender or self.identity.id, to, payload, options_of(options))

    async def ask(
        self, to: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None, task_id: str = ""
    ) -> Any:
        """Send a message and return what the recipient's `on_message` returned.

        Raises:
            HandlerFailed: The recipient's handler raised.
            As `send`.
        """
        post = (self._parts or self.parts).network.post
        options = (
            DEFAULTS if timeout == DEFAULTS.timeout and not task_id else SendOptions(timeout=timeout, task_id=task_id)
        )
        return await post.ask(sender or self.identity.id, to, payload, options)

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
        """Stop claiming, let handlers end within the grace time, hand the rest back, end the lease. Idempotent.

        A handler must not await it: it would wait for itself until the grace time is over, and its task would go back.
        """
        if self._is_stopping:
            return
        parts = self.parts
        self._is_stopping = parts.watchdog.is_stopping = True
        self.vitals.stopping()
        self._host.observe("converge_node_stopping", node_id=parts.identity.id)
        grace_sec = self.settings.grace_sec if grace_sec is None else grace_sec
        if parts.boundary.background.shared.is_interrupted:
            grace_sec = 0.0
        stopping = Stopping(parts.handle, parts.network, parts.feeds, self.agents, parts.ticks, parts.boundary)
        await completed(partial(stopping.run, grace_sec))


def _only(error: BaseException) -> BaseException:
    """Return the single error inside nested exception groups; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
