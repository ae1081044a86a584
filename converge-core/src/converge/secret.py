"""What is secret: the one definition that errors, `config show`, reprs, logs and `doctor` share.

A value is secret when its name says so (`password`, `token`, `api_key`, ...), or when it is a URL with a password in
it. The name of a file with a secret in it (`password_file`, `tls_key`) is not secret; who may read that file matters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

MASK = "***"

_WORDS = r"passw(?:or)?d|passphrase|pwd|secret|token|credential|(?:api|access|private|signing|encryption)[_-]?key"
_SECRET = re.compile(_WORDS, re.IGNORECASE)
_NO_SECRET = re.compile(r"[_-](?:file|path|dir|sec|bytes)$", re.IGNORECASE)
_SECRET_FILE = re.compile(rf"(?:{_WORDS}|key)[_-](?:file|path)$|(?:^|[_-])tls[_-]key$|private[_-]key$", re.IGNORECASE)
_QUERY_VALUE = re.compile(r"([?&]([^=&#]+)=)([^&#]+)")


def is_secret(name: str) -> bool:
    """Return whether a setting of this name, or what stands below it, is secret."""
    return _SECRET.search(name) is not None and _NO_SECRET.search(name) is None


def names_secret_file(name: str) -> bool:
    """Return whether a setting of this name names a file that holds a secret."""
    return _SECRET_FILE.search(name) is not None


def masked(value: Any, name: str = "") -> Any:
    """Return the value as anybody may see it: each secret in it, however deep, as `***`."""
    if value and is_secret(name):
        return MASK
    if isinstance(value, Mapping):
        return {key: masked(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        some = [masked(item, name) for item in value]
        return some if isinstance(value, list) else tuple(some)
    return without_password(value) if isinstance(value, str) else value


def masked_repr(value: Any) -> str:
    """Return the repr of a value as anybody may see it."""
    return repr(masked(value))


def secrets_in(value: object, name: str = "") -> Iterator[str]:
    """Yield each text in the value that is secret, however deep: what no line of a log may show."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_in(item, name if is_secret(name) else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item, name)
    elif isinstance(value, str) and value:
        yield from [value] if is_secret(name) else passwords_in(value)


def has_password(url: str) -> bool:
    """Return whether a password stands in the URL, before the host or as a query's value."""
    return without_password(url) != url


def passwords_in(url: str) -> list[str]:
    """Return the passwords in the URL, as they stand and as they read without percent-encoding."""
    found = [value for _, name, value in _QUERY_VALUE.findall(url) if is_secret(name)]
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
            url = f"{head}{mark}{user}:{MASK}{rest[end:]}"
    return _QUERY_VALUE.sub(lambda found: f"{found[1]}{MASK}" if is_secret(found[2]) else found[0], url)


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
