"""Addresses of the form tcp://HOST:PORT, and tls://HOST:PORT."""

from __future__ import annotations

from urllib.parse import urlsplit

from converge.net.hosts import check_name

SCHEMES = ("tcp", "tls")


def parse(address: str) -> tuple[str, int]:
    """Return host and port.

    Raises:
        ValueError: It is not `tcp://HOST:PORT` or `tls://HOST:PORT`; the text says why.
    """
    parts = urlsplit(address)
    scheme = parts.scheme
    if scheme not in SCHEMES:
        raise ValueError("the scheme is not tcp or tls")
    if "@" in parts.netloc or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"only {scheme}://HOST:PORT is understood")
    if not parts.hostname or parts.port is None:
        raise ValueError(f"host or port is missing; write {scheme}://HOST:PORT, with port 0 for any that is free")
    check_name(parts.hostname)
    return parts.hostname, parts.port


def is_tls(address: str) -> bool:
    """Return whether connections to the address have TLS."""
    return address.startswith("tls:")
