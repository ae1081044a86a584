"""From a named plugin to what it declares: import, checks of hooks, declarations and contract numbers."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast

import attrs
import pluggy

from converge import hookspecs
from converge.contracts import discovery, store, transport
from converge.contracts.commands import Command
from converge.contracts.decisions import DecisionKind
from converge.contracts.discovery import DiscoveryBackend
from converge.contracts.store import StoreBackend
from converge.contracts.transport import TransportBackend
from converge.errors import ContractMismatch, HookUnknown, PluginBroken, PluginMissing
from converge.plugins.found import Found, title

NAME = re.compile(r"[a-z][a-z0-9-]*")
_WORDS = re.compile(r"[a-z][a-z0-9-]*( [a-z][a-z0-9-]*)?")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")

Backend = StoreBackend | TransportBackend | DiscoveryBackend


@attrs.frozen(kw_only=True)
class Kind:
    """One of the three contracts, as plugins declare and users name it."""

    word: str
    hook: str
    type: type[Any]
    contract: int


STORE = Kind(word="store", hook="converge_stores", type=StoreBackend, contract=store.CONTRACT)
TRANSPORT = Kind(word="transport", hook="converge_transports", type=TransportBackend, contract=transport.CONTRACT)
DISCOVERY = Kind(word="discovery", hook="converge_discoveries", type=DiscoveryBackend, contract=discovery.CONTRACT)
KINDS = (STORE, TRANSPORT, DISCOVERY)


def new_manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    return manager


def import_plugin(found: Found) -> object:
    module_name, _, attribute = found.target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and f"{module_name}.".startswith(f"{absent}.") and not found.distribution:
            raise PluginMissing(f'{title(found)}: there is no module "{absent}" on the import path') from error
        raise PluginBroken(f"{title(found)} cannot be imported: {type(error).__name__}: {error}") from error
    plugin: object = module
    for part in attribute.split(".") if attribute else ():
        if not hasattr(plugin, part):
            near = difflib.get_close_matches(part, dir(plugin), n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise (PluginBroken if found.distribution else PluginMissing)(
                f'{title(found)}: {module_name} has no "{part}"{hint}'
            )
        plugin = getattr(plugin, part)
    return _declaring(plugin) if isinstance(plugin, Backend) else plugin


def _declaring(backend: Backend) -> object:
    """Return a plugin that declares this one backend: `--plugin module:TOY` may name the declaration itself."""
    kind = next(kind for kind in KINDS if isinstance(backend, kind.type))

    @hookspecs.hookimpl
    def declare() -> Iterable[Backend]:
        return [backend]

    return SimpleNamespace(**{kind.hook: declare})


def declared(found: Found, plugin: object) -> dict[str, list[Backend]]:
    """Return what the plugin declares, after checking its hooks and declarations; it is not registered anywhere yet."""
    manager = new_manager()
    _check_hooks(found, plugin, manager)
    backends: dict[str, list[Backend]] = {}
    for kind in KINDS:
        try:
            backends[kind.word] = [one for some in getattr(manager.hook, kind.hook)() for one in some]
        except Exception as error:
            raise PluginBroken(f"{title(found)}: {kind.hook} failed: {type(error).__name__}: {error}") from error
        for backend in backends[kind.word]:
            _check_backend(found, kind, backend)
    return backends


def declared_decisions(found: Found, plugin: object) -> list[DecisionKind]:
    """Return the kinds of decision that the plugin declares, after checking them; its hooks were checked before."""
    kinds = _all_of("converge_decisions", found, plugin)
    for kind in kinds:
        if not isinstance(kind, DecisionKind):
            raise PluginBroken(
                f"{title(found)}: converge_decisions returned {type(kind).__name__}, expected DecisionKind"
            )
        if not NAME.fullmatch(str(kind.name)):
            raise PluginBroken(
                f"{title(found)}: {kind.name!r} is not a name for a decision: lower case, a-z first, then a-z 0-9 -"
            )
        if not inspect.isclass(kind.type) or not attrs.has(kind.type):
            raise PluginBroken(f'{title(found)}: the type of the decision "{kind.name}" is no attrs class')
        if not inspect.iscoroutinefunction(kind.handler):
            raise PluginBroken(f'{title(found)}: the handler of the decision "{kind.name}" is no async function')
    return kinds


def declared_commands(found: Found, plugin: object) -> list[Command]:
    """Return the commands that the plugin declares, after checking them; its hooks were checked before."""
    commands = _all_of("converge_commands", found, plugin)
    for command in commands:
        if not isinstance(command, Command):
            raise PluginBroken(f"{title(found)}: converge_commands returned {type(command).__name__}, expected Command")
        if not _WORDS.fullmatch(str(command.name)):
            raise PluginBroken(
                f"{title(found)}: {command.name!r} is not a name for a command: one word or two, lower case, a-z "
                f"first, then a-z 0-9 -"
            )
        run, help_ = cast("Any", command.run), cast("Any", command.help)  # nobody has checked their types
        if not callable(run) or inspect.iscoroutinefunction(run):
            raise PluginBroken(f'{title(found)}: run of the command "{command.name}" is no plain function')
        if not isinstance(help_, str) or not help_.strip():
            raise PluginBroken(f'{title(found)}: the command "{command.name}" has no help')
    return commands


def _all_of(hook: str, found: Found, plugin: object) -> list[Any]:
    """Return all that a hook of this one plugin declares."""
    manager = new_manager()
    manager.register(plugin, name=found.name)
    try:
        return [one for some in getattr(manager.hook, hook)() for one in some]
    except Exception as error:
        raise PluginBroken(f"{title(found)}: {hook} failed: {type(error).__name__}: {error}") from error


def _check_hooks(found: Found, plugin: object, manager: pluggy.PluginManager) -> None:
    known = sorted(spec for spec in dir(hookspecs) if spec.startswith("converge_"))
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        is_marked = getattr(function, "converge_impl", None) is not None
        if name.startswith("converge_") and inspect.isroutine(function) and not is_marked:
            raise HookUnknown(f"{title(found)}: {name} is not marked; put @hookimpl of converge.hookspecs before it")
        if is_marked and inspect.iscoroutinefunction(function):
            raise HookUnknown(f"{title(found)}: {name} is a coroutine; hooks are plain functions, and never awaited")
    try:
        manager.register(plugin, name=found.name)
    except pluggy.PluginValidationError as error:
        reason = str(error).splitlines()[-1]
        raise HookUnknown(f"{title(found)}: {reason.strip()}; see the hook in converge.hookspecs") from error
    for hook in sorted(manager.hook.__dict__):
        for impl in getattr(manager.hook, hook).get_hookimpls() if hook.startswith("converge_") else ():
            if impl.wrapper or impl.hookwrapper:
                raise HookUnknown(f"{title(found)}: {hook} is a wrapper; Converge's hooks take none")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        name = next(
            (
                name
                for name in dir(plugin)
                if getattr(getattr(plugin, name, None), "converge_impl", None) and name not in known
            ),
            "?",
        )
        near = difflib.get_close_matches(name, known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
        raise HookUnknown(f'{title(found)}: there is no hook "{name}"; {hint}') from error


def _check_backend(found: Found, kind: Kind, backend: object) -> None:
    if not isinstance(backend, kind.type):
        raise PluginBroken(
            f"{title(found)}: {kind.hook} returned {type(backend).__name__}, expected {kind.type.__name__}"
        )
    if backend.contract != kind.contract:
        newer = (
            "upgrade converge-core"
            if isinstance(backend.contract, int) and backend.contract > kind.contract
            else "upgrade the plugin"
        )
        raise ContractMismatch(
            f'{title(found)}: its {kind.word} "{backend.name}" was written for contract {backend.contract}, '
            f"this release has {kind.contract}; "
            f"{newer}"
        )
    bad = [scheme for scheme in backend.schemes if not _SCHEME.fullmatch(scheme)]
    if not NAME.fullmatch(backend.name) or bad:
        raise PluginBroken(
            f"{title(found)}: {(bad or [backend.name])[0]!r} is not a name for a {kind.word}: lower case, a-z "
            f"first, then a-z 0-9 -"
        )
    if not attrs.has(backend.options):
        raise PluginBroken(f'{title(found)}: the options of the {kind.word} "{backend.name}" are no attrs class')
