"""Addresses of the form ws://HOST:PORT/PATH, and wss://HOST:PORT/PATH."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import attrs

from converge.net.hosts import check_name

SCHEMES = ("ws", "wss")

OF_A_PATH = "/%!$&'()*+,;=:@~"
"""What may stand in the path of a URL besides letters, digits and `_.-`; all else is written as %XX."""


@attrs.frozen(kw_only=True)
class Address:
    """Where to listen or to connect; the path tells services behind one port apart."""

    host: str
    port: int
    path: str
    is_tls: bool = False

    @property
    def url(self) -> str:
        """As users write it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'wss' if self.is_tls else 'ws'}://{host}:{self.port}{self.path}"


def parse(address: str) -> Address:
    """Split an address into its parts.

    Raises:
        ValueError: It is not `ws://HOST:PORT/PATH` or `wss://HOST:PORT/PATH`; the text says why.
    """
    parts = urlsplit(address)
    scheme = parts.scheme
    if scheme not in SCHEMES:
        raise ValueError("the scheme is not ws or wss")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"only {scheme}://HOST:PORT/PATH is understood")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"host or port is missing; write {scheme}://HOST:PORT/PATH, with port 0 for any that is free")
    check_name(parts.hostname)
    if (written := quote(parts.path, safe=OF_A_PATH)) != parts.path:
        raise ValueError(f"the path has a character that no URL has; write {written}")
    return Address(host=parts.hostname, port=parts.port, path=parts.path or "/", is_tls=scheme == "wss")
