"""From a named plugin to what it declares: import, checks of hooks, declarations and contract numbers."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from traceback import walk_tb
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
from converge.foreign import Raised, guarded, is_a, name_of
from converge.plugins.declaration import NAME, Backend, mistakes, shown, told
from converge.plugins.found import Found, gone_folder, title

_TARGET = re.compile(r"\w+(\.\w+)*(:(\w+(\.\w+)*)?)?")
_WORDS = re.compile(r"[a-z][a-z0-9-]*( [a-z][a-z0-9-]*)?")


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
    """Return what an entry point or an import path names.

    Raises:
        PluginMissing, PluginBroken: It names nothing, or what it names cannot be imported.
    """
    if not _TARGET.fullmatch(found.target):
        raise (PluginBroken if found.distribution else PluginMissing)(
            f'{title(found)} names "{found.target}", expected a module or module:attribute'
        )
    module_name, _, attribute = found.target.partition(":")
    module = guarded(importlib.import_module, module_name)
    if type(module) is Raised:
        error = module.error
        absent = getattr(error, "name", None) if is_a(error, ModuleNotFoundError) else None
        if absent and f"{module_name}.".startswith(f"{absent}.") and not found.distribution:
            raise PluginMissing(f'{title(found)}: there is no module "{absent}" on the import path') from error
        hint = _hint(found, module_name, absent) if absent else where(error, module_name)
        raise PluginBroken(f"{title(found)} cannot be imported: {module.text}{hint}") from error
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


def _hint(found: Found, module: str, absent: str) -> str:
    """Return what to do about a module that a plugin's import did not find."""
    if absent.partition(".")[0] == module.partition(".")[0]:
        if gone := gone_folder(found):
            mend = f"install it from where it is now, or pip uninstall {found.distribution}"
            return f"; it was installed from {gone}, which is gone: {mend}"
        return "; name one that the package has, in the entry point or the import"
    return f"; install what has it, and name that in the dependencies of {found.distribution or 'the plugin'}"


def where(error: BaseException, module: str) -> str:
    """Return the place in the package of that module which raised an error, such as ` (store.py, line 7)`."""
    package, place = module.partition(".")[0], ""
    for frame, line in walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] == package:
            place = f" ({Path(frame.f_code.co_filename).name}, line {line})"
    return place


def _declaring(backend: Backend) -> object:
    """Return a plugin that declares this one backend: `--plugin module:TOY` may name the declaration itself."""
    kind = next(kind for kind in KINDS if isinstance(backend, kind.type))

    @hookspecs.hookimpl
    def declare() -> Iterable[Backend]:
        return [backend]

    return SimpleNamespace(**{kind.hook: declare})


@attrs.frozen(kw_only=True)
class Declared:
    """What a plugin declares: backends by the word of their contract, kinds of decision, commands."""

    backends: dict[str, list[Backend]]
    decisions: list[DecisionKind]
    commands: list[Command]


def declared(found: Found, plugin: object) -> Declared:
    """Return what the plugin declares; it is not registered anywhere yet.

    Raises:
        HookUnknown, PluginBroken, ContractMismatch: All that is wrong with its hooks and declarations, a line each.
    """
    manager = new_manager()
    hooks, broken, other, causes = (
        told(_hook_mistakes, found, plugin, manager),
        list[str](),
        list[str](),
        list[BaseException](),
    )
    backends = {kind.word: list[Backend]() for kind in KINDS}
    decisions, commands = list[Any](), list[Any]()
    if not hooks:
        for kind in KINDS:
            for one in _returned(found, manager, kind.hook, broken, causes):
                if not isinstance(one, kind.type):
                    broken.append(f"{kind.hook} returned {name_of(type(one))}, expected {kind.type.__name__}")
                    continue
                backends[kind.word].append(one)
                broken += mistakes(kind.word, one)
                other += told(_contract_mistakes, kind, one)
            broken += told(_doubles, kind, backends[kind.word])
        for one in _returned(found, manager, "converge_decisions", broken, causes):
            broken += told(_decision_mistakes, one)
            decisions.append(one)
        for one in _returned(found, manager, "converge_commands", broken, causes):
            broken += told(_command_mistakes, one)
            commands.append(one)
    lines = [f"{title(found)}: {line}" for line in (*other, *hooks, *broken)]
    if lines:
        kind_of_error = ContractMismatch if other else HookUnknown if hooks else PluginBroken
        raise kind_of_error("\n".join(lines)) from next(iter(causes), None)
    return Declared(backends=backends, decisions=decisions, commands=commands)


def _returned(
    found: Found, manager: pluggy.PluginManager, hook: str, broken: list[str], causes: list[BaseException]
) -> list[Any]:
    """Return what the implementation of a hook returns; what fails is noted."""
    declared = list[Any]()
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        answer = guarded(_listed, implementation.function)
        if type(answer) is Raised:
            place = where(answer.error, found.target.partition(":")[0])
            broken.append(f"{hook} failed: {answer.text}{place}")
            causes.append(answer.error)
        elif isinstance(answer, list):
            declared += answer
        else:
            broken.append(f"{hook} returned {name_of(answer)}, expected a list of declarations")
    return declared


def _listed(hook: Callable[[], Any]) -> list[Any] | type[Any]:
    """Return what a hook returns, in a list, for it may be a generator; the type of what cannot be one."""
    answer = hook()
    if not isinstance(answer, Iterable) or isinstance(answer, str):
        return type(answer)
    return list(answer)


def _schemes(backend: Any) -> Sequence[Any]:
    return backend.schemes if isinstance(backend.schemes, tuple | list) else ()  # a text is one mistake already


def _doubles(kind: Kind, backends: list[Backend]) -> Iterator[str]:
    for what, names in (
        ("", [one.name for one in backends]),
        (
            " with the scheme",
            [scheme for one in backends for scheme in _schemes(one)],
        ),
    ):
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"it declares the {kind.word}{what} {shown(name)} twice; give one of them another"


def _contract_mistakes(kind: Kind, backend: Backend) -> Iterator[str]:
    number: object = backend.contract
    what = f"its {kind.word} {shown(backend.name)}"
    if type(number) is not int:
        yield f"{what} names the contract {shown(number)}, expected a whole number, such as {kind.contract}"
    elif number != kind.contract:
        newer = "upgrade converge-core" if number > kind.contract else "upgrade the plugin"
        yield (f"{what} was written for contract {number}, this release has {kind.contract}; {newer}")


def _decision_mistakes(kind: object) -> Iterator[str]:
    if not isinstance(kind, DecisionKind):
        yield f"converge_decisions returned {name_of(type(kind))}, expected DecisionKind"
        return
    name: object = kind.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield f"{shown(name)} is not a name for a decision: lower case, a-z first, then a-z 0-9 -"
    if not inspect.isclass(kind.type) or not attrs.has(kind.type):
        yield f'the type of the decision "{kind.name}" is no attrs class'
    if not inspect.iscoroutinefunction(kind.handler):
        yield f'the handler of the decision "{kind.name}" is no async function'
        return
    try:
        inspect.signature(kind.handler).bind("context", "decision")
    except TypeError as error:
        yield f'the handler of the decision "{kind.name}" cannot be called as handler(context, decision): {error}'


def _command_mistakes(command: object) -> Iterator[str]:
    if not isinstance(command, Command):
        yield f"converge_commands returned {name_of(type(command))}, expected Command"
        return
    name: object = command.name
    if not isinstance(name, str) or not _WORDS.fullmatch(name):
        yield f"{shown(name)} is not a name for a command: one word or two, lower case, a-z first, then a-z 0-9 -"
    run, help_ = cast("Any", command.run), cast("Any", command.help)  # nobody has checked their types
    if not callable(run) or inspect.iscoroutinefunction(run):
        yield f'run of the command "{command.name}" is not a plain function'
    if not isinstance(help_, str) or not help_.strip():
        yield f'the command "{command.name}" has no help'


def _hook_mistakes(found: Found, plugin: object, manager: pluggy.PluginManager) -> Iterator[str]:
    """Yield what is wrong with the plugin's hooks; where nothing is, it is registered with the manager."""
    known = sorted(spec for spec in dir(hookspecs) if spec.startswith("converge_"))
    is_wrong = False
    for name in dir(plugin):
        function = getattr(plugin, name, None)
        mark = getattr(function, "converge_impl", None)
        wrong = ""
        if mark is None:
            if name.startswith("converge_") and inspect.isroutine(function):
                wrong = f"{name} is not marked; put @hookimpl of converge.hookspecs before it"
        elif inspect.iscoroutinefunction(function):
            wrong = f"{name} is a coroutine; hooks are plain functions, and never awaited"
        elif mark.get("wrapper") or mark.get("hookwrapper"):
            wrong = f"{name} is a wrapper; Converge's hooks take none"
        elif (hook := mark.get("specname") or name) not in known:
            near = difflib.get_close_matches(hook, known, n=1)
            hint = f'did you mean "{near[0]}"?' if near else f"there are {', '.join(known)}"
            wrong = f'there is no hook "{hook}"; {hint}'
        elif extra := _unknown_arguments(function, getattr(hookspecs, hook)):
            takes = ", ".join(_arguments(getattr(hookspecs, hook))) or "nothing"
            wrong = f"{name} takes {', '.join(extra)}, which the hook does not give; it gives {takes}"
        if wrong:
            is_wrong = True
            yield wrong
    if not any(hasattr(getattr(plugin, name, None), "converge_impl") for name in dir(plugin)) and not is_wrong:
        yield f"{found.target} has no hook; name the module that has it, such as MODULE.plugin, or mark one @hookimpl"
        return
    if not is_wrong:
        try:
            manager.register(plugin, name=found.name)
        except pluggy.PluginValidationError as error:
            yield f"{str(error).splitlines()[-1].strip()}; see the hook in converge.hookspecs"


def _arguments(function: Any) -> list[str]:
    """Return what a hook takes by name; what has a default is its own."""
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.name != "self" and one.default is one.empty]


def _unknown_arguments(function: Any, spec: Any) -> list[str]:
    known = _arguments(spec)
    return [name for name in _arguments(function) if name not in known]
