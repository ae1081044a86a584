"""Tables and bounds of the configuration."""

from __future__ import annotations

import re
from typing import Any

import attrs

from converge.ids import check_name

AGENTS_GREATEST = 100_000
"""Agents of one process at most: what one lease and one loop have been measured with, and room."""

GROUPS_GREATEST = 100
"""Entries of `agents` at most: each claims by itself."""

PROCESSES_GREATEST = 1_000
"""Processes of one supervisor at most."""

CONCURRENCY_GREATEST = 1_000
"""Tasks of one agent at a time at most."""


@attrs.frozen
class Within:
    """A number's bounds; a class, so that the schema can read them."""

    least: float
    greatest: float

    def __call__(self, _instance: object, _attribute: object, value: Any) -> None:
        if isinstance(value, int | float) and not self.least <= value <= self.greatest:
            raise ValueError(f"expected {self.least:,} to {self.greatest:,}")


@attrs.frozen
class Matching:
    """A text's pattern, and what a text that matches it is; the empty text stands for none."""

    pattern: re.Pattern[str]
    expected: str

    def __call__(self, _instance: object, _attribute: object, value: str) -> None:
        if value and not self.pattern.fullmatch(value):
            raise ValueError(f"expected {self.expected}")


CLASS = Matching(re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*"), "module:Class")


def a_name(_instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    """Check a name that may be left out."""
    if value:
        check_name(attribute.name, value)


def names(_instance: object, attribute: attrs.Attribute[Any], value: tuple[str, ...] | None) -> None:
    """Check a list of names that may be left out."""
    for one in value or ():
        check_name(attribute.name, one)


def described(text: str, unit: str = "") -> dict[str, str]:
    """Return the metadata of a field: what it is for, and its unit."""
    return {"help": text, "unit": unit}


@attrs.frozen(kw_only=True)
class Retention:
    """`[retention]`: how long the pool that `run` creates keeps tasks that have ended."""

    completed_sec: float = attrs.field(
        default=86_400.0, validator=Within(0, 31_536_000), metadata=described("completed tasks", "s")
    )
    failed_sec: float = attrs.field(
        default=604_800.0, validator=Within(0, 31_536_000), metadata=described("failed and cancelled tasks", "s")
    )


@attrs.frozen(kw_only=True)
class AgentGroup:
    """One entry of `agents` as a list: agents of one class, with what they have of their own beside the class's."""

    type: str = attrs.field(validator=CLASS, metadata=described("the agents' class, as module:Class"))
    count: int = attrs.field(
        default=1, validator=Within(1, AGENTS_GREATEST), metadata=described("how many of them this process runs")
    )
    pool_id: str = attrs.field(
        default="", validator=a_name, metadata=described("the pool that they join; left out: the one named for all")
    )
    capabilities: tuple[str, ...] | None = attrs.field(
        default=None, validator=names, metadata=described("what they can do")
    )
    topics: tuple[str, ...] | None = attrs.field(default=None, validator=names, metadata=described("what they work on"))
    concurrency: int | None = attrs.field(
        default=None,
        validator=Within(1, CONCURRENCY_GREATEST),
        metadata=described("tasks that each works on at a time"),
    )


Agents = int | tuple[AgentGroup, ...]
"""How many agents of the one class, or a list of several."""


@attrs.frozen
class AgentsWithin:
    """Bounds of a number of agents, or of the length of a list of them."""

    least: int = 1
    greatest: int = AGENTS_GREATEST

    def __call__(self, _instance: object, _attribute: object, value: Agents) -> None:
        if isinstance(value, int):
            Within(self.least, self.greatest)(None, None, value)
        elif not 1 <= len(value) <= GROUPS_GREATEST:
            raise ValueError(f"expected 1 to {GROUPS_GREATEST} entries")
