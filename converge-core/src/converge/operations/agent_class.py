"""Resolve `module:Class` to the agent's class, with the working directory first; a typo names the nearest."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import TypeGuard, cast

from converge.errors import ConfigError, ConvergeError
from converge.foreign import Raised, guarded
from converge.runtime.agents.agent import Agent, check_agent_class
from converge.runtime.config.fields import AgentGroup


def find_agent(target: str, folder: Path | None = None) -> type[Agent]:
    """Return the class that `module:Class` names; `folder` (the working directory) comes before installed modules.

    Raises:
        ConfigError: There is no such module or class, importing it failed, or it is not an agent.
    """
    folder = folder or Path.cwd()
    module_name, colon, class_name = target.partition(":")
    if not (module_name and colon and class_name):
        raise ConfigError(f'agent "{target}" is not written as module:Class, such as wordcount:WordCounter')
    first_on_path(folder)
    module = _module(target, module_name, folder)
    found: object = module
    for part in class_name.split("."):
        found = guarded(getattr, found, part)
        if type(found) is Raised:
            if not found.is_a(AttributeError):
                raise ConfigError(f'agent "{target}": "{part}" cannot be looked up: {found.text}') from found.error
            raise ConfigError(f'agent "{target}": {module_name} has no "{part}"; {_agents_of(module, part)}')
    if not _is_agent(found):
        raise ConfigError(
            f'agent "{target}": {class_name} is not a subclass of converge.Agent; {_agents_of(module, class_name)}'
        )
    try:
        check_agent_class(found)
    except ConvergeError as error:
        raise ConfigError(f'agent "{target}": {error}') from error
    return found


def _is_agent(found: object) -> TypeGuard[type[Agent]]:
    """Return whether it is a class of agents; proxies, which ask what they stand for, are not."""
    return issubclass(type(found), type) and issubclass(found, Agent)  # type: ignore[arg-type]  # it is a class


def agent_class(group: AgentGroup, folder: Path | None = None) -> type[Agent]:
    """Return the class that an entry of `agents` names, with the entry's own in place of what the class says.

    Raises:
        ConfigError: As `find_agent`.
    """
    cls = find_agent(group.type, folder)
    own = {"capabilities": group.capabilities, "topics": group.topics, "concurrency": group.concurrency}
    given = {name: value for name, value in own.items() if value is not None}
    if not given:
        return cls
    # The name stays: logs and descriptors tell what people wrote.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    made = guarded(type, cls.__name__, (cls,), {**given, **names})
    if type(made) is Raised:
        raise ConfigError(f'agent "{group.type}": it cannot have {", ".join(given)} here: {made.text}') from made.error
    return cast(type[Agent], made)


def first_on_path(folder: Path) -> None:
    """Put the folder first on the import path, as `python -m` does with the working directory."""
    if not sys.path or sys.path[0] != str(folder):
        sys.path.insert(0, str(folder))


def _module(target: str, name: str, folder: Path) -> object:
    importlib.invalidate_caches()
    module = guarded(importlib.import_module, name)
    if type(module) is not Raised:
        return module
    error = module.error
    absent = error.name if isinstance(error, ModuleNotFoundError) else None
    if absent and f"{name}.".startswith(f"{absent}."):
        near = _nearest_module(name, folder)
        hint = (
            f'did you mean "{near}"?' if near else f"it was looked for in {folder} first, then among installed modules"
        )
        raise ConfigError(f'agent "{target}": there is no module "{absent}"; {hint}') from error
    raise ConfigError(f'agent "{target}": importing {name} failed: {module.text}') from error


def _nearest_module(name: str, folder: Path) -> str:
    """Return the module below the folder whose name is nearest, part by part; empty: none is near."""
    parts = name.removesuffix(".py").split(".")
    for at, part in enumerate(parts):
        known = _modules_in(folder.joinpath(*parts[:at]))
        if part in known:
            continue
        near = difflib.get_close_matches(part, known, n=1)
        if not near:
            return ""
        parts[at] = near[0]
    nearest = ".".join(parts)
    return nearest if nearest != name else ""


def _modules_in(folder: Path) -> list[str]:
    files = [file.stem for file in folder.glob("*.py")]
    return files + [file.parent.name for file in folder.glob("*/__init__.py")]


def _agents_of(module: object, wanted: str) -> str:
    agents = [name for name, one in vars(module).items() if _is_agent(one) and one is not Agent]
    near = difflib.get_close_matches(wanted, agents, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"its agents are {', '.join(sorted(agents))}" if agents else "it has no agents"
