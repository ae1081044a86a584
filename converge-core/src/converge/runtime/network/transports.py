"""The transports of one node as one: each address is dialled by the transport of its scheme."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from converge.contracts.store import Feature
from converge.contracts.transport import Channel, Listener, Transport
from converge.errors import ConnectFailed
from converge.plugins import PluginHost
from converge.runtime.network.choosing import ChosenTransport


class Transports:
    """The open transports of a node, by scheme. `secure`: those that may be dialled where TLS is required."""

    def __init__(self, by_scheme: Mapping[str, Transport], secure: frozenset[str] | None) -> None:
        self._by_scheme, self._secure = by_scheme, secure

    async def connect(self, address: str) -> Channel:
        """Connect to the address.

        Raises:
            ConnectFailed: The reason is in its text.
        """
        why_not = self.why_not(address)
        if why_not:
            raise ConnectFailed(f"cannot connect to {address}: {why_not}")
        return await self._by_scheme[address.partition(":")[0]].connect(address)

    def why_not(self, address: str) -> str:
        """Return why the address can never be dialled from here; empty: it can be."""
        scheme = address.partition(":")[0]
        if scheme not in self._by_scheme:
            known = ", ".join(f"{one}://" for one in self._by_scheme)
            return f"this node has no transport for {scheme}://; its own have {known}"
        if self._secure is not None and scheme not in self._secure:
            return f"{scheme}:// has no TLS, and require_tls is set"
        return ""


@asynccontextmanager
async def listening(
    chosen: tuple[ChosenTransport, ...], host: PluginHost, *, requires_tls: bool
) -> AsyncIterator[tuple[Transports, list[tuple[Listener, ChosenTransport]]]]:
    """Open the transports, and listen at the address of each."""
    by_scheme: dict[str, Transport] = {}
    listeners: list[tuple[Listener, ChosenTransport]] = []
    secure: set[str] = set()
    async with AsyncExitStack() as stack:
        for one in chosen:
            opens = partial(one.backend.open, one.options)
            transport = await stack.enter_async_context(host.opened(one.backend, opens, Transport))
            by_scheme |= dict.fromkeys(one.backend.schemes, transport)
            secure |= one.backend.secure_schemes if Feature.TLS not in one.backend.features else {*one.backend.schemes}
            listeners.append((await stack.enter_async_context(transport.listen(one.url)), one))
        yield Transports(by_scheme, frozenset(secure) if requires_tls else None), listeners
