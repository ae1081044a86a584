"""What a plugin that was loaded declares, and which hooks it implements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
import pluggy

from converge.plugins.declaration import Backend
from converge.plugins.found import Found


@attrs.frozen(kw_only=True)
class Loaded:
    """A loaded plugin: whose it is, the module it came from, its backends by the word of their contract, its hooks."""

    name: str
    distribution: str
    version: str
    target: str
    backends: Mapping[str, Sequence[Backend]]
    hooks: tuple[str, ...]


def loaded_from(found: Found, backends: Mapping[str, Sequence[Backend]], manager: pluggy.PluginManager) -> Loaded:
    """Return what was loaded, as the manager knows it."""
    callers = manager.get_hookcallers(manager.get_plugin(found.name)) or []
    return Loaded(
        name=found.name,
        distribution=found.distribution,
        version=found.version,
        target=found.target,
        backends=backends,
        hooks=tuple(sorted(caller.name for caller in callers)),
    )
