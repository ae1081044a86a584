"""Passwords from files, which may change while a process runs."""

from __future__ import annotations

from pathlib import Path

import anyio

from converge.errors import StoreUnavailable


async def first_line(path: Path) -> str:
    """Return the password that the file of the option `password_file` holds now.

    Raises:
        StoreUnavailable: It cannot be read now; who changes it may be about to put it back.
    """
    try:
        lines = (await anyio.Path(path).read_text()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreUnavailable(f"password_file: {path} cannot be read: {type(error).__name__}") from error
    return lines[0] if lines else ""
