"""URLs of stores and transports: their scheme."""

from __future__ import annotations

import re

from converge.errors import InvalidValue
from converge.secret import without_password

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")


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
