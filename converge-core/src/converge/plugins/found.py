"""What is installed: entry points and whose they are, read from metadata without importing anything."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import cast
from urllib.parse import unquote

import attrs

from converge.errors import PluginBroken, PluginDuplicate, PluginMissing
from converge.foreign import Raised, guarded

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
    for entry in _read(group):
        dist = entry.dist
        found = guarded(lambda dist=dist: (dist.name, dist.version))
        if type(found) is Raised or not found[0]:
            what = f"cannot be read ({found.text})" if type(found) is Raised else "has no name"
            text = f'the metadata of what provides "{entry.name}" ({entry.value}) {what}; install it again'
            raise PluginBroken(text)
        entries.setdefault(entry.name, []).append(
            Found(name=entry.name, target=entry.value, distribution=found[0], version=found[1] or "?")
        )
    return entries


def _read(group: str) -> importlib.metadata.EntryPoints:
    """Return the entry points of a group; name the distribution, whoever's it is, of which they cannot be read."""
    read = guarded(lambda: importlib.metadata.entry_points(group=group))
    if type(read) is not Raised:
        return cast(importlib.metadata.EntryPoints, read)
    for dist in importlib.metadata.distributions():
        if type(raised := guarded(lambda dist=dist: dist.entry_points)) is Raised:
            whose = guarded(lambda dist=dist: f"{dist.name} {dist.version}")
            text = f"the entry points of {whose} cannot be read ({raised.text}); install it again"
            raise PluginBroken(text) from raised.error
    raise read.error


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
    for text in misplaced(name):
        return PluginMissing(f"no installed distribution provides the {what}; {text}")
    if found := entries(SCHEMES_GROUP).get(name):
        return PluginMissing(
            f'no installed distribution provides the {what}; {_owner(found[0])} has "{name}" as a URL scheme alone: '
            f"{_MUST_PUT}"
        )
    near = difflib.get_close_matches(name, sorted(set(known)), n=1)
    if not near:
        return PluginMissing(
            f"no installed distribution provides the {what}; `converge plugins list` shows what is installed"
        )
    return PluginMissing(f'no installed distribution provides the {what}; did you mean "{near[0]}"?')


def misplaced(name: str = "") -> list[str]:
    """Return what to say of plugins, or of the one of that name, in groups that look like Converge's and are none."""
    return [
        f'{_owner(one)} has "{one.name}" in the group "{group}", which is none: {_MUST_PUT}'
        for group in sorted(importlib.metadata.entry_points().groups)
        if re.split("[._-]", group.lower())[0] == NAMES_GROUP and group not in GROUPS
        for some in entries(group).values()
        for one in some
        if name in ("", one.name)
    ]


_MUST_PUT = f"its author must put it into [project.entry-points.{NAMES_GROUP}]"


def _owner(found: Found) -> str:
    return f"{found.distribution} {found.version}"


def gone_folder(found: Found) -> str:
    """Return the folder of an editable installation (PEP 610), if it is not there any more."""

    def asked() -> str:
        origin = json.loads(importlib.metadata.distribution(found.distribution).read_text("direct_url.json") or "{}")
        return unquote(origin["url"].removeprefix("file://")) if origin["dir_info"]["editable"] else ""

    folder = guarded(asked)
    return folder if isinstance(folder, str) and folder and not os.path.isdir(folder) else ""


def title(found: Found) -> str:
    owner = f"{found.distribution} {found.version}" if found.distribution else "from the import path"
    return f'plugin "{found.name}" ({owner})'
