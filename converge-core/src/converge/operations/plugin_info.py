"""Facts about one plugin: its distribution, its file, its hooks, its backends with their options."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from pathlib import Path

import attrs

from converge.contracts.store import StoreBackend
from converge.errors import InvalidValue
from converge.plugins import PluginHost
from converge.plugins.declared import Backend
from converge.schema import Setting, settings_of


@attrs.frozen(kw_only=True)
class BackendFacts:
    """A backend as declared; `durability` only of a store: the best class that it can have."""

    kind: str
    name: str
    schemes: tuple[str, ...]
    contract: int
    features: tuple[str, ...]
    durability: str
    options: tuple[Setting, ...]


@attrs.frozen(kw_only=True)
class Facts:
    """A plugin; `sha256` is of `file`, the source that was imported, for a comparison with what was reviewed;
    `decisions` are what it adds.
    """

    name: str
    distribution: str
    version: str
    summary: str
    module: str
    file: str
    sha256: str
    hooks: tuple[str, ...]
    decisions: tuple[str, ...]
    backends: tuple[BackendFacts, ...]


def facts_of(name: str) -> Facts:
    """Return what there is to tell of the plugin of that name, URL scheme or import path; it is loaded, since it was
    named, and no other.

    Raises:
        InvalidValue: The name refuses a plugin.
        PluginError: It is not there, or cannot be used; what is wrong with it.
    """
    if name.startswith("no:"):
        raise InvalidValue("plugin", name, f"the name of a plugin to show, such as {name.removeprefix('no:')}")
    host = PluginHost()
    installed = host.installed()
    of_scheme = [one.name for one in installed if name in one.schemes]
    host.load(name if not of_scheme or any(one.name == name for one in installed) else of_scheme[0])
    (loaded,) = host.loaded()
    module = loaded.target.partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return Facts(
        name=loaded.name,
        distribution=loaded.distribution,
        version=loaded.version,
        summary=_summary(loaded.distribution),
        module=loaded.target,
        file=file,
        sha256=hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else "",
        hooks=loaded.hooks,
        decisions=tuple(kind.name for kind in host.decisions),
        backends=tuple(_backend(kind, one) for kind, some in loaded.backends.items() for one in some),
    )


def _backend(kind: str, backend: Backend) -> BackendFacts:
    return BackendFacts(
        kind=kind,
        name=backend.name,
        schemes=tuple(backend.schemes),
        contract=backend.contract,
        features=tuple(sorted(feature.value for feature in getattr(backend, "features", ()))),
        durability=backend.durability.name if isinstance(backend, StoreBackend) else "",
        options=tuple(settings_of(backend.options)),
    )


def _summary(distribution: str) -> str:
    if not distribution:
        return ""
    return str(importlib.metadata.metadata(distribution).json.get("summary", ""))
