"""What is checked now, and the bench on which its tests run."""

from __future__ import annotations

from pathlib import Path

from converge.errors import PluginBroken
from converge.foreign import name_of
from converge.plugins.declaration import Backend
from converge.plugins.declared import import_plugin
from converge.plugins.found import entries, title
from converge.testing._check.bench import Bench

TESTING_GROUP = "converge.testing"

CURRENT: list[Bench] = []
"""The one that is checked: the modules of tests are found by pytest, which passes them nothing."""


def current() -> Bench:
    """Return what is checked now."""
    return CURRENT[-1]


def bench_of(name: str, backend: Backend, url: str, folder: Path) -> Bench:
    """Return the bench that the plugin's package names, else the one that fits most backends.

    Raises:
        PluginBroken: What it names is no bench.
    """
    for found in entries(TESTING_GROUP).get(name, ()):
        cls = import_plugin(found)
        if not isinstance(cls, type) or not issubclass(cls, Bench):
            raise PluginBroken(f"{title(found)}: {found.target} is {name_of(type(cls))}, expected a subclass of Bench")
        return cls(backend, url, folder)
    return Bench(backend, url, folder)
