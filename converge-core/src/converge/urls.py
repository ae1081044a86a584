"""URLs of stores and transports: their scheme, and whether it can be told where their host begins."""

from __future__ import annotations

import re

from converge.errors import InvalidValue
from converge.secret import without_password

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+(?:%\w+)?\]|([^:\[\]]*))(?::(\d{0,5}))?")
_QUERY_VALUE = re.compile(r"=[^&#]*")
_PORT_MAX = 65_535


def scheme_of(url: object, path: str = "url") -> str:
    """Return the scheme, in lower case.

    Raises:
        InvalidValue: It has none.
    """
    found = _SCHEME.match(url) if isinstance(url, str) else None
    if found is None:
        shown = without_password(url) if isinstance(url, str) else url
        such = "tcp://0.0.0.0:7000" if path == "transport" else "memory:, file:state.db or redis://host:6379/0"
        raise InvalidValue(path, shown, f"a URL, such as {such}")
    return found[1].lower()


def check_host(url: str, path: str = "store") -> None:
    """Refuse a URL of which it cannot be told where its password ends and its host begins, or whose host or port is
    none: drivers guess, each in a way of its own, and show what they take for a host.

    Raises:
        InvalidValue: Which part is wrong. Nothing of the URL but its scheme is shown.
    """
    scheme, mark, rest = url.partition("//")
    shown = f"{scheme}//..." if mark else "a URL"
    if any(ord(char) < ord(" ") for char in url):
        raise InvalidValue(path, shown, "a URL without control characters")
    if not mark:
        return
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, hosts = authority.rpartition("@")
    is_cut_off = not at and ":" in authority and "@" in _QUERY_VALUE.sub("", rest[len(authority) :])
    if "@" in user or is_cut_off or "[" in user:
        raise InvalidValue(path, shown, "a URL in whose password %40 stands for @, %2F for /, %3F for ?, %23 for #")
    for host in hosts.split(","):
        found = _HOST.fullmatch(host)
        if found is None or int(found[2] or 0) > _PORT_MAX:
            raise InvalidValue(path, shown, f"HOST:PORT, with a port up to {_PORT_MAX}, and [ ] around an IPv6 address")
        try:
            (found[1] or "").encode("idna")
        except UnicodeError:
            raise InvalidValue(path, shown, "the name of a host, with 1 to 63 characters between its dots") from None
