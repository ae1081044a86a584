"""The node: one process's store, lease, agents and feeds, and its endpoint where it has one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from math import inf
from types import TracebackType
from typing import Any, TypedDict, Unpack

import anyio
import attrs
from anyio.abc import TaskGroup

from converge.contracts.store import Batch, Range, Store
from converge.env import SYSTEM, Env
from converge.errors import ConvergeError, InputError, InvalidValue, LeaseEnded, StoreError, Unsupported
from converge.machines.match import Claimer
from converge.machines.task import Completed, Event, Failed, Found, Released
from converge.model.identity import Identity
from converge.model.keys import NOTICE
from converge.model.message import Receipt
from converge.model.pool import Pool
from converge.plugins import PluginHost
from converge.runtime.agent import Agent, check_agent_class, claimer_of, claims_tasks, is_async
from converge.runtime.config import like, stall_problem, stall_sec_of
from converge.runtime.feed import Feed, Observers
from converge.runtime.network import Network, NetworkSettings, choose
from converge.runtime.reaper import Reaper
from converge.runtime.slots import Why
from converge.services.claims import Claims
from converge.services.lease import Lease, LeaseSettings
from converge.services.opened import Opened
from converge.services.opening import open_store
from converge.services.pools import PoolManager
from converge.services.spec import to_task
from converge.services.tasks import TaskManager
from converge.settings import Problem, raise_problems, structured

log = logging.getLogger("converge.node")

TICK_GREATEST_SEC = 0.5
"""How often the watchdog looks at the lease: often enough that handlers stop well within the lease's margin."""

RELEASE_SEC = 2.0
"""How long each step of a stop may wait for the store (take descriptors back, hand claims back, end the lease); what is left ends with the lease."""

ON_STOP_SEC = 1.0
"""What agents have for `on_stop` where the handlers have used up the grace time."""

JOIN_AGAIN_SEC = 1.0
"""Between tries to open another lease while the store is away."""


@attrs.frozen(kw_only=True)
class NodeSettings:
    """What a node is made of; `docs/reference/config.md` says what each means. Their bounds are those of the configuration."""

    store: str = "memory:"
    transport: str = ""
    discovery: str = "store"
    plugins: tuple[str, ...] = attrs.field(default=(), converter=tuple)
    network: str = like("network")
    advertise: str = ""
    lease_sec: float = like("lease_sec")
    stall_sec: float = like("stall_sec")
    grace_sec: float = like("grace_sec")
    poll_sec: float = like("poll_sec")
    max_connections: int = like("max_connections")
    require_durability: str = ""
    options: dict[str, Any] = attrs.field(factory=dict)

    @classmethod
    def of(cls, store: object, settings: Mapping[str, Any]) -> NodeSettings:
        """Return the settings of a node's keyword arguments.

        Raises:
            UnknownSetting, ConfigError: All problems at once; an unknown name with the nearest.
        """
        made = structured(cls, {"store": store, **settings}, "Node")
        if "stall_sec" not in settings:
            made = attrs.evolve(made, stall_sec=stall_sec_of(made.lease_sec))
        if text := stall_problem(made.stall_sec, made.lease_sec):
            raise_problems([Problem("stall_sec", text)], "Node")
        return made


class NodeArguments(TypedDict, total=False):
    """The keyword arguments of a node, for type checkers: the attributes of `NodeSettings`, but the store."""

    transport: str
    discovery: str
    plugins: Sequence[str]
    network: str
    advertise: str
    lease_sec: float
    stall_sec: float
    grace_sec: float
    poll_sec: float
    max_connections: int
    require_durability: str
    options: Mapping[str, Any]


class Node:
    """One process of the network. Entered with `async with`, it opens the store and, if a transport is named, listens; leaving it stops everything.

    Its keyword arguments are the attributes of `NodeSettings`; a store that is open already may be given in place of a URL, and is not closed.

    Raises:
        ConfigError: An argument is not known, or outside its bounds: all that are.
    """

    def __init__(self, *, store: str | Store = "memory:", env: Env = SYSTEM, **settings: Unpack[NodeArguments]) -> None:
        self._given = store if isinstance(store, Store) else None
        self.settings = NodeSettings.of("" if self._given is not None else store, settings)
        self.env = env
        self.agents: dict[str, Agent] = {}
        self.identity = Identity.generate(env.entropy)
        self._stack = AsyncExitStack()
        self._feeds: dict[tuple[tuple[str, ...], Claimer], Feed] = {}
        self._stopping: bool = False
        self._lease_lost = anyio.Event()
        self._host = PluginHost(self.settings.plugins)

    async def __aenter__(self) -> Node:
        try:
            await self._start()
        except BaseExceptionGroup as group:
            raise _only(group) from None
        self._host.observe("converge_node_started", node_id=self.identity.id)
        return self

    async def _start(self) -> None:
        network = self._network_settings()
        chosen = choose(network, self._host)  # before the store is opened: a mistyped transport must not touch a shared store
        async with AsyncExitStack() as stack:
            self.store = self._given if self._given is not None else await stack.enter_async_context(self._open_store())
            lease = LeaseSettings(lease_sec=self.settings.lease_sec, stall_sec=self.settings.stall_sec, node_key=self.identity.public_key.hex())
            self.opened = Opened.of(self.store, self.env, lease)
            self.pools = PoolManager(self.store)
            self.tasks = TaskManager(self.store, poll_sec=self.settings.poll_sec)
            stack.push_async_callback(self.opened.close)  # also of a start that fails: a lease that nobody ends would be renewed for ever
            self._group: TaskGroup = await stack.enter_async_context(anyio.create_task_group())
            stack.push_async_callback(self._cancel_group)
            self.network = Network(self.opened, self.identity, self.env, self._group, network, self._host, chosen)
            await stack.enter_async_context(self.network.running())
            self.discovery, self.registry = self.network.discovery, self.network.registry
            await self.network.add_node()
            self._group.start_soon(Reaper(self.opened, self.settings.poll_sec).run)
            self._group.start_soon(self._watchdog)
            self._group.start_soon(self._keep_joined)
            self._group.start_soon(self._follow_notices)
            self._stack = stack.pop_all()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        try:
            return await self._end(kind, error, trace)
        except BaseExceptionGroup as group:
            if (one := _only(group)) is error:
                return False  # the block's own error goes on as it is, so that `except ConvergeError` around the block catches it
            raise one from None

    async def _end(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool | None:
        try:
            await self.stop()
        finally:
            is_handled = await self._stack.__aexit__(kind, error, trace)
            self.opened.hurry(inf)  # a store that was given is used on by others
        return is_handled

    def _open_store(self) -> AbstractAsyncContextManager[Store]:
        one = self.settings
        return open_store(one.store, plugins=self._host, network=one.network, options=one.options, require_durability=one.require_durability)

    def _network_settings(self) -> NetworkSettings:
        one = self.settings
        return NetworkSettings(
            network=one.network,
            store=one.store,
            transport=one.transport,
            discovery=one.discovery,
            advertise=one.advertise,
            poll_sec=one.poll_sec,
            max_connections=one.max_connections,
            options=one.options,
        )

    async def _cancel_group(self) -> None:
        self._group.cancel_scope.cancel()

    async def spawn(self, agent: type[Agent], count: int = 1, pool: str | Sequence[str] | None = None) -> list[Agent]:
        """Start `count` agents of the class in the pool, several pools, or none (messages only); create pools that are missing.

        Raises:
            InvalidValue, InvalidName, Unsupported: The class, the count or the pool cannot be used; nothing was started.
            PoolClosed: A pool does not admit them.
        """
        check_agent_class(agent)
        if type(count) is not int or count < 1:
            raise InvalidValue("count", count, "an integer, at least 1")
        pools = (pool,) if isinstance(pool, str) else tuple(pool or ())
        for pool_id in pools:
            await self.pools.create_pool(Pool(id=pool_id))
        agents = [self._make(agent, pools) for _ in range(count)]
        for pool_id in pools:
            await self.pools.join_many([one.id for one in agents], pool_id)
        for one in agents:
            await _call(one.on_start)
            self.agents[one.id] = one
        await self.network.add(agents)
        # From here on the loop is watched: the first handler may block it before the watchdog has had its first turn.
        (await self.opened.lease()).beat()
        if pools and claims_tasks(agent):
            feed = self._feed(pools, claimer_of(agent), agents[0].id)
            for one in agents:
                feed.add(one)
        return agents

    def _make(self, cls: type[Agent], pools: tuple[str, ...]) -> Agent:
        one = cls()
        one.identity = Identity.generate(self.env.entropy)
        one.id, one.node, one.pools = one.identity.id, self, pools
        one.log = logging.LoggerAdapter(logging.getLogger(f"converge.agent.{cls.__name__}"), {"agent": one.id})
        return one

    def _feed(self, pools: tuple[str, ...], claimer: Claimer, agent_id: str) -> Feed:
        feed = self._feeds.get((pools, claimer))
        if feed is None:
            claims = Claims(self.opened, agent_id, pools, claimer)
            feed = self._feeds[pools, claimer] = Feed(self.opened, claims, self.env, self._group, self.settings.poll_sec, self._observers())
            feed.start()
        return feed

    def _observers(self) -> Observers:
        """Return what calls the plugins that observe attempts; a task is made for them only where there are any."""

        def finished(found: Found, event: Event) -> None:
            if isinstance(event, Completed | Failed | Released):
                task = to_task(found.id, found.spec, found.state, found.place, by=event.by)
                self._host.observe("converge_task_finished", task=task, outcome=type(event).__name__.lower())

        return Observers(
            (lambda task: self._host.observe("converge_task_claimed", task=task)) if self._host.has("converge_task_claimed") else None,
            finished if self._host.has("converge_task_finished") else None,
        )

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
    ) -> Receipt:
        """Send a message to an agent by id; return when it is in the agent's inbox. `sender`: an agent of this node; None: the node itself.

        Raises:
            Undeliverable, Backpressure, DeliveryTimeout: It did not arrive; a typed error by the deadline (`timeout` seconds), whatever happens.
            InvalidName, InvalidValue, MessageTooLarge: It cannot be sent as asked.
            Unsupported: This release has neither mailboxes nor messages signed by their sender, and no other level than `accepted`.
        """
        if mailbox:
            raise Unsupported("mailbox=True: this release has no mailboxes; submit a task for the agent's pool instead")
        if proof != "channel":
            raise Unsupported(f'proof={proof!r}: this release has proof="channel" only: the sender is verified by its node\'s channel')
        return await self.network.post.send(sender or self.identity.id, to, payload, ack=ack, timeout=timeout)

    async def ask(self, to: str, payload: Any, *, timeout: float = 10.0, sender: str | None = None) -> Any:
        """Send a message and return what the recipient's `on_message` returned.

        Raises:
            HandlerFailed: The recipient's handler raised.
            As `send`.
        """
        return await self.network.post.ask(sender or self.identity.id, to, payload, timeout=timeout)

    async def stop(self, *, grace_sec: float | None = None) -> None:
        """Stop claiming, let handlers end within the grace time, hand the rest back, end the lease. A second call returns at once."""
        if self._stopping:
            return
        self._stopping = True
        self._host.observe("converge_node_stopping", node_id=self.identity.id)
        grace_sec = self.settings.grace_sec if grace_sec is None else grace_sec
        with anyio.CancelScope(shield=True):
            self.opened.hurry(RELEASE_SEC)
            with anyio.move_on_after(RELEASE_SEC):
                await self._withdraw()
            drained_by = anyio.current_time() + grace_sec
            await self._drain(grace_sec)
            with anyio.move_on_after(max(ON_STOP_SEC, drained_by - anyio.current_time())) as scope:
                for one in self.agents.values():
                    await _call_logged(one.on_stop, one)
            if scope.cancelled_caught:
                log.warning("on_stop did not return in time; the node ends without it")
            with anyio.move_on_after(RELEASE_SEC):
                await self._end_lease()

    async def _withdraw(self) -> None:
        try:
            await self.network.withdraw()
        except (StoreError, LeaseEnded) as error:
            log.warning("the agents' descriptors could not be withdrawn, they end with the lease: %s", error)

    async def _drain(self, grace_sec: float) -> None:
        async with anyio.create_task_group() as group:
            for feed in self.feeds:
                group.start_soon(self._drain_feed, feed, grace_sec)

    async def _drain_feed(self, feed: Feed, grace_sec: float) -> None:
        feed.hand_back()
        with anyio.move_on_after(grace_sec):
            await feed.drain()
            return
        feed.hand_back()  # what came meanwhile and was not begun
        log.warning("%d tasks did not end within %.0f s; they are handed back", feed.slots.cancel(Why.STOPPING), grace_sec)
        with anyio.move_on_after(RELEASE_SEC):
            await feed.drain()

    async def _end_lease(self) -> None:
        """End the lease and sweep up what it leaves, so that others see no agent, no membership and no claim of this node."""
        sweep = Reaper(self.opened, self.settings.poll_sec).sweep
        try:
            lease = self.opened.lease_opened
            await self.opened.close()
            while lease is not None and await sweep.put_back():
                pass
        except StoreError as error:
            log.warning("the lease could not be ended in the store, it will end by itself: %s", error)

    async def _watchdog(self) -> None:
        """Beat for the lease, stop handlers when it is lost, end what runs too long. It never waits for the store, which may be silent."""
        lost: Lease | None = None
        while True:
            lease = self.opened.lease_opened
            if lease is not None:
                lease.beat()
                if lease is not lost and lease.remaining_sec() <= 0 and not self._stopping:
                    lost = lease
                    self._lost(lease)
            due = [at for at in (feed.slots.cancel_timed_out() for feed in self.feeds) if at is not None]
            tick_sec = min(TICK_GREATEST_SEC, self.settings.lease_sec / 20)
            if due:
                tick_sec = min(tick_sec, max(0.005, min(due) - self.env.monotonic()))
            await anyio.sleep(tick_sec)

    def _lost(self, lease: Lease) -> None:
        log.error("the lease was lost (%s): handlers are cancelled, what they held goes back", lease.why_ended or "renewals did not reach the store")
        for feed in self.feeds:
            feed.lost()
        self._lease_lost.set()

    async def _keep_joined(self) -> None:
        """After a lost lease open another, and put memberships and descriptors under it, however long the store is away."""
        while True:
            await self._lease_lost.wait()
            self._lease_lost = anyio.Event()
            is_joined = False
            while not is_joined and not self._stopping:
                try:
                    lease = self.opened.lease_opened
                    if lease is not None and lease.remaining_sec() <= 0:
                        await self.opened.forget_lease(lease)
                    await self._join_again()
                    is_joined = True
                except ConvergeError as error:
                    log.warning("agents are not listed until the store takes them again: %s", error)
                    await anyio.sleep(min(JOIN_AGAIN_SEC, self.settings.poll_sec))

    async def _follow_notices(self) -> None:
        """Hear of cancelled claims, at the latest with every renewal."""
        while True:
            lease = self.opened.lease_opened
            if lease is not None and lease.remaining_sec() > 0:
                await self._read_notices(lease)
            await anyio.sleep(self.settings.lease_sec / 3)

    async def _join_again(self) -> None:
        """Open another lease, and put memberships and descriptors under it."""
        by_pool: dict[str, list[str]] = {}
        for one in self.agents.values():
            for pool_id in one.pools:
                by_pool.setdefault(pool_id, []).append(one.id)
        for pool_id, agent_ids in by_pool.items():
            try:
                await self.pools.join_many(agent_ids, pool_id)
            except InputError as error:
                log.error("%d agents are members no longer: %s", len(agent_ids), error)
        await self.network.publish_again()

    async def _read_notices(self, lease: Lease) -> None:
        try:
            (page,) = await self.store.scan([Range(NOTICE(lease.id), None, 200)])
            ids = {entry.key[2] for entry in page}
            if ids:
                for feed in self.feeds:
                    feed.slots.cancel(Why.CALLED_OFF, ids)
                await (await self.opened.commits()).commit([Batch((), (), [entry.key for entry in page])])
        except (StoreError, LeaseEnded) as error:
            log.warning("notices of cancelled tasks could not be read: %s", error)


async def _call(handler: Any) -> None:
    if is_async(handler):
        await handler()
    else:
        await anyio.to_thread.run_sync(handler, abandon_on_cancel=True)


async def _call_logged(handler: Any, agent: Agent) -> None:
    try:
        await _call(handler)
    except Exception:  # an agent's boundary: the others stop as they should
        agent.log.exception("on_stop failed")


def _only(error: BaseException) -> BaseException:
    """Return the one error that a group of task groups carries; a group of several stays as it is."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
