"""The links of one node, by the other node's key: dialled when first needed, or accepted; watched while they live."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from itertools import count
from typing import Protocol

import anyio
import attrs
from anyio.lowlevel import checkpoint

from converge.contracts.transport import Channel, Listener
from converge.env import Env
from converge.errors import ChannelError, ConnectionClosed
from converge.machines import records
from converge.machines.secure import Terms
from converge.model.identity import node_name
from converge.net.hosts import source_of
from converge.net.throttle import Throttle, snake
from converge.runtime.agents.background import Background
from converge.runtime.network.channel import SecureChannel, accept, dial
from converge.runtime.network.dials import Dial, Dials
from converge.runtime.network.handshakes import Handshakes, Place
from converge.runtime.network.link import WRITE_SEC, Link, OnItems

log = logging.getLogger("converge.link")

ACCEPTED_A_TURN = 4
"""Connections that are accepted before others have their turn: with what each goes on with, a millisecond of work."""

WATCH_SEC = 1.0
"""How often links are looked at."""

PING_SEC, SILENT_SEC = 20.0, 60.0
"""A peer that has said nothing for so long is asked whether it is there; one that says nothing at all is gone."""

AGE_SEC = 86_400.0
"""How old a connection becomes, give or take a tenth, before its dialler makes another with fresh keys."""

AGE_GRACE = 1.2
"""Times `AGE_SEC`: who was dialled ends a connection that its dialler has not replaced."""

IDLE_SEC = 1.0
"""A connection unused for so long gives its place up to another, where places run short."""

REPLACED, REPLACED_SEC = 3, 60.0
"""Times that a link may be replaced under one key within this time; past that two processes share the key."""


class Connects(Protocol):
    """Dials addresses: a transport, or several as one."""

    async def connect(self, address: str) -> Channel: ...


class Standing(Enum):
    """What is known of a peer."""

    STRANGER = "stranger"  # nothing is listed of its node
    LISTED = "listed"
    LISTENS_NOWHERE = "listens nowhere"  # listed, and reached only over a connection that it made itself


@attrs.frozen(kw_only=True)
class Bounds:
    """`greatest`: links at a time. `standing`: what is known of a peer, by its node key."""

    greatest: int = 256
    standing: Callable[[bytes], Standing] = lambda key: Standing.STRANGER


class Links:
    """The links of one node, by the other node's key."""

    def __init__(
        self,
        transport: Connects,
        terms: Terms,
        env: Env,
        background: Background,
        on_items: OnItems,
        bounds: Bounds = Bounds(),  # frozen
    ) -> None:
        self._terms, self._env, self._background = terms, env, background
        self._on_items, self._bounds = on_items, bounds
        self._links: dict[bytes, Link] = {}
        self._at: dict[str, bytes] = {}  # endpoints that were dialled before it was known who is there
        self._replaced: dict[bytes, list[float]] = {}
        self._handshakes = Handshakes(env)
        self.quietly = Throttle(log, env.monotonic)
        self._dials = Dials(transport.connect, self._secure, self._keep_dialled, background, env)

    def open(self, node_key: bytes) -> Link | None:
        """Return the link to the node, if there is one."""
        link = self._links.get(node_key)
        return link if link is not None and not link.is_closed else None

    def all(self) -> list[Link]:
        """Return the links that are open."""
        return [link for link in self._links.values() if not link.is_closed]

    async def to(self, node_key: bytes, endpoints: Sequence[str]) -> Link:
        """Return the link to the node, dialling it if there is none. The dial is the links': it goes on when the
        caller is cancelled, and any link to the node ends the wait.

        Raises:
            ConnectFailed, ChannelError: It cannot be reached, or another node answers.
        """
        link = self.open(node_key)
        while link is None:
            await self._dials.wait(node_key, endpoints)
            link = self.open(node_key)
        return link

    def failure(self, node_key: bytes) -> ChannelError | None:
        """Return why the node was not reached by the last dial, or that it takes long; None: neither is so."""
        return self._dials.failure(node_key)

    def is_dialling(self, node_key: bytes) -> bool:
        """Return whether the node is being dialled."""
        return self._dials.is_under_way(node_key)

    async def at(self, endpoint: str) -> Link:
        """Return the link to whichever node of the network is at the endpoint, dialling it if there is none.

        Raises:
            ConnectFailed, ChannelError: It cannot be reached, or is no node of the network.
        """
        link = self.open(self._at.get(endpoint, b""))
        while link is None:
            await self._dials.wait(endpoint, (endpoint,))
            link = self.open(self._at.get(endpoint, b""))
        return link

    async def _secure(self, channel: Channel, whom: bytes | str) -> SecureChannel:
        expected = whom if isinstance(whom, bytes) else None
        return await dial(channel, self._terms, self._env, expected=expected)

    def _keep_dialled(self, one: Dial, endpoint: str, secured: SecureChannel) -> None:
        if isinstance(one.whom, str):
            self._at[one.whom] = secured.peer
        link = Link(secured, self._on_items, self._env.monotonic)
        old = self.open(link.peer)
        # Both sides have dialled while neither knew of the other's dial: the one dialled by the lower node key stays.
        is_tie = old is not None and not old.is_dialler and old.born_at >= one.began
        if is_tie and not self._is_lower(link.peer):
            self._refuse(secured, records.DUPLICATE)
        else:
            link.endpoint = endpoint
            self._begin(link)

    async def serve(self, listener: Listener) -> None:
        """Accept connections until cancelled."""
        for number in count(1):
            try:
                channel = await listener.accept()
            except ConnectionClosed:
                return
            address = source_of(channel.peer)
            place = self._handshakes.enter(address)
            if place is None:
                text = "connections from %s are closed: too many are unfinished"
                self.quietly.refused("crowded", address, text, address)
                self._background.errand(channel.close)
            else:
                self._background.errand(self._accept, channel, place)
            if number % ACCEPTED_A_TURN == 0:  # a crowd that waits in the kernel is accepted without any other pause
                await checkpoint()

    async def _accept(self, channel: Channel, place: Place) -> None:
        secured: SecureChannel | None = None
        began = self._env.monotonic()
        try:
            with place.scope:
                secured = await accept(
                    channel, self._terms, self._env, admit=lambda: self._handshakes.admit_hello(place)
                )
        except ChannelError as error:
            kind = type(error).__name__
            text = "a connection from %s was refused: %s"
            self.quietly.refused(snake(kind), place.address + kind, text, place.address, error)
        finally:
            self._handshakes.leave(place, is_proven=secured is not None)
        if secured is not None:
            self._keep_accepted(secured, began)

    def _keep_accepted(self, secured: SecureChannel, began: float) -> None:
        """Keep an accepted connection: who has just proven the key replaces an older link, which may be dead.

        Unless the own dial to the key was unfinished when its hello came: then the connection dialled by the lower
        node key stays, for both sides.
        """
        old = self.open(secured.peer)
        if old is not None and old.is_dialler and old.born_at >= began and self._is_lower(secured.peer):
            self._refuse(secured, records.DUPLICATE)
        elif old is not None and self._is_replaced_too_often(secured.peer):
            key = node_name(secured.peer)
            self.quietly.refused("shared_key", key, "two processes share the key of node %s: the older link stays", key)
            self._refuse(secured, records.DUPLICATE, "two processes share a key")
        elif old is None and len(self._links) >= self._bounds.greatest and not self._evict():
            text = "a connection was refused: max_connections (%d) are in use"
            self.quietly.refused("max_connections", "", text, len(self._links))
            self._refuse(secured, records.LIMIT, "max_connections")
        else:
            if not self._is_lower(secured.peer):
                self._dials.cancel(secured.peer)  # the other side would refuse it
            self._begin(Link(secured, self._on_items, self._env.monotonic))

    def _is_lower(self, peer: bytes) -> bool:
        return self._terms.identity.public_key < peer

    def _refuse(self, secured: SecureChannel, reason: int, text: str = "") -> None:
        self._background.errand(secured.close, reason, text)

    def _is_replaced_too_often(self, peer: bytes) -> bool:
        now = self._env.monotonic()
        times = [at for at in self._replaced.get(peer, ()) if now - at < REPLACED_SEC]
        if len(times) < REPLACED:
            times.append(now)
            self._replaced[peer] = times
            return False
        return True

    def _begin(self, link: Link) -> None:
        old = self._links.get(link.peer)
        self._links[link.peer] = link
        if old is not None:
            old.end(records.DUPLICATE)
        self._dials.reached(link.peer)
        self._background.errand(self._run, link)

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self._links.get(link.peer) is link:
                del self._links[link.peer]
            self._at = {endpoint: peer for endpoint, peer in self._at.items() if peer in self._links}

    def _evict(self) -> bool:
        """End the least needed link: a stranger's, from the most crowded address, else one unused for long."""
        now = self._env.monotonic()
        idle = [link for link in self.all() if link.is_idle and now - link.used_at >= IDLE_SEC]
        ranks = {link: self._bounds.standing(link.peer) for link in idle}
        crowds: dict[str, int] = {}
        for link in self._links.values():
            address = source_of(link.address)
            crowds[address] = crowds.get(address, 0) + 1
        evictable = [link for link in idle if ranks[link] is not Standing.LISTENS_NOWHERE]
        if not evictable:
            return False
        victim = max(
            evictable,
            key=lambda link: (
                ranks[link] is Standing.STRANGER,
                crowds[source_of(link.address)] if ranks[link] is Standing.STRANGER else 0,
                now - link.used_at,
            ),
        )
        victim.end(records.IDLE, "its place is needed")
        self._links.pop(victim.peer, None)
        return True

    async def watch(self) -> None:
        """Ping silent peers, break dead links, and renew old ones; until cancelled."""
        while True:
            await anyio.sleep(WATCH_SEC)
            now = self._env.monotonic()
            for link in self.all():
                self._look_at(link, now)
            for peer in [peer for peer, times in self._replaced.items() if now - times[-1] > REPLACED_SEC]:
                del self._replaced[peer]

    def _look_at(self, link: Link, now: float) -> None:
        if now - link.writing_since > WRITE_SEC:
            link.end(records.LIMIT, f"the peer has not taken what was written within {WRITE_SEC:g} s")
        elif now - link.heard_at > SILENT_SEC:
            link.end(records.IDLE, f"the peer has said nothing for {SILENT_SEC:g} s")
        elif now - max(link.heard_at, link.pinged_at) > PING_SEC:
            link.pinged_at = now
            link.post([(records.PING, b"")])
        elif link.endpoint and now - link.born_at > AGE_SEC * (0.9 + 0.2 * link.peer[0] / 255):
            self._dials.begin(link.peer, (link.endpoint,))
        elif now - link.born_at > AGE_SEC * AGE_GRACE:
            link.end(records.AGE, "the connection is a day old")

    def __len__(self) -> int:
        return len(self._links)
