"""The way to a server: whether others can read what goes there."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from converge.contracts.store import Finding, warning


def way(where: str, *, is_encrypted: bool, adds: str) -> Iterator[Finding]:
    """Find a connection to another host that is not encrypted.

    Args:
        where: The server's URL without its password; empty: nothing is known of the way.
        adds: What to add to the URL.
    """
    host = urlsplit(where).hostname or ""
    if is_encrypted or host in ("", "localhost", "::1") or host.startswith("127."):
        return
    yield warning(
        "tls", f"the connection to {where} is not encrypted", f"add {adds} to its URL, or use a network that you trust"
    )
