"""Groups: agents of one node that claim alike share a feed; what an agent may claim decides its group."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import anyio

from converge.errors import ConvergeError, InputError, LeaseEnded, PoolClosed, StoreError
from converge.foreign import tell
from converge.machines.match import Claimer
from converge.model.place import Found
from converge.runtime.agents.agent_log import agent_log
from converge.runtime.agents.hosted import Hosted
from converge.runtime.agents.supervision import Supervision
from converge.runtime.claiming.feed import Basis, Feed
from converge.runtime.claiming.slots import Why
from converge.services.pools import PoolManager, note_rest
from converge.services.tasks.claim import Claims, not_members

log = logging.getLogger("converge.node")

GroupKey = tuple[tuple[str, ...], Claimer]


class _Group(NamedTuple):
    """Agents with the same pools, capabilities, topics and types."""

    number: int
    feed: Feed
    claims: Claims
    agents: dict[str, Hosted]


class Groups:
    """The groups of one node. `describe` publishes what has changed of an agent; others read `feeds`."""

    def __init__(self, basis: Basis, pools: PoolManager, describe: Callable[[Hosted], Awaitable[None]]) -> None:
        self._basis, self._handle, self._boundary, self._pools = basis, basis.handle, basis.boundary, pools
        self._describe = describe
        self.feeds: dict[int, Feed] = {}
        self._number = 0
        self._groups: dict[GroupKey, _Group] = {}
        self._keys: dict[str, GroupKey] = {}  # agent: the group that it is in
        self._agents: dict[str, Hosted] = {}
        # Agent: the pools that it was started in or has joined, admitted or not.
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._secrets: dict[str, str] = {}
        # Agent: the slots that it has, if it has not all of them: none while it rests, one on trial.
        self._share: dict[str, int] = {}
        # Agent: handlers that run in slots which were taken away: they count against its concurrency.
        self._owed: dict[str, int] = {}
        # Agent: the number of its rest, or of what ended one; a rest whose number is another's gives it no slots.
        self._rests: dict[str, int] = {}
        self._rest_number = 0
        self._lock = anyio.Lock()
        self.supervision = Supervision(basis.env, self.rest, self.closed, self._ended)

    async def start(self, agents: Sequence[Hosted], pools: Sequence[str], secret: str | None) -> None:
        """Make the agents members of the pools; they claim nothing until `add`.

        Raises: As `PoolManager.join_many`.
        """
        for pool_id in pools:
            await self._pools.join_many([one.id for one in agents], pool_id, secret=secret)
            if secret is not None:
                self._secrets[pool_id] = secret

    async def withdraw(self, agents: Iterable[Hosted]) -> None:
        """End the memberships of agents that did not start, as far as the store can be reached; else the lease does."""
        with suppress(ConvergeError):
            for one in agents:
                for pool_id in self._wanted.pop(one.id, one.pools):
                    await self._pools.leave_pool(one.id, pool_id)

    def add(self, agents: Iterable[Hosted]) -> None:
        """Let the agents claim in their pools."""
        for one in agents:
            self._agents[one.id] = one
            self._wanted.setdefault(one.id, one.pools)
            self._place(one)

    def retire(self, agent: Hosted) -> None:
        """Remove an agent for good: it claims nothing more, and its running tasks continue."""
        self._rests.pop(agent.id, None)
        before = self._keys.pop(agent.id, None)
        if before is not None:
            self._take_out(agent, before)
        self._agents.pop(agent.id, None)

    def forget(self, agent: Hosted) -> None:
        """Keep nothing of an agent that has ended."""
        self.supervision.forget(agent)
        self._rests.pop(agent.id, None)
        self._share.pop(agent.id, None)

    def is_busy(self, agent: Hosted, own: Found | None) -> bool:
        """Return whether tasks of an agent that was taken out still run, but its `own`, whose handler asks."""
        return agent.id in self._owed and any(feed.slots.running_of(agent, own) for feed in self.feeds.values())

    def cancel_tasks(self, agent: Hosted, own: Found | None) -> int:
        """Cancel what still runs of an agent that was taken out, and hand it back; return how much that is."""
        return sum(feed.slots.cancel_of(agent, Why.STOPPING, own) for feed in self.feeds.values())

    async def join(self, agent: Hosted, pool_id: str, secret: str | None) -> bool:
        """Make the agent a member, and let it claim there; return whether it was none before.

        Raises: As `PoolManager.join_pool`.
        """
        async with self._lock:
            is_new = await self._pools.join_pool(agent.id, pool_id, secret=secret)
            if secret is not None:
                self._secrets[pool_id] = secret
            self._wanted[agent.id] = (
                *(one for one in self._wanted.get(agent.id, agent.pools) if one != pool_id),
                pool_id,
            )
            await self._change(agent, (*(one for one in agent.pools if one != pool_id), pool_id))
            return is_new

    async def leave(self, agent: Hosted, pool_id: str) -> bool:
        """End the membership; the agent claims nothing there any more. Return whether it was a member."""
        async with self._lock:
            was_member = await self._pools.leave_pool(agent.id, pool_id)
            self._wanted[agent.id] = tuple(one for one in self._wanted.get(agent.id, agent.pools) if one != pool_id)
            await self._change(agent, tuple(one for one in agent.pools if one != pool_id))
            return was_member

    async def rejoin(self) -> None:
        """Make all agents members again, under a new lease; those that are not admitted any more go without."""
        async with self._lock:
            by_pool: dict[str, list[str]] = {}
            for agent_id in self._agents:
                for pool_id in self._wanted[agent_id]:
                    by_pool.setdefault(pool_id, []).append(agent_id)
            for pool_id, agent_ids in by_pool.items():
                admitted = await self._join_admitted(pool_id, agent_ids)
                for agent_id in admitted:
                    agent = self._agents.get(agent_id)
                    if agent is None:  # it was retired meanwhile, and may have left before it was made a member
                        await self._pools.leave_pool(agent_id, pool_id)
                    elif pool_id not in agent.pools:
                        await self._change(agent, (*agent.pools, pool_id))

    async def _join_admitted(self, pool_id: str, agent_ids: list[str]) -> set[str]:
        secret = self._secrets.get(pool_id)
        try:
            try:
                await self._pools.join_many(agent_ids, pool_id, secret=secret)
            except PoolClosed:
                allow = set((await self._pools.get(pool_id)).allow)
                agent_ids = [one for one in agent_ids if one in allow]
                await self._pools.join_many(agent_ids, pool_id, secret=secret)
        except InputError as error:
            log.error("%d agents are members no longer: %s", len(agent_ids), error)
            return set()
        return set(agent_ids)

    def rest(self, agent: Hosted, rest_sec: float, is_trial: bool) -> None:
        """Keep the agent's slots idle for a while, so that others take the work; then use one, or all."""
        number = self._numbered(agent)
        self._set_share(agent, 0)
        self._boundary.background.errand(self._resume, agent, rest_sec, 1 if is_trial else agent.concurrency, number)
        if is_trial:
            self._boundary.background.errand(self._note_rest, agent, rest_sec)

    def closed(self, agent: Hosted) -> None:
        """Give the agent all its slots again."""
        self._numbered(agent)  # a rest that is about to end leads to no trial any more
        self._set_share(agent, agent.concurrency)
        self._boundary.background.errand(self._note_rest, agent, 0.0)

    def _numbered(self, agent: Hosted) -> int:
        self._rest_number += 1
        self._rests[agent.id] = self._rest_number
        return self._rest_number

    async def _note_rest(self, agent: Hosted, rest_sec: float) -> None:
        """Let listings show that the agent rests, or works again."""
        try:
            now = await self._handle.now()
            until = now + int(rest_sec * 1_000_000) if rest_sec else 0
            await note_rest(self._handle, agent.id, agent.pools, until)
        except (StoreError, LeaseEnded) as error:
            log.debug("listings do not show whether agent %s rests: %s", agent.id, error)

    async def _resume(self, agent: Hosted, rest_sec: float, share: int, number: int) -> None:
        await anyio.sleep(rest_sec)
        if self._rests.get(agent.id) == number:
            self._set_share(agent, share)

    def _set_share(self, agent: Hosted, share: int) -> None:
        before = self._slots_of(agent)
        self._share.pop(agent.id, None)
        if share < agent.concurrency:
            self._share[agent.id] = share
        group = self._groups.get(self._keys[agent.id]) if agent.id in self._keys else None
        if group is None:
            return
        group.feed.ahead.is_barred = not self._share.keys().isdisjoint(group.agents)
        if (count := self._slots_of(agent)) < before:
            self._owe(agent, group.feed.remove(agent))
            before, count = 0, self._slots_of(agent)
        if count > before:
            group.feed.add(agent, count - before)

    def _slots_of(self, agent: Hosted) -> int:
        """Return in how many slots it may begin something, so that it never runs more than its concurrency."""
        return max(
            0,
            min(self._share.get(agent.id, agent.concurrency), agent.concurrency - self._owed.get(agent.id, 0)),
        )

    def _owe(self, agent: Hosted, count: int) -> None:
        if count:
            self._owed[agent.id] = self._owed.get(agent.id, 0) + count

    def _ended(self, agent: Hosted) -> None:
        before = self._slots_of(agent)
        self._owed[agent.id] -= 1
        if not self._owed[agent.id]:
            del self._owed[agent.id]
        group = self._groups.get(self._keys[agent.id]) if agent.id in self._keys else None
        if group is not None and (count := self._slots_of(agent) - before):
            group.feed.add(agent, count)

    async def _change(self, agent: Hosted, pools: tuple[str, ...]) -> None:
        if pools != agent.pools:
            agent.pools = pools
            if agent.id not in self._agents:
                return  # it is still starting: `add` places it
            self._place(agent)
            try:
                await self._describe(agent)
            except ConvergeError as error:
                tell(
                    agent_log(agent),
                    logging.WARNING,
                    "discovery shows the agent in its old pools until its descriptor can be published: %s",
                    error,
                )

    def _place(self, agent: Hosted) -> None:
        """Put the agent into the group of its pools, if it claims tasks at all."""
        claimer = agent.kind.claimer
        key = (tuple(sorted(agent.pools)), claimer) if agent.pools and claimer is not None else None
        before = self._keys.pop(agent.id, None)
        if before is not None and before != key:
            self._take_out(agent, before)
        if key is None:
            return
        self._keys[agent.id] = key
        if before == key:
            return
        group = self._groups.get(key) or self._make(key, agent)
        group.agents[agent.id] = agent
        group.feed.ahead.is_barred = not self._share.keys().isdisjoint(group.agents)
        if count := self._slots_of(agent):
            group.feed.add(agent, count)

    def _take_out(self, agent: Hosted, key: GroupKey) -> None:
        group = self._groups[key]
        del group.agents[agent.id]
        group.feed.ahead.is_barred = not self._share.keys().isdisjoint(group.agents)
        self._owe(agent, group.feed.remove(agent))
        if not group.agents:
            del self._groups[key]
            self._boundary.background.errand(self._end, group)

    async def _end(self, group: _Group) -> None:
        """Let what runs in the group's slots end, and be told to the store; then nothing of the group is left."""
        await group.feed.drain()
        group.feed.end()
        del self.feeds[group.number]

    def _make(self, key: GroupKey, agent: Hosted) -> _Group:
        pools, claimer = key
        claims = Claims(self._handle, agent.id, pools, claimer, self._on_missing)
        feed = Feed(self._basis, claims, self.supervision)
        self._number += 1
        group = self._groups[key] = _Group(self._number, feed, claims, {})
        # As it is whenever it is asked: a copy for each agent that comes would cost the square of their number.
        claims.agent_ids = group.agents
        self.feeds[group.number] = feed
        feed.start()
        return group

    def _on_missing(self, pool_id: str, agent_ids: Sequence[str]) -> None:
        self._boundary.background.errand(self._drop, pool_id, agent_ids)

    async def _drop(self, pool_id: str, agent_ids: Sequence[str]) -> None:
        """Let agents that a pool admits no longer claim elsewhere only. After a lost lease `rejoin` does it."""
        async with self._lock:
            lease = self._handle.lease_opened
            if lease is None or lease.remaining_sec() <= 0:
                return
            try:
                missing = await not_members(self._handle.store, pool_id, agent_ids)
            except StoreError:
                return  # the feed looks again, and tells again
            for agent in (self._agents[one] for one in missing if one in self._agents):
                if pool_id in agent.pools:
                    tell(
                        agent_log(agent),
                        logging.ERROR,
                        'the pool "%s" does not admit this agent any more; it claims nothing there until it joins '
                        "again",
                        pool_id,
                    )
                    await self._change(agent, tuple(one for one in agent.pools if one != pool_id))
