"""What is installed: entry points and whose they are, read from metadata without importing anything."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import os
import sys
from collections.abc import Iterable, Mapping, Sequence

import attrs

from converge.errors import PluginDuplicate, PluginMissing

NAMES_GROUP = "converge"
SCHEMES_GROUP = "converge.schemes"
GROUPS = frozenset((NAMES_GROUP, SCHEMES_GROUP, "converge.testing"))
"""The groups of entry points that Converge reads."""

CORE = "converge-core"
RESERVED_NAMES = frozenset(("memory", "file", "local", "store", "static"))
"""Names of built-in plugins: whoever types one gets Converge's own, whatever is installed."""
RESERVED_SCHEMES = frozenset(("memory", "file", "local"))

DISTRIBUTIONS: Mapping[str, str] = {
    **dict.fromkeys(("redis", "rediss", "unix"), "converge-store-redis"),
    **dict.fromkeys(("sql", "sqlite", "postgresql", "mysql", "mariadb"), "converge-store-sql"),
    **dict.fromkeys(("tcp", "tls"), "converge-transport-tcp"),
    **dict.fromkeys(("ws", "wss"), "converge-transport-ws"),
}
"""What to install for the names and schemes of the project's own plugins."""

OWN = frozenset((CORE, *DISTRIBUTIONS.values()))
"""The distributions of this project, whose tests hold their backends to the contracts."""


@attrs.frozen(kw_only=True)
class Found:
    """An installed plugin, not yet imported: its entry point and whose it is."""

    name: str
    target: str
    distribution: str
    version: str


def entries(group: str) -> Mapping[str, Sequence[Found]]:
    """Return the plugins of a group by name. Read once for as long as nothing is installed or removed."""
    return _entries(group, tuple((folder, *_changed(folder)) for folder in sys.path))


@functools.lru_cache(maxsize=4)
def _entries(group: str, _path: tuple[tuple[str | int, ...], ...]) -> Mapping[str, Sequence[Found]]:
    entries: dict[str, list[Found]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        dist = entry.dist
        name, version = (dist.name, dist.version) if dist is not None else ("unknown", "")
        entries.setdefault(entry.name, []).append(
            Found(name=entry.name, target=entry.value, distribution=name, version=version)
        )
    return entries


def _changed(folder: str) -> tuple[int, ...]:
    """Return what differs after something was installed; a clock's tick may be too long for the time alone."""
    try:
        status = os.stat(folder or ".")
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_nlink, status.st_size


def only(found: Sequence[Found], what: str, *, is_reserved: bool) -> Found | None:
    if len(found) > 1:
        owners = " and ".join(sorted(f"{one.distribution} {one.version}" for one in found))
        whose = f"; the name is {CORE}'s own" if is_reserved else ""
        raise PluginDuplicate(f"{what} is provided by {owners}{whose}; uninstall all but one")
    if found and is_reserved and found[0].distribution != CORE:
        raise PluginDuplicate(
            f"{what} is provided by {found[0].distribution} {found[0].version}, but the name is {CORE}'s own; "
            "uninstall that"
        )
    return found[0] if found else None


def missing(what: str, name: str, known: Iterable[str]) -> PluginMissing:
    if (base := name.partition("+")[0]) in DISTRIBUTIONS:
        return PluginMissing(f"no installed distribution provides the {what}; pip install {DISTRIBUTIONS[base]}")
    for group in sorted(importlib.metadata.entry_points().groups):
        if group.startswith(NAMES_GROUP) and group not in GROUPS and (found := entries(group).get(name)):
            owner = f"{found[0].distribution} {found[0].version}"
            return PluginMissing(
                f'no installed distribution provides the {what}; {owner} has "{name}" in the group "{group}", which is '
                f"none: its author must put it into [project.entry-points.{NAMES_GROUP}]"
            )
    near = difflib.get_close_matches(name, sorted(set(known)), n=1)
    if not near:
        return PluginMissing(
            f"no installed distribution provides the {what}; `converge plugins list` shows what is installed"
        )
    return PluginMissing(f'no installed distribution provides the {what}; did you mean "{near[0]}"?')


def title(found: Found) -> str:
    owner = f"{found.distribution} {found.version}" if found.distribution else "from the import path"
    return f'plugin "{found.name}" ({owner})'
