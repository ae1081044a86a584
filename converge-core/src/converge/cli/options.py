"""The flags that several commands share, and the configuration that they make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from converge.runtime import logs
from converge.runtime.config import DEFAULT, Config, load
from converge.runtime.lookup import first_on_path

ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"], help="A TOML file; flags win over the environment, that over the file.")]
Store = Annotated[str | None, Parameter(help="URL of the store, such as file:state.db or redis://host:6379/0.")]
Plugins = Annotated[list[str] | None, Parameter(name="--plugin", negative=(), help="A plugin to load: NAME, module:attribute, or no:NAME.")]
Network = Annotated[str | None, Parameter(help="Whose keys to see on a shared store.")]
PoolId = Annotated[str | None, Parameter(name="--pool", help="The pool's id.")]
Json = Annotated[bool, Parameter(name="--json", negative=(), help='One JSON object a line, each with "v": 1.')]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], negative=(), help="Log more.")]


def configured(file: Path | None, flags: dict[str, Any], *, is_verbose: bool, level: str = "warning") -> Config:
    """Return the configuration and set up logging by it; `level` is for commands that log less than `run` unless somebody asks.

    Raises:
        ConfigError: As `load`.
    """
    config = load(file, flags=flags)
    import_here(config.plugins)
    if is_verbose:
        level = "debug"
    elif config.origins["log_level"] != DEFAULT:
        level = config.log_level
    logs.set_up(config.log_format, level, config.secrets)
    return config


def import_here(plugins: Sequence[str]) -> None:
    """Let plugins that are named as module:attribute be found in the working directory first, as agents are."""
    if any(":" in name and not name.startswith("no:") for name in plugins):
        first_on_path(Path.cwd())


def plugins_flag(plugins: list[str] | None) -> tuple[str, ...] | None:
    """Return what `--plugin` says; None if it was not given."""
    return tuple(plugins) if plugins else None
