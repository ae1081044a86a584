"""Facts about one plugin: its distribution, its file, its hooks, its backends with their options."""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import attrs

from converge.contracts.store import StoreBackend
from converge.errors import InvalidValue, PluginBroken, PluginError
from converge.operations.plugins.package import package_mistakes
from converge.plugins import PluginHost
from converge.plugins.declaration import Backend, shown
from converge.plugins.loaded import Loaded
from converge.schema import Setting, settings_of

OnTest = Callable[[int, int, int], object]
"""Called with how many tests have ended, of how many, and how many have failed."""


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
    """A plugin; `sha256` is of `file`, the source that was imported; `decisions` are what it adds."""

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
    """Return the facts about the plugin of that name, URL scheme or import path; only that one is loaded.

    Raises:
        InvalidValue: The name refuses a plugin.
        PluginError: It is not there, or cannot be used; what is wrong with it.
    """
    host, loaded = _load(name)
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


def loaded_as(name: str) -> Loaded:
    """Return the plugin of that name, URL scheme or import path, loaded.

    Raises:
        As `facts_of`.
    """
    return _load(name)[1]


def loaded_and_packed(name: str) -> Loaded:
    """Return the plugin of that name, URL scheme or import path, loaded, if nothing is wrong with its declaration,
    which is told as `run` tells it, nor with its package, which only its author minds.

    Raises:
        As `facts_of`; with all that is wrong, a line each.
    """
    printed, before = io.StringIO(), _process()
    try:
        with redirect_stdout(printed):
            loaded = loaded_as(name)
    except PluginError as error:
        found = next((one for one in PluginHost().installed() if name == one.name or name in one.schemes), None)
        lines = package_mistakes(found.name, found.distribution, None) if found is not None else []
        if lines:
            raise type(error)("\n".join([str(error), *lines])) from error
        raise
    lines = package_mistakes(loaded.name, loaded.distribution, loaded.backends)
    if text := printed.getvalue().strip():
        lines.append(f"{name} prints {shown(text)} when it is loaded, amid what commands answer; log it, or drop it")
    for what in [what for what, value in _process().items() if value != before[what]]:
        lines.append(f"{name} changes {what} when it is loaded, for all that runs beside it; do it later, or drop it")
    if lines:
        raise PluginBroken("\n".join(lines))
    return loaded


def _process() -> dict[str, object]:
    """Return by its name what is the whole process's, and neither a plugin's nor its driver's to change."""
    return {
        "the working directory": os.path.realpath(os.curdir),
        "the handlers of signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "the handlers of the root logger": list(logging.getLogger().handlers),
        "what Python calls for errors": (sys.excepthook, threading.excepthook, sys.unraisablehook),
    }


def _load(name: str) -> tuple[PluginHost, Loaded]:
    if name.startswith("no:"):
        raise InvalidValue("plugin", name, f"the name of a plugin to show, such as {name.removeprefix('no:')}")
    host = PluginHost()
    installed = host.installed()
    of_scheme = [one.name for one in installed if name in one.schemes]
    host.load(name if not of_scheme or any(one.name == name for one in installed) else of_scheme[0])
    (loaded,) = host.loaded()
    return host, loaded


def checked(name: str, url: str, on_test: OnTest, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run the conformance kit on each backend of the plugin, in a process of its own; return their report cards.

    Raises:
        PluginBroken: The kit could not be run on it.
    """
    command = [sys.executable, "-m", "converge.testing._check", name, url, json.dumps(asked)]
    cards = list[dict[str, Any]]()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8") as process,
    ):
        assert process.stdout is not None, "its output is a pipe"
        for line in process.stdout:
            try:
                record = json.loads(line)
            except ValueError:
                continue  # what the backend itself writes
            if "done" in record:
                on_test(record["done"], record["total"], record["bad"])
            elif "backend" in record:
                cards.append(record)
        if process.wait():
            errors.seek(0)
            raise PluginBroken(f"the kit could not be run on {name}:\n{errors.read()[-3_000:]}")
    return cards


def _cards_of(name: str) -> Path:
    """Return where the last report cards of a plugin are kept (XDG Base Directory Specification, state)."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "converge/checks" / f"{re.sub('[^A-Za-z0-9_.-]', '_', name)}.jsonl"


def save_cards(name: str, text: str) -> None:
    """Keep the report cards of a plugin's last check, JSON lines, for this user."""
    file = _cards_of(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def last_cards(name: str) -> list[dict[str, Any]]:
    """Return the report cards of a plugin's last check here; none if there was none, or they cannot be read."""
    try:
        return [json.loads(line) for line in _cards_of(name).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


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
