"""Where a node tells others that it can be dialled."""

from __future__ import annotations

from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketAttribute

from converge.errors import ConfigError
from converge.net.hosts import is_anywhere
from converge.runtime.network.choosing import NOWHERE


async def endpoint_of(address: str, advertise: str, store: str) -> str:
    """Return the URL that others dial: the listener's, or the operator's HOST:PORT or URL in its place; empty: none.

    A node that listens on every address is known by the one from which it reaches its store, as others do.

    Raises:
        ConfigError: That address cannot be told.
    """
    if advertise == NOWHERE:
        return ""
    if "://" in advertise:
        return advertise
    scheme, _, rest = address.partition("://")
    host_port, slash, path = rest.partition("/")
    host, _, port = host_port.rpartition(":")
    if advertise:
        named = advertise
    elif is_anywhere(host):
        named = f"{await _own_address(store, host_port)}:{port}"
    else:
        return address
    return f"{scheme}://{named}{slash}{path}"


async def _own_address(store: str, host_port: str) -> str:
    if not store:
        raise ConfigError(
            f"the transport listens on {host_port}, which others cannot dial; say with advertise HOST:PORT what they "
            "can"
        )
    host = urlsplit(store).hostname
    if host is None:
        return "127.0.0.1"  # a store without a host is shared by the processes of this one
    try:
        # To connect a datagram socket sends nothing; it only makes the system choose the way, and with it the address.
        async with await anyio.create_connected_udp_socket(host, 9) as way:
            own = str(way.extra(SocketAttribute.local_address)[0])
    except OSError as error:
        raise ConfigError(
            f"this host's address towards {host} cannot be told ({error}); say with --advertise HOST:PORT where others "
            "dial"
        ) from error
    return f"[{own}]" if ":" in own else own
