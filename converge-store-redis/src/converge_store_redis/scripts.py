"""The Lua scripts, each with its hash: a server that has not seen one yet gets its text."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files

import attrs


@attrs.frozen
class Script:
    """One atomic step: its text, and the SHA-1 by which a server knows it."""

    text: bytes
    sha: str


@cache
def load(name: str) -> Script:
    """Return the script of `lua/<name>.lua`."""
    text = files("converge_store_redis").joinpath("lua", f"{name}.lua").read_bytes()
    return Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())
