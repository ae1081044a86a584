"""Fetching descriptors from nodes that discovery knows by their endpoints only, each poll interval; what verifies goes
into the directory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import anyio
from anyio.lowlevel import checkpoint

from converge.env import Env
from converge.errors import (
    BadSignature,
    ChannelError,
    InvalidKey,
    MessageError,
    PeerMismatch,
    SchemaTooNew,
    StoreError,
    TornRecord,
)
from converge.model.descriptor import AgentDescriptor, open_descriptor
from converge.runtime.network.link import Links
from converge.runtime.network.publishing import Announced
from converge.services.discovery.directory import Directory
from converge.services.messages.descriptors import Asking, PeerDescriptors
from converge.services.messages.unsettled import Link

log = logging.getLogger("converge.fetch")

VERIFIED_A_TURN = 64
"""Descriptors verified before other tasks run: some milliseconds of work."""

ASKERS = 1_000
"""Most nodes asked because they asked this one: as many as a list may name."""


class _Source:
    """A node that is asked: its last answer, the agents in it, and when it came."""

    def __init__(self, now: float) -> None:
        self.known: PeerDescriptors | None = None
        self.agents: set[str] = set()
        self.answered = self.asked = now
        self.is_failing = False
        self.lock = anyio.Lock()


class Fetcher:
    """Asks the nodes at the endpoints that are sighted, and back those that ask this node.

    A node that does not answer, or asks no more, is given up after `patience_sec`: its agents are listed no longer, as
    if their lease had ended.
    """

    def __init__(
        self, env: Env, node_id: str, announced: Announced, links: Links, directory: Directory, *, patience_sec: float
    ) -> None:
        self.asking = Asking(env, node_id, announced, self._asked)
        self._own, self._directory, self._env = announced.endpoints, directory, env
        self._links, self._patience_sec = links, patience_sec
        self._endpoints: dict[str, _Source] = {}
        self._askers: dict[Link, _Source] = {}

    async def fetch(self, endpoints: Iterable[str]) -> None:
        """Ask the nodes at these endpoints, and no longer those at others; return when all have answered or failed."""
        self._want(endpoints)
        await self._ask_all()

    def _want(self, endpoints: Iterable[str]) -> None:
        wanted = dict.fromkeys(one for one in endpoints if one not in self._own)
        for endpoint in self._endpoints.keys() - wanted.keys():
            self._forget(self._endpoints.pop(endpoint))
        for endpoint in wanted:
            if endpoint not in self._endpoints:
                self._endpoints[endpoint] = _Source(self._env.monotonic())

    async def _ask_all(self) -> None:
        """Ask all, each at most once at a time."""
        old = self._env.monotonic() - self._patience_sec
        for link in [link for link, source in self._askers.items() if link.is_closed or source.asked < old]:
            self._forget(self._askers.pop(link))
        async with anyio.create_task_group() as group:
            for endpoint, source in self._endpoints.items():
                group.start_soon(self._try, endpoint, source, None)
            for link, source in self._askers.items():
                group.start_soon(self._try, f"node {link.peer.hex()[:16]}", source, link)

    def _asked(self, link: Link) -> None:
        if link in self._askers:
            self._askers[link].asked = self._env.monotonic()
        elif len(self._askers) < ASKERS:
            self._askers[link] = _Source(self._env.monotonic())

    async def _try(self, name: str, source: _Source, link: Link | None) -> None:
        began = self._env.monotonic()
        async with source.lock:
            if source.answered > began:
                return  # somebody else has asked meanwhile
            try:
                await self._ask(source, link or await self._links.at(name), is_back=link is not None)
            except PeerMismatch as error:  # most often this node itself, which stands in the list that all nodes share
                log.debug("%s is not asked for agents: %s", name, error)
            except (ChannelError, MessageError, StoreError) as error:
                if not source.is_failing:
                    log.warning("%s does not tell of its agents; it is asked again: %s", name, error)
                source.is_failing = True
                if self._env.monotonic() - source.answered > self._patience_sec:
                    self._forget(source)
            else:
                if source.is_failing:
                    log.info("%s lists its agents again", name)
                source.is_failing = False

    async def _ask(self, source: _Source, link: Link, *, is_back: bool) -> None:
        answer = await self.asking.ask(link, source.known, is_back=is_back)
        source.answered = self._env.monotonic()
        if answer is None:
            return
        seen: set[str] = set()
        for at, signed in enumerate(answer.signed):
            if at % VERIFIED_A_TURN == 0:
                await checkpoint()
            descriptor = self._descriptor_of(signed, link)
            if descriptor is not None:
                seen.add(descriptor.id)
                if self._directory.signed(descriptor.id) != signed:
                    self._directory.put(descriptor, signed)
        gone, source.agents, source.known = (
            source.agents - seen,
            seen,
            PeerDescriptors(life=answer.life, changes=answer.changes, signed=()),
        )
        self._drop(gone)

    def _descriptor_of(self, signed: bytes, link: Link) -> AgentDescriptor | None:
        try:
            descriptor = open_descriptor(signed, self._directory.network)
        except (BadSignature, InvalidKey, TornRecord, SchemaTooNew) as error:
            self._directory.refuse(f"a descriptor from node {link.peer.hex()[:16]} was refused: {error}")
            return None
        if descriptor.node_key != link.peer.hex():
            self._directory.refuse(
                f"the descriptor of {descriptor.id:.16} was refused: node {link.peer.hex()[:16]} lists it, and does "
                "not run it"
            )
            return None
        return descriptor

    def _forget(self, source: _Source) -> None:
        gone, source.agents, source.known = source.agents, set(), None
        self._drop(gone)

    def _drop(self, agent_ids: set[str]) -> None:
        """Forget these agents, except those that another node, or the same one at another endpoint, still lists."""
        for source in (*self._endpoints.values(), *self._askers.values()) if agent_ids else ():
            agent_ids = agent_ids - source.agents
        for agent_id in agent_ids:
            self._directory.drop(agent_id)
