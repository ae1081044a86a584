"""Addresses of the form tcp://HOST:PORT."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

import anyio

SCHEME = "tcp"

# What `socket` takes: family and address.
Endpoint = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


def parse(address: str) -> tuple[str, int]:
    """Return host and port.

    Raises:
        ValueError: It is not `tcp://HOST:PORT`; the text says why.
    """
    parts = urlsplit(address)
    if parts.scheme != SCHEME:
        raise ValueError(f"the scheme is not {SCHEME}")
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"only {SCHEME}://HOST:PORT is understood")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"host or port is missing; write {SCHEME}://HOST:PORT, with port 0 for any that is free")
    return parts.hostname, parts.port


def show(sockaddr: object) -> str:
    """Return a socket's address as HOST:PORT, IPv6 in brackets."""
    if not isinstance(sockaddr, tuple) or len(sockaddr) < 2:
        return ""
    host, port = sockaddr[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(host: str, port: int) -> list[Endpoint]:
    """Resolve the host; a numeric one without a look-up.


    Raises:
        OSError: The host is not known.
    """
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, sockaddr) for family, _, _, _, sockaddr in found]
    if version == 4:
        return [(socket.AF_INET, (host, port))]
    return [(socket.AF_INET6, (host, port, 0, 0))]
