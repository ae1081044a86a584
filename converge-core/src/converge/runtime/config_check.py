"""Queries about a configuration: its values and origins, its problems on this machine, its schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from converge.errors import ConfigError
from converge.plugins import PluginHost
from converge.runtime.config.config import DEFAULT, ENV_PREFIX, KEYS, Config, check_options, read
from converge.runtime.config.node_settings import NodeSettings
from converge.runtime.network.choosing import choose
from converge.schema import DIALECT, json_schema, plain
from converge.secret import masked
from converge.services.store.opening import backend_options, check_durability

BUILT_IN = ("memory", "file", "local", "store")
"""Backends whose options every schema has."""


@attrs.frozen(kw_only=True)
class Shown:
    """One key with its value as it may be shown, and where the value comes from."""

    key: str
    value: Any
    origin: str


def shown_settings(config: Config, *, is_changed_only: bool = False) -> list[Shown]:
    """Return a row for each key, those of `[retention]` and `[options.NAME]` one by one."""
    rows = []
    for key in KEYS:
        origin, value = config.origins.get(key, DEFAULT), masked(plain(getattr(config, key)), key)
        flat = [(key, value)] if not isinstance(value, dict) else list(_flat(key, value))
        rows += [
            Shown(key=name, value=one, origin=origin)
            for name, one in flat
            if not (is_changed_only and origin == DEFAULT)
        ]
    return rows


def check_file(file: Path, plugins: Sequence[str] = ()) -> tuple[Config, list[str]]:
    """Return what the file says, with defaults in place of what cannot be used, and everything that is wrong with it.

    Raises:
        ConfigError: It cannot be read at all.
    """
    config, problems = read(file, environ={})
    lines = [f"{problem.path}: {problem.text}" for problem in problems]
    return config, [*lines, *problems_of(config, plugins)]


def problems_of(config: Config, plugins: Sequence[str] = ()) -> list[str]:
    """Return problems that need a look-up: plugins, backends and options that are missing, or do not fit.

    Args:
        plugins: What to load besides those that the configuration names.
    """
    host, problems = PluginHost(), list[str]()

    def tried(key: str, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except ConfigError as error:
            problems.extend(_placed(config, key, one) for one in error.problems or [str(error)])
            return None

    try:
        host = PluginHost([name for name in config.plugins if name.startswith("no:")])
    except ConfigError as error:
        problems.append(f"{config.origins.get('plugins', '')}: plugins: {error}")
    for name in (*config.plugins, *plugins):
        if not name.startswith("no:"):
            tried("plugins", partial(host.load, name))
    store = tried("store", lambda: host.store_backend(config.store))
    if store is not None and config.require_durability:
        tried("require_durability", lambda: check_durability(store.name, store.durability, config.require_durability))
    tried("options", lambda: check_options(config, host))
    tried("discovery", lambda: host.discovery_backend(config.discovery))
    try:
        _check_addresses(config, host)
    except ConfigError as error:
        for line in error.problems or [str(error)]:
            problems.append(_placed(config, line.partition(":")[0].partition(".")[0], line))
    for name in config.options:
        cls = next((cls for known, cls in options_classes(host).items() if known == name), None) or _loaded_options(
            host, name
        )
        if cls is not None:
            tried("options", partial(backend_options, name, cls, config.options))
    return list(dict.fromkeys(problems))  # options are looked at by whom they are for, too


def schema_of(host: PluginHost) -> dict[str, Any]:
    """Return the JSON Schema of the configuration file, with the options of the built-in and the loaded backends."""
    for name in BUILT_IN:
        host.load(name)
    made = json_schema(Config, without=("origins",))
    options = {name: json_schema(cls) for name, cls in sorted(options_classes(host).items())}
    made["properties"]["options"] |= {"properties": options}
    return {"$schema": DIALECT, "title": "The configuration of Converge"} | made


def options_classes(host: PluginHost) -> dict[str, type[Any]]:
    """Return the options class of every backend that is loaded, by the backend's name."""
    return {
        backend.name: backend.options for one in host.loaded() for some in one.backends.values() for backend in some
    }


def _loaded_options(host: PluginHost, name: str) -> type[Any] | None:
    """Load the plugin of that name, which the options name, for its options' class."""
    try:
        host.load(name)
    except ConfigError:
        return None  # `check_options` has said that nobody knows it, or a backend that is needed has said what is wrong
    return options_classes(host).get(name)


def _flat(key: str, value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, item in value.items():
        found += _flat(f"{key}.{name}", item) if isinstance(item, Mapping) else [(f"{key}.{name}", item)]
    return found


def _check_addresses(config: Config, host: PluginHost) -> None:
    """Refuse what a node of these settings would. Without a transport much is wrong that is not once a flag names one.

    Raises:
        ConfigError: As `choose`.
    """
    if config.transport_url:
        settings: Any = {field.name: getattr(config, field.name) for field in attrs.fields(NodeSettings)}
        choose(NodeSettings(**settings | {"transport": config.transport_url}), host, listens=False)


def _placed(config: Config, key: str, text: str) -> str:
    """Return the problem with where its value comes from, and the key, which a flag and a variable name themselves."""
    where = config.origins.get(key, DEFAULT)
    if where == DEFAULT or text.startswith(where):
        return text
    if where.startswith(("--", ENV_PREFIX)):
        return f"{where}: {text.removeprefix(f'{key}: ')}"
    return f"{where}: {text if text.startswith(key) else f'{key}: {text}'}"
