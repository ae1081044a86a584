"""What a store's server is and what its present settings promise: the records of `Store.inspect`.

Imported from `converge.contracts.store`, which re-exports them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum

import attrs
from attrs import validators


class Durability(IntEnum):
    """What an acknowledged write survives."""

    D0 = 0  # nothing: lost with the process
    D1 = 1  # kill -9 of the store and its clients
    D2 = 2  # power loss of the store's host
    D3 = 3  # loss of the store's primary


class Level(StrEnum):
    """How bad a finding is. A warning may be intended; an error is not."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@attrs.frozen(kw_only=True)
class Finding:
    """What one check found, and what to do about it.

    Attributes:
        code: What was looked at, in lower case: `durability`, `memory`, `replica`.
        level: How bad it is.
        text: What was found, with the setting and its value; one line, no passwords.
        mend: How to mend it; empty only for `Level.OK`.
    """

    code: str = attrs.field(validator=validators.matches_re(r"[a-z][a-z0-9-]*"))
    level: Level
    text: str = attrs.field(validator=validators.min_len(1))
    mend: str = ""

    def __attrs_post_init__(self) -> None:
        if (self.level is Level.OK) != (not self.mend):
            raise ValueError(f"{self.code}: a finding has a mend exactly if something is wrong")


def fine(code: str, text: str) -> Finding:
    """Return the finding of a check that found nothing wrong."""
    return Finding(code=code, level=Level.OK, text=text)


def warning(code: str, text: str, mend: str) -> Finding:
    """Return a finding that may be intended."""
    return Finding(code=code, level=Level.WARNING, text=text, mend=mend)


def error(code: str, text: str, mend: str) -> Finding:
    """Return a finding that must be mended."""
    return Finding(code=code, level=Level.ERROR, text=text, mend=mend)


@attrs.frozen(kw_only=True)
class Inspection:
    """What a store tells `converge doctor` of its server. Clock skew and latency are measured by core, alike for all.

    Attributes:
        durability: The class that the present settings give; `Store.durability` is what they gave when it was opened.
        product: Name and version of the server or library, such as `Redis 8.0.2`.
        role: Of a server with replicas: `primary` or `replica`; empty where there is one alone, or nobody can tell.
        is_tested: Whether this version stands as tested in the support matrix; False: expected to work.
        findings: What the settings promise and what is weak. One of code `durability` says why the class is what it
            is: where it is less than the best that the backend can have, there should be one.
    """

    durability: Durability
    product: str
    role: str = attrs.field(default="", validator=validators.in_(("", "primary", "replica")))
    is_tested: bool = True
    findings: tuple[Finding, ...] = ()
