"""The flags that several commands share, and the configuration that they make."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import attrs
from cyclopts import Group, Parameter

from converge.cli.wording import remember
from converge.errors import ConfigError
from converge.operations import logs
from converge.operations.agent_class import first_on_path
from converge.runtime.config.config import DEFAULT, ENV_PREFIX, Config, load, read
from converge.secret import secrets_in

COMMON = Group("Common parameters", sort_key=100)
"""The flags that most commands have stand last in their help: who looks for a command's own finds those first."""


def of_setting(key: str, *, metavar: str, name: str | None = None, group: Group | None = None) -> Parameter:
    """Return the flag of a setting: its help is that of the configuration, with the unit and the default."""
    field: attrs.Attribute[Any] = getattr(attrs.fields(Config), key)
    text, unit, default = field.metadata["help"], field.metadata.get("unit", ""), field.default
    shown = f"{default:g}" if isinstance(default, float) else str(default) if isinstance(default, str | int) else ""
    words = (
        f"{text[0].upper()}{text[1:]}{', in seconds' if unit == 's' else ''}{f'; by default {shown}' if shown else ''}."
    )
    flag = Parameter(name=name, metavar=metavar, negative=(), help=words.replace("`", ""))
    return flag if group is None else Parameter.combine(flag, Parameter(group=group))


ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"],
        metavar="FILE",
        group=COMMON,
        help="A TOML file; flags override the environment, which overrides the file.",
    ),
]
Store = Annotated[str | None, of_setting("store", metavar="URL", group=COMMON)]
Plugins = Annotated[list[str] | None, of_setting("plugins", name="--plugin", metavar="NAME", group=COMMON)]
Network = Annotated[str | None, of_setting("network", metavar="NAME", group=COMMON)]
PoolId = Annotated[str | None, Parameter(name="--pool", metavar="ID", help="The pool's id.")]
OfPool = Annotated[str | None, Parameter(name="--pool", metavar="ID", help="Only those in this pool.")]
Json = Annotated[
    bool, Parameter(name="--json", negative=(), group=COMMON, help='One JSON object per line, each with "v": 1.')
]
Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"], negative=(), group=COMMON, help="Log more.")]


@Parameter(name="*")
@attrs.frozen(kw_only=True)
class Common:
    """The flags shared by all commands that work with a store."""

    config: ConfigFile = None
    store: Store = None
    plugin: Plugins = None
    network: Network = None
    json: Json = False
    verbose: Verbose = False

    def configured(self, *, level: str = "warning", **flags: Any) -> Config:
        """Return the configuration and set up logging by it.

        Args:
            level: For commands that log less than `run` unless somebody asks.
            flags: The command's own, by configuration key; None for one that was not given.

        Raises:
            ConfigError: As `load`.
        """
        remember(self._given())
        plugins = tuple(self.plugin) if self.plugin else None
        given = {"store": self.store, "plugins": plugins, "network": self.network, **flags}
        try:
            config = load(self.config, flags=given)
        except ConfigError as error:
            if not error.problems:
                raise
            # What shows only where it is looked up is told beside it: else it would be the next thing to fail.
            from converge.runtime.config_check import problems_of

            told = {_place(line) for line in error.problems}
            others = problems_of(read(self.config, flags=given)[0])
            lines = [*error.problems, *(line for line in others if _place(line) not in told)]
            raise type(error)("\n".join(lines), problems=lines) from error
        import_here(config.plugins)
        if self.verbose:
            level = "debug"
        elif config.origins["log_level"] != DEFAULT:
            level = config.log_level
        # Plugins read passwords from variables of their own, such as CONVERGE_REDIS_PASSWORD.
        of_plugins = secrets_in({name: text for name, text in os.environ.items() if name.startswith(ENV_PREFIX)})
        logs.set_up(config.log_format, level, [*config.secrets, *of_plugins])
        return config

    def arguments(self) -> list[str]:
        """Return those that are given, as they stand on a command line; not `--json`, which is about the output."""
        return [*self._given(), "-v"] if self.verbose else self._given()

    def _given(self) -> list[str]:
        flags = (("-c", self.config), ("--store", self.store), ("--network", self.network))
        given = [text for flag, value in flags if value is not None for text in (flag, str(value))]
        return given + [text for name in self.plugin or () for text in ("--plugin", name)]


NONE = Common()
"""None of them was given."""


def _place(line: str) -> tuple[str, ...]:
    """Return what a line of a problem is about: the flag, or the file and the key in it."""
    parts = line.split(": ", 2)
    return tuple(parts[:1] if line.startswith("-") else parts[:2])


def import_here(plugins: Sequence[str]) -> None:
    """Search the working directory first for plugins named as module:attribute, as for agents."""
    if any(":" in name and not name.startswith("no:") for name in plugins):
        first_on_path(Path.cwd())
