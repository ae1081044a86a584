"""Addresses of the form ws://HOST:PORT/PATH."""

from __future__ import annotations

from urllib.parse import urlsplit

import attrs

from converge.errors import Unsupported

SCHEME = "ws"


@attrs.frozen(kw_only=True)
class Address:
    """Where to listen or to connect; the path tells services behind one port apart."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """As users write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}{self.path}"


def parse(address: str) -> Address:
    """Split an address into its parts.


    Raises:
        ValueError: It is not `ws://HOST:PORT/PATH`; the text says why.
        Unsupported: It asks for TLS.
    """
    parts = urlsplit(address)
    if parts.scheme == "wss":
        raise Unsupported(
            f"{address}: wss:// is not supported by this release; use ws://, under which Converge encrypts every "
            "record itself, or let a proxy in front of the listener end TLS"
        )
    if parts.scheme != SCHEME:
        raise ValueError(f"the scheme is not {SCHEME}")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"only {SCHEME}://HOST:PORT/PATH is understood")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"host or port is missing; write {SCHEME}://HOST:PORT/PATH, with port 0 for any that is free")
    return Address(host=parts.hostname, port=parts.port, path=parts.path or "/")
