"""The configuration: TOML file, environment and flags to one frozen object; all problems at once, each with its path.

Flags win over the environment, that over the file, that over defaults; a list replaces a list.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import attrs

from converge.errors import ConfigError, SecretOnCommandLine
from converge.plugins import PluginHost
from converge.runtime.config.fields import (
    CLASS,
    PROCESSES_GREATEST,
    AgentGroup,
    Agents,
    AgentsWithin,
    Retention,
    Within,
    a_name,
    described,
)
from converge.runtime.config.node_settings import (
    NodeSettings,
    call_problem,
    call_sec_of,
    joined,
    stall_problem,
    stall_sec_of,
)
from converge.secret import has_password, secrets_in, without_password
from converge.settings import Problem, checked, raise_problems, unknown

ENV_PREFIX = "CONVERGE_"
DEFAULT = "default"

_PLAIN_NAME = re.compile(r"[a-z][a-z0-9-]*")
# Kubernetes puts these into every container of a namespace that has a Service named "converge"; they are not meant for
# this program.
_KUBERNETES = re.compile(r"CONVERGE_(SERVICE_(HOST|PORT).*|PORT_\d+_.*)")
_PASSWORD_OF = re.compile(r"CONVERGE_(\w+)_PASSWORD")
"""What plugins may read by themselves: the password of their server, in a variable that names the plugin."""

_KUBERNETES_PORT = re.compile(r"[a-z]+://")


@attrs.frozen(kw_only=True)
class Config(NodeSettings):
    """Everything that can be configured: what a node is made of, and what a process runs. The keys of the TOML file are
    its attributes; `origins` says of each where its value comes from.
    """

    agent: str = attrs.field(default="", validator=CLASS, metadata=described("the agent's class, as module:Class"))
    agents: Agents = attrs.field(
        default=1,
        validator=AgentsWithin(),
        metadata=described("how many agents of the class each process runs; in a file also a list of several classes"),
    )
    processes: int = attrs.field(
        default=1,
        validator=Within(1, PROCESSES_GREATEST),
        metadata=described("how many processes to start, each with all these agents, and a supervisor of them"),
    )
    pool_id: str = attrs.field(default="", validator=a_name, metadata=described("the pool that they join"))
    host: str = attrs.field(default="", metadata=described("address to listen at, if transport is a name"))
    port: int = attrs.field(
        default=0, validator=Within(0, 65_535), metadata=described("port to listen at, if transport is a name; 0: any")
    )
    log_format: Literal["text", "json"] = attrs.field(
        default="text", metadata=described("lines for people, or one JSON object per line")
    )
    log_level: Literal["debug", "info", "warning", "error"] = attrs.field(
        default="info", metadata=described("the least level that is logged")
    )
    retention: Retention = attrs.field(factory=Retention, metadata=described("how long ended tasks are kept"))
    origins: Mapping[str, str] = attrs.field(factory=dict, repr=False, eq=False)

    @property
    def groups(self) -> tuple[AgentGroup, ...]:
        """The agents of this process, each group with its pool; none where no class is named."""
        if isinstance(self.agents, int):
            return (AgentGroup(type=self.agent, count=self.agents, pool_id=self.pool_id),) if self.agent else ()
        return tuple(attrs.evolve(group, pool_id=group.pool_id or self.pool_id) for group in self.agents)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets in the URLs and options: what no line of a log may show."""
        return tuple(secrets_in([self.store, self.discovery_store, self.transport, self.options]))

    @property
    def transport_url(self) -> str:
        """Where to listen, as one URL; empty: nowhere."""
        if not self.transport or not _PLAIN_NAME.fullmatch(self.transport):
            return self.transport
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{self.transport}://{host}:{self.port}"


KEYS = tuple(field.name for field in attrs.fields(Config) if field.name != "origins")


def load(
    file: Path | str | None = None, *, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> Config:
    """Return the configuration.

    Args:
        file: A TOML file (YAML if its library is installed), or none.
        flags: What stands on the command line, by key; None for a flag that was not given.
        environ: The environment; by default this process's.

    Raises:
        SecretOnCommandLine: A flag's URL has a password.
        UnknownSetting, Unsupported, ConfigError: All problems at once, in the text and as `problems`.
    """
    config, problems = read(file, flags=flags, environ=environ)
    raise_problems(problems)
    return config


def read(
    file: Path | str | None = None, *, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> tuple[Config, list[Problem]]:
    """Return what `load` would, with the default in place of what cannot be used, and all problems but those of what
    this release does not have.

    Raises:
        SecretOnCommandLine, ConfigError: As `load`, where nothing can be read.
    """
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    for key, value in given.items():
        if isinstance(value, str) and has_password(value):
            variable = ENV_PREFIX + key.upper()
            raise SecretOnCommandLine(
                f"{_flag(key)} {without_password(value)}: a password on the command line can be read by every user of "
                f"this machine; set {variable}, or write the URL into the file that -c names"
            )
    problems: list[Problem] = []
    layers = [
        _layer(_read(Path(file)) if file is not None else {}, str(file), lambda _: str(file), problems),
        _layer(_environment(os.environ if environ is None else environ, problems), "", _variable, problems),
        _layer(given, "", _flag, problems),
    ]
    values = {key: value for layer, _ in layers for key, value in layer.items()}
    origins = dict.fromkeys(KEYS, DEFAULT) | {key: origin for _, some in layers for key, origin in some.items()}
    values = {key: value for key, value in values.items() if value is not None}  # None: a problem says why
    if origins["call_sec"] == DEFAULT:
        values["call_sec"] = call_sec_of(values.get("lease_sec", Config().lease_sec))
    if origins["stall_sec"] == DEFAULT:
        values["stall_sec"] = stall_sec_of(values.get("lease_sec", Config().lease_sec))
    config = Config(**values, origins=origins)
    return config, [*problems, *_problems_together(config)]


def _flag(key: str) -> str:
    if key == "agent":
        return "AGENT"  # `run` takes it by its place
    return "--" + {"pool_id": "pool", "plugins": "plugin", "grace_sec": "grace"}.get(key, key).replace("_", "-")


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper()


def _layer(
    data: Mapping[str, Any], where: str, origin: Any, problems: list[Problem]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return one source's checked values, and where each comes from; add its problems, in the words of that source."""
    if not data:
        return {}, {}
    data = {key: (list(value) if isinstance(value, tuple) else value) for key, value in joined(data).items()}
    values, found = checked(Config, {key: value for key, value in data.items() if key != "origins"})
    found += [unknown("origins", KEYS)] if "origins" in data else []
    for problem in found:
        key, dot, rest = problem.path.partition(".")
        shown = f"{where}: {problem.path}" if where else f"{origin(key)}{dot}{rest}"
        problems.append(attrs.evolve(problem, path=shown, text=problem.text.replace(", origins", "")))
    return values, {key: origin(key) for key in values}


def _read(file: Path) -> Mapping[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix in (".yaml", ".yml"):
            yaml = importlib.import_module("yaml")
            data = yaml.safe_load(text) or {}
        else:
            data = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except ModuleNotFoundError as error:
        raise ConfigError(f"{file}: reading YAML needs its library; pip install pyyaml, or write TOML") from error
    except Exception as error:  # what a parser raises depends on the library; its text says where
        raise ConfigError(f"{file}: cannot be read: {error}") from error
    if not isinstance(data, Mapping):
        raise ConfigError(f"{file}: expected keys and values")
    return data


def _environment(environ: Mapping[str, str], problems: list[Problem]) -> dict[str, Any]:
    """Return the settings of the environment, by the types of their keys; add problems for what has another type."""
    fields = {field.name: field for field in attrs.fields(attrs.resolve_types(Config))}
    variables = {_variable(key): key for key in KEYS if key not in ("options", "retention")}
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or _KUBERNETES.fullmatch(variable):
            continue
        key = variables.get(variable)
        if key is None:
            if found := _PASSWORD_OF.fullmatch(variable):
                names = {one.name: f"{ENV_PREFIX}{one.name.upper()}_PASSWORD" for one in PluginHost().installed()}
                if found[1].lower() in names:
                    continue  # the plugin reads it
                variables |= dict.fromkeys(names.values(), "")  # to name the nearest
            if variable in (_variable("options"), _variable("retention")):
                problems.append(Problem(variable, "a table can be set in the file only", True))
                continue
            near = difflib.get_close_matches(variable, variables, n=1)
            problems.append(
                Problem(variable, f'unknown variable; did you mean "{near[0]}"?' if near else "unknown variable", True)
            )
        elif not (key == "port" and _KUBERNETES_PORT.match(text)):
            values[key] = _from_text(text, fields[key].type)
    return values


def _from_text(text: str, type_: Any) -> Any:
    """Return the value that a variable's text stands for; or the text, of which the check of types then tells."""
    if type_ == tuple[str, ...]:
        return [part.strip() for part in text.split(",") if part.strip()]
    if type_ is bool:
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}.get(text.lower(), text)
    if type_ == Agents:
        type_ = int  # a list of tables has no place in a variable
    try:
        return type_(text) if type_ in (int, float) else text
    except ValueError:
        return text


def _problems_together(config: Config) -> list[Problem]:
    """Return the problems of several keys together."""
    problems = []
    if text := call_problem(config.call_sec, config.lease_sec):
        problems.append(Problem("call_sec", text))
    if text := stall_problem(config.stall_sec, config.lease_sec):
        problems.append(Problem("stall_sec", text))
    if config.agent and not isinstance(config.agents, int):
        problems.append(Problem("agent", "counts only where agents is a number; each entry of a list names its type"))
    is_name = bool(_PLAIN_NAME.fullmatch(config.transport))
    if is_name and (transports := _unknown_transport(config.transport)):
        problems.append(Problem("transport", transports))
    elif is_name and not config.host:
        problems.append(
            Problem(
                "host", f'is missing; transport "{config.transport}" is a name, so host and port say where to listen'
            )
        )
    for key in ("host", "port"):
        if not is_name and config.origins[key] != DEFAULT:
            problems.append(Problem(key, "counts only where transport is a name, such as tcp; a URL says both itself"))
    return [attrs.evolve(problem, path=_where(config, problem.path)) for problem in problems]


def needing_transport(config: Config) -> list[Problem]:
    """Return the settings that have no effect without a transport. Commands that run no agents read the same file, and
    `run` may be given its transport on the command line.
    """
    if config.transport:
        return []
    text = "is not allowed without a transport"
    texts = {
        "require_tls": f"{text}: agents of one process reach each other without a connection",
        "advertise": text,
    }
    return [Problem(_where(config, key), one) for key, one in texts.items() if getattr(config, key)]


def _unknown_transport(name: str) -> str:
    """Return what is wrong with the name of a transport; empty where a plugin has it, or one of an import path may."""
    known = sorted(one.name for one in PluginHost().installed())
    near = difflib.get_close_matches(name, known, n=1)
    return f'no installed plugin is named "{name}"; did you mean "{near[0]}"?' if name not in known and near else ""


def _where(config: Config, key: str) -> str:
    origin = config.origins[key]
    if origin == DEFAULT:
        return key
    return origin if origin in (_flag(key), _variable(key)) else f"{origin}: {key}"


@contextmanager
def options_with_origin(config: Config) -> Iterator[None]:
    """Put the file's name before the problems with `[options.NAME]` that show only when the backend is opened."""
    try:
        yield
    except ConfigError as error:
        if not error.problems or not all(problem.startswith("options.") for problem in error.problems):
            raise
        lines = [f"{config.origins['options']}: {problem}" for problem in error.problems]
        raise type(error)("\n".join(lines), problems=lines) from error


def check_options(config: Config, host: PluginHost) -> None:
    """Refuse `[options.NAME]` of a backend that is neither installed nor loaded: a typo would be silent.

    Raises:
        UnknownSetting: Which, and the nearest name.
    """
    for name in config.options:
        with suppress(ConfigError):  # a plugin of several backends names some as their scheme: sql has mysql
            if name not in _backends(host):
                host.store_backend(f"{name}:")
    known = _backends(host)
    where = f"{config.origins['options']}: options."
    raise_problems([unknown(f"{where}{name}", known) for name in config.options if name not in known])


def _backends(host: PluginHost) -> list[str]:
    return sorted({name for one in host.installed() for name in (one.name, *one.backends)})
