"""Arrays as text: a column of a call in a few calls into C, where the driver's own encoding looks at each value in
Python.

Of a claim and finish of 100 tasks that was a third of the client's time; the server reads text nearly as fast as the
driver's binary form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from converge.errors import InvalidValue
from converge.model.keys import Part

ID_BYTES = 16


def literal(part: Part | None, column: Sequence[Any]) -> str:
    """Return the array literal of a column of key parts of one type; None means integers that are not parts of a key.

    Raises:
        InvalidValue: A value is not of the type.
    """
    if part is None or part is Part.INT:
        return f"{{{repr(list(column))[1:-1]}}}"
    if part is Part.NAME:
        return _names(column)
    try:
        if set(map(len, column)) != {ID_BYTES}:
            raise InvalidValue("key", column, "parts of 16 bytes")
        # hex sets a separator after each 16 bytes; each value begins with \x, whose backslash the literal needs twice.
        return "{\\\\x" + b"".join(column).hex(",", -ID_BYTES).replace(",", ",\\\\x") + "}"
    except TypeError as error:
        raise InvalidValue("key", column, "parts of 16 bytes") from error


def _names(column: Sequence[str]) -> str:
    try:
        joined = '","'.join(column)
    except TypeError as error:
        raise InvalidValue("key", column, "parts that are text") from error
    if "\\" in joined or joined.count('"') != 2 * (len(column) - 1):
        joined = '","'.join(name.replace("\\", "\\\\").replace('"', '\\"') for name in column)
    return f'{{"{joined}"}}'
