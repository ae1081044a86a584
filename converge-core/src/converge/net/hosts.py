"""What hosts in addresses stand for: one machine, every address of this one, or nobody who can be dialled."""

from __future__ import annotations

import socket
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

PREFIX = 64
"""Bits of an IPv6 address that tell networks apart. Within one a single host takes as many addresses as it likes."""


@lru_cache(1_024)
def source_of(peer: str) -> str:
    """Return what the bounds for strangers count a peer's HOST:PORT under: its host, and of IPv6 its network. Loopback
    and link-local addresses, which no router passes on, are counted one by one.
    """
    host = peer.rpartition(":")[0]
    address = _numeric(host)
    if not isinstance(address, IPv6Address) or address.is_loopback or address.is_link_local:
        return host if address is None else str(address)
    return str(ip_network((address, PREFIX), strict=False))


def is_anywhere(host: str) -> bool:
    """Return whether the host means every address of this machine: it can be listened at, and not dialled."""
    address = _numeric(host)
    return address is not None and address.is_unspecified


def is_for_many(host: str) -> bool:
    """Return whether the host is a group of machines, with which there is no connection."""
    address = _numeric(host)
    return address is not None and (address.is_multicast or str(address) == "255.255.255.255")


def check_name(host: str) -> None:
    """Refuse a host that no name server can be asked for: with a label that is empty, or too long.

    Raises:
        ValueError: It is none.
    """
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"no host has such a name: {host}") from None


def _numeric(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is, as the system reads it: 0 is 0.0.0.0, too; None: it is a name."""
    try:
        address = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        try:
            return IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
