"""Links: one secured connection to each node that this one talks to, dialled when first needed, or accepted."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import anyio

from converge.contracts.transport import Channel, Listener, Transport
from converge.env import Env
from converge.errors import ChannelError, ConnectFailed, ConnectionClosed, ConnectionLost, ConvergeError
from converge.machines import records
from converge.machines.records import Item
from converge.machines.secure import Terms
from converge.runtime.agents.background import Background
from converge.runtime.network.channel import SecureChannel, accept, dial
from converge.runtime.network.handshakes import Handshakes
from converge.services.messages.unsettled import Waiting

log = logging.getLogger("converge.link")

QUEUE_BYTES = 1_048_576
"""What waits to be sent on one link; past that a sender waits."""

OnItems = Callable[["Link", list[Item]], Awaitable[None]]


class Link:
    """A secured channel with a queue: items that are sent within one loop step leave in one record."""

    def __init__(self, secured: SecureChannel, on_items: OnItems) -> None:
        self.peer = secured.peer
        self.is_dialler = secured.is_dialler
        self.is_closed = False
        self.waiting: set[Waiting] = set()
        self._secured, self._on_items = secured, on_items
        self._queue: list[Item] = []
        self._size = 0
        self._filled, self._emptied = anyio.Event(), anyio.Event()
        self._scope = anyio.CancelScope()

    async def send(self, items: list[Item]) -> None:
        """Queue the items; wait while the queue is full.

        Raises:
            ConnectionLost: The link is over.
        """
        while self._size > QUEUE_BYTES and not self.is_closed:
            await self._emptied.wait()
        if self.is_closed:
            raise ConnectionLost("the connection to the peer is over")
        self._queue += items
        self._size += sum(len(body) for _, body in items)
        self._filled.set()

    async def run(self) -> None:
        """Send and receive until the connection ends; then everybody who waits for a receipt is told."""
        try:
            with self._scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._send_queued)
                    await self._receive()
        except* ConvergeError as errors:
            for error in errors.exceptions:
                log.info("the connection to node %s is over: %s", self.peer.hex()[:16], error)
        finally:
            self.is_closed = True
            self._emptied.set()
            for one in self.waiting:
                one.give_up()
            await self._secured.close(records.SHUTDOWN)

    async def _send_queued(self) -> None:
        while True:
            await self._filled.wait()
            self._filled = anyio.Event()
            items, self._queue, self._size = self._queue, [], 0
            self._emptied.set()
            self._emptied = anyio.Event()
            if items:
                await self._secured.send(items)

    async def _receive(self) -> None:
        while True:
            items = await self._secured.receive()
            pings = [(records.PONG, body) for kind, body in items if kind == records.PING]
            if pings:
                await self.send(pings)
            await self._on_items(self, items)

    def close(self) -> None:
        """End the link."""
        self._scope.cancel()


class Links:
    """The links of one node, by the other node's key."""

    def __init__(
        self,
        transport: Transport,
        terms: Terms,
        env: Env,
        background: Background,
        on_items: OnItems,
        *,
        greatest: int = 256,
    ) -> None:
        self._transport, self._terms, self._env, self._background = transport, terms, env, background
        self._on_items, self._greatest = on_items, greatest
        self._links: dict[bytes, Link] = {}
        self._dialling: dict[bytes | str, anyio.Lock] = {}
        self._at: dict[str, bytes] = {}  # endpoints that were dialled before it was known who is there
        self._handshakes = Handshakes(env)

    async def to(self, node_key: bytes, endpoints: Sequence[str]) -> Link:
        """Return the link to the node, dialling it if there is none.

        Raises:
            ConnectFailed, ChannelError: It cannot be reached, or another node answers.
        """
        link = self._links.get(node_key)
        if link is not None and not link.is_closed:
            return link
        lock = self._dialling.setdefault(node_key, anyio.Lock())
        try:
            async with lock:
                link = self._links.get(node_key)
                return link if link is not None and not link.is_closed else await self._dial(node_key, endpoints)
        finally:
            if not lock.statistics().tasks_waiting:
                self._dialling.pop(node_key, None)

    async def at(self, endpoint: str) -> Link:
        """Return the link to whichever node of the network is at the endpoint, dialling it if there is none.

        Raises:
            ConnectFailed, ChannelError: It cannot be reached, or is no node of the network.
        """
        lock = self._dialling.setdefault(endpoint, anyio.Lock())
        try:
            async with lock:
                link = self._links.get(self._at.get(endpoint, b""))
                if link is None or link.is_closed:
                    link = self._keep(await dial(await self._transport.connect(endpoint), self._terms, self._env))
                    self._at[endpoint] = link.peer
                return link
        finally:
            if not lock.statistics().tasks_waiting:
                self._dialling.pop(endpoint, None)

    async def _dial(self, node_key: bytes, endpoints: Sequence[str]) -> Link:
        if not endpoints:
            raise ConnectFailed("the node has no endpoint: it only dials others")
        failure: ChannelError | None = None
        for endpoint in endpoints:
            try:
                channel = await self._transport.connect(endpoint)
                return self._keep(await dial(channel, self._terms, self._env, expected=node_key))
            except ChannelError as error:
                failure = error
        assert failure is not None, "there was an endpoint"
        raise failure

    async def serve(self, listener: Listener) -> None:
        """Accept connections until cancelled."""
        while True:
            try:
                channel = await listener.accept()
            except ConnectionClosed:
                return
            address = channel.peer.rpartition(":")[0]
            if not self._handshakes.enter(address):
                await channel.close()
                continue
            self._background.errand(self._accept, channel, address)

    async def _accept(self, channel: Channel, address: str) -> None:
        try:
            secured = await accept(channel, self._terms, self._env, limits=self._handshakes)
        except ChannelError as error:
            log.warning("a connection from %s was refused: %s", channel.peer, error)
            return
        finally:
            self._handshakes.leave(address)
        if len(self._links) >= self._greatest and secured.peer not in self._links:
            await secured.close(records.LIMIT, "max_connections")
            return
        self._keep(secured)

    def _keep(self, secured: SecureChannel) -> Link:
        """Keep the connection as the link to its peer. If both sides have dialled, the one dialled by the lower node
        key stays.
        """
        link = Link(secured, self._on_items)
        old = self._links.get(link.peer)
        if old is not None and not old.is_closed and old.is_dialler != link.is_dialler:
            own_is_lower = self._terms.identity.public_key < link.peer
            if old.is_dialler == own_is_lower:
                self._background.errand(secured.close, records.DUPLICATE)
                return old
        if old is not None:
            old.close()
        self._links[link.peer] = link
        self._background.errand(self._run, link)
        return link

    async def _run(self, link: Link) -> None:
        try:
            await link.run()
        finally:
            if self._links.get(link.peer) is link:
                del self._links[link.peer]

    def __len__(self) -> int:
        return len(self._links)
