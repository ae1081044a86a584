"""Fetching descriptors, each poll interval, from nodes of which only the endpoints are known; each is verified."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import anyio
import attrs
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
from converge.model.identity import node_name
from converge.runtime.network.links import Links
from converge.runtime.network.publishing import Announced
from converge.services.discovery.directory import Directory
from converge.services.messages.descriptors import Asking, PeerDescriptors
from converge.services.messages.under_way import Link

log = logging.getLogger("converge.fetch")

VERIFIED_A_TURN = 8
"""Descriptors verified before other tasks run: a millisecond of work."""

ASKERS = 1_000
"""Most nodes asked because they asked this one: as many as a list may name."""

ASKER_BYTES, ASKERS_BYTES = 16_777_216, 33_554_432
"""What the agents of one node that has asked may cost in memory here, and those of all: anybody may ask."""

NAME_BYTES = 512
"""What a topic, capability or pool of a descriptor costs in the index."""

STRANGER_REST_SEC = 0.004
"""Rest between turns for a node that nobody has listed: a quarter of the event loop is its."""

WAIT_SEC = 2.0
"""How long a round waits for the nodes of the list: those that answer later are listed later, and hold nobody up."""


class _Source:
    """A node that is asked: its last answer, the agents in it, and when it came."""

    def __init__(self, now: float) -> None:
        self.known: PeerDescriptors | None = None
        self.agents: set[str] = set()
        self.answered = self.asked = now
        self.is_failing = self.is_asked = self.is_left = False
        self.done = anyio.Event()
        self.cost = 0


@attrs.frozen(kw_only=True)
class Asked:
    """Who asks, and how: a node that does not answer for `patience_sec` is given up; `errand` starts questions."""

    env: Env
    node_id: str
    patience_sec: float
    errand: Callable[..., object]


class Fetcher:
    """Asks the nodes at the endpoints that are sighted, and back those that ask this node.

    A node that does not answer, or asks no more, is given up after `patience_sec`, as if its lease had ended.
    """

    def __init__(self, asked: Asked, announced: Announced, links: Links, directory: Directory) -> None:
        self.asking = Asking(asked.env, asked.node_id, announced, self._asked)
        self._own, self._directory, self._env = announced.endpoints, directory, asked.env
        self._links, self._patience_sec, self._errand = links, asked.patience_sec, asked.errand
        self._cost = 0  # of what those told that have asked
        self._endpoints: dict[str, _Source] = {}
        self._askers: dict[Link, _Source] = {}

    async def fetch(self, endpoints: Iterable[str]) -> None:
        """Ask the nodes at these endpoints, and no longer those at others; return when all have answered or failed."""
        self._want(endpoints)
        await self._ask_all()

    def _want(self, endpoints: Iterable[str]) -> None:
        wanted = dict.fromkeys(one for one in endpoints if one not in self._own)
        for endpoint in self._endpoints.keys() - wanted.keys():
            self._leave(self._endpoints.pop(endpoint))
        for endpoint in wanted:
            if endpoint not in self._endpoints:
                self._endpoints[endpoint] = _Source(self._env.monotonic())

    async def _ask_all(self) -> None:
        """Ask all, each once at a time; wait for those of the list, but for none too long."""
        old = self._env.monotonic() - self._patience_sec
        for link in [link for link, source in self._askers.items() if link.is_closed or source.asked < old]:
            self._leave(self._askers.pop(link))
        for link, source in self._askers.items():
            self._begin(f"node {node_name(link.peer)}", source, link)
        events = [self._begin(endpoint, source, None) for endpoint, source in self._endpoints.items()]
        with anyio.move_on_after(WAIT_SEC):
            for event in events:
                await event.wait()

    def _begin(self, name: str, source: _Source, link: Link | None) -> anyio.Event:
        """Ask a node, unless that is under way; the event is set when it has answered or failed."""
        if not source.is_asked:
            source.is_asked, source.done = True, anyio.Event()
            self._errand(self._try, name, source, link)
        return source.done

    def _asked(self, link: Link) -> None:
        if link in self._askers:
            self._askers[link].asked = self._env.monotonic()
        elif len(self._askers) < ASKERS:
            self._askers[link] = _Source(self._env.monotonic())

    async def _try(self, name: str, source: _Source, link: Link | None) -> None:
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
        finally:
            source.is_asked = False
            source.done.set()
            if source.is_left:  # while it told of its agents
                self._forget(source)

    async def _ask(self, source: _Source, link: Link, *, is_back: bool) -> None:
        most = ASKER_BYTES if is_back else None
        answer = await self.asking.ask(link, source.known, is_back=is_back, most_bytes=most)
        source.answered = self._env.monotonic()
        if answer is None:
            return
        seen: set[str] = set()
        self._cost -= source.cost if is_back else 0
        source.cost = 0
        for at, signed in enumerate(answer.signed):
            if at % VERIFIED_A_TURN == 0:
                await checkpoint()
                await (anyio.sleep(STRANGER_REST_SEC) if is_back else checkpoint())
            descriptor = self._descriptor_of(signed, link)
            if descriptor is not None and (not is_back or self._affords(source, descriptor, signed)):
                seen.add(descriptor.id)
                if self._directory.signed(descriptor.id) != signed:
                    self._directory.put(descriptor, signed)
        gone, source.agents, source.known = (
            source.agents - seen,
            seen,
            PeerDescriptors(life=answer.life, changes=answer.changes, signed=()),
        )
        self._drop(gone)

    def _affords(self, source: _Source, descriptor: AgentDescriptor, signed: bytes) -> bool:
        """Return whether there is room for one more agent of a node that nobody has listed."""
        names = len(descriptor.topics) + len(descriptor.capabilities) + len(descriptor.pools)
        cost = 2 * len(signed) + NAME_BYTES * (names + 1)
        if source.cost + cost > ASKER_BYTES or self._cost + cost > ASKERS_BYTES:
            return False
        source.cost += cost
        self._cost += cost
        return True

    def _descriptor_of(self, signed: bytes, link: Link) -> AgentDescriptor | None:
        try:
            descriptor = open_descriptor(signed, self._directory.network)
        except (BadSignature, InvalidKey, TornRecord, SchemaTooNew) as error:
            self._directory.refuse(f"a descriptor from node {node_name(link.peer)} was refused: {error}")
            return None
        if descriptor.node_key != link.peer.hex():
            self._directory.refuse(
                f"the descriptor of {descriptor.id:.16} was refused: node {node_name(link.peer)} lists it, and does "
                "not run it"
            )
            return None
        return descriptor

    def _leave(self, source: _Source) -> None:
        """Ask it no more."""
        source.is_left = True
        self._forget(source)

    def _forget(self, source: _Source) -> None:
        gone, source.agents, source.known = source.agents, set(), None
        if source in self._askers.values() or source not in self._endpoints.values():
            self._cost -= source.cost
        source.cost = 0
        self._drop(gone)

    def _drop(self, agent_ids: set[str]) -> None:
        """Forget these agents, except those that another node, or the same one at another endpoint, still lists."""
        for source in (*self._endpoints.values(), *self._askers.values()) if agent_ids else ():
            agent_ids = agent_ids - source.agents
        for agent_id in agent_ids:
            self._directory.drop(agent_id)
