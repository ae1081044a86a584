"""Where the health endpoint listens: HOST:PORT, a port alone, or the path of a unix socket."""

from __future__ import annotations

import re
from typing import NamedTuple

LOOPBACK = "127.0.0.1"

_ADDRESS = re.compile(r"(?:(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]*):)?(?P<port>[0-9]{1,5})")


class Address(NamedTuple):
    """A host and a port, 0 for any; or, where `path` is not empty, a unix socket."""

    host: str = LOOPBACK
    port: int = 0
    path: str = ""


def parsed(text: str) -> Address:
    """Return the address that a text means: `8080` and `:8080` are ports of the loopback address.

    Raises:
        ValueError: It means none.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(path=text.removeprefix("unix:"))
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65_535:
        raise ValueError("expected HOST:PORT, [IPV6]:PORT, PORT or unix:PATH")
    return Address((found["host"] or LOOPBACK).strip("[]"), int(found["port"]))


def an_address(_instance: object, _attribute: object, value: str) -> None:
    """Check an address that may be left out."""
    if value:
        parsed(value)
