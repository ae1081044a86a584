"""What transports over sockets share: of several addresses of a host, the first that answers is used."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from converge.errors import ChannelError
from converge.threads import in_own_thread

STAGGER_SEC = 0.25
"""How long one way may take before the next is tried beside it (RFC 8305)."""

ADDRESSES = 8
"""Addresses of a name that are tried at most."""

Endpoint = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]
"""What `socket` takes: family and address."""

WayT = TypeVar("WayT")
EndT = TypeVar("EndT")


class Race(Generic[WayT, EndT]):
    """Tries several ways, each when the one before has failed or takes long, and keeps the first that works.

    Args:
        attempt: Tries a way; raises ChannelError or OSError where it does not work.
        discard: Gives back what a way that came second has led to.
        most: Ways that are tried at most.
    """

    def __init__(
        self, attempt: Callable[[WayT], Awaitable[EndT]], discard: Callable[[EndT], Awaitable[None]], most: int
    ) -> None:
        self._attempt, self._discard, self._most = attempt, discard, most
        self._ways: deque[WayT] = deque()
        self._seen: set[WayT] = set()
        self._running = 0
        self._changed = anyio.Event()
        self._won: list[EndT] = []
        self._failure: ChannelError | OSError = OSError("there is no address")

    def join(self, ways: Iterable[WayT]) -> None:
        """Add ways, also while others are tried."""
        for way in ways:
            if way not in self._seen and len(self._seen) < self._most:
                self._seen.add(way)
                self._ways.append(way)
        self._changed.set()

    async def run(self) -> EndT:
        """Return what the first way that works leads to.

        Raises:
            ChannelError, OSError: None does; the last one's reason.
        """
        try:
            async with anyio.create_task_group() as group:
                while not self._won and (self._ways or self._running):
                    self._changed = anyio.Event()
                    if self._ways:
                        self._running += 1
                        group.start_soon(self._try, self._ways.popleft())
                    with anyio.move_on_after(STAGGER_SEC if self._ways else None):
                        await self._changed.wait()
                group.cancel_scope.cancel()
        except BaseException:
            with anyio.CancelScope(shield=True):
                for one in self._won:
                    await self._discard(one)
            raise
        if self._won:
            return self._won[0]
        raise self._failure

    async def _try(self, way: WayT) -> None:
        try:
            one = await self._attempt(way)
            if not self._won:
                self._won.append(one)
            else:
                with anyio.CancelScope(shield=True):
                    await self._discard(one)
        except (ChannelError, OSError) as error:
            self._failure = error
        finally:
            self._running -= 1
            self._changed.set()


async def resolve(host: str, port: int) -> list[Endpoint]:
    """Resolve the host, a numeric one without a look-up. Families take turns, so that a broken one costs little.

    Raises:
        OSError: The host is not known, or the zone after its `%` is no interface of this machine.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        look_up: Callable[[], list[Any]] = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await in_own_thread(look_up, abandon_on_cancel=True)
        first = [(family, where) for family, _, _, _, where in found if family == found[0][0]]
        other = [(family, where) for family, _, _, _, where in found if family != found[0][0]]
        turns = [one for pair in zip(first, other, strict=False) for one in pair]
        return [*turns, *first[len(other) :], *other[len(first) :]]
    if isinstance(address, ipaddress.IPv4Address):
        return [(socket.AF_INET, (host, port))]
    zone = address.scope_id or "0"
    index = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return [(socket.AF_INET6, (host.partition("%")[0], port, 0, index))]


def show(sockaddr: object) -> str:
    """Return a socket's address as HOST:PORT, IPv6 in brackets and with its zone; empty: it has none."""
    if not isinstance(sockaddr, tuple) or len(sockaddr) < 2:
        return ""
    host, port, *more = sockaddr
    if ":" not in host:
        return f"{host}:{port}"
    zone = f"%{socket.if_indextoname(more[1])}" if more[1:] and more[1] else ""
    return f"[{host}{zone}]:{port}"


async def connect(host: str, port: int) -> socket.socket:
    """Return a non-blocking socket that is connected to the first address of the host that answers.

    Raises:
        OSError: None does. The caller sets the deadline.
    """
    race: Race[Endpoint, socket.socket] = Race(_connected, _closed, ADDRESSES)
    race.join(await resolve(host, port))
    return await race.run()


async def _connected(endpoint: Endpoint) -> socket.socket:
    family, where = endpoint
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        try:
            sock.connect(where)
        except BlockingIOError:
            await anyio.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _closed(sock: socket.socket) -> None:
    sock.close()
