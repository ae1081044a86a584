"""URLs of stores and transports: their scheme, and their passwords, which no text may repeat."""

from __future__ import annotations

import re
from urllib.parse import unquote

from converge.errors import InvalidValue

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_QUERY_SECRET = re.compile(r"([?&][^=&#]*(?:password|passwd|pwd|secret|token)[^=&#]*=)[^&#]+", re.IGNORECASE)


def scheme_of(url: object, path: str = "url") -> str:
    """Return the scheme, in lower case.

    Raises:
        InvalidValue: It has none.
    """
    found = _SCHEME.match(url) if isinstance(url, str) else None
    if found is None:
        shown = without_password(url) if isinstance(url, str) else url
        raise InvalidValue(path, shown, "a URL, such as memory:, file:state.db or redis://host:6379/0")
    return found[1].lower()


def has_password(url: str) -> bool:
    """Tell whether a password stands in the URL, before the host or as a query's value."""
    return without_password(url) != url


def passwords_in(url: str) -> list[str]:
    """Return the passwords in the URL, as they stand and as they read without percent-encoding."""
    found = [match[0].partition("=")[2] for match in _QUERY_SECRET.finditer(url)]
    _, mark, rest = url.partition("//")
    if mark:
        found.append(rest[: max(_userinfo_end(rest), 0)].partition(":")[2])
    return [text for one in found if one for text in {one, unquote(one)}]


def without_password(url: str) -> str:
    """Return the URL with `***` in place of each password: what messages and logs show.

    A password that was not percent-encoded may hold `/`, `?`, `#` or `@`; then all up to the last `@` is taken for it,
    since to show too little is the smaller fault.
    """
    head, mark, rest = url.partition("//")
    if mark:
        end = _userinfo_end(rest)
        user, colon, password = rest[: max(end, 0)].partition(":")
        if colon and password:
            url = f"{head}{mark}{user}:***{rest[end:]}"
    return _QUERY_SECRET.sub(r"\1***", url)


def _userinfo_end(rest: str) -> int:
    """Return where the `@` before the host stands, or -1."""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.partition("@")
    if at:
        return rest.rfind("@") if ":" in user else len(user)
    # `host:port` is no cut-off `user:password`; nor is `[::1]`.
    host, colon, port = authority.rpartition(":")
    is_cut_off = bool(colon) and not authority.endswith("]") and (not host or not port.isdigit())
    return rest.rfind("@") if is_cut_off else -1
