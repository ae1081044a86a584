"""PluginHost: finds plugins, loads what was named, refuses what does not fit, says why.

Whatever is installed is only listed, from the metadata of its distribution; it is imported when its name, one of its
backends or one of its URL schemes is asked for. Built-in backends come in through the same door.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import attrs
import pluggy

from converge.contracts.commands import CORE_COMMANDS, Command
from converge.contracts.decisions import CORE_DECISIONS, DecisionKind
from converge.contracts.discovery import DiscoveryBackend
from converge.contracts.store import StoreBackend
from converge.contracts.transport import TransportBackend
from converge.errors import ConfigError, InvalidValue, PluginDuplicate, PluginMissing, PluginRefused, Undeliverable
from converge.foreign import Raised, detached, name_of, tell
from converge.model.message import Message
from converge.plugins.blame import note_loaded
from converge.plugins.declaration import NAME, Backend
from converge.plugins.declared import DISCOVERY, KINDS, STORE, TRANSPORT, Kind, declared, import_plugin, new_manager
from converge.plugins.found import (
    CORE,
    DISTRIBUTIONS,
    NAMES_GROUP,
    RESERVED_NAMES,
    RESERVED_SCHEMES,
    SCHEMES_GROUP,
    Found,
    entries,
    missing,
    only,
    title,
)
from converge.plugins.loaded import Loaded, loaded_from
from converge.plugins.loading import loading
from converge.plugins.opened import Opened, Opens
from converge.urls import check_host, scheme_of

log = logging.getLogger("converge.plugins")

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Installed:
    """What the metadata of a distribution says of a plugin, and, once it is loaded, what it declares.

    Attributes:
        name: What `--plugin` takes.
        distribution, version: Whose it is; empty for one from an import path.
        schemes: URL schemes that load it.
        kinds: `store`, `transport`, `discovery`, `decision`, `command`: what it declares; empty until it is loaded, and
            of a plugin that only observes.
        backends: The names of what it declares, likewise.
        is_loaded: Whether this host has loaded it.
    """

    name: str
    distribution: str
    version: str
    schemes: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    is_loaded: bool = False


@attrs.frozen(kw_only=True)
class _Loaded:
    found: Found
    backends: Mapping[str, Sequence[Backend]]


class PluginHost:
    """The plugins of one process. `plugins`: what `--plugin` takes: a name, `module:attribute`, or `no:NAME`; named
    ones are loaded at once.

    Raises:
        PluginError: One of its leaves: what is wrong with which plugin, and what to do.
    """

    def __init__(self, plugins: Sequence[str] = ()) -> None:
        self._manager = new_manager()
        self._loaded: dict[str, _Loaded] = {}  # by target
        self._backends: dict[tuple[str, str], tuple[Backend, Found]] = {}
        self._schemes: dict[tuple[str, str], tuple[Backend, Found]] = {}
        self._decisions: list[tuple[DecisionKind, Found]] = []
        self._commands: list[tuple[Command, Found]] = []
        self._by_name = entries(NAMES_GROUP)
        self._by_scheme = entries(SCHEMES_GROUP)
        self._refused = {self._refusal(name.removeprefix("no:")) for name in plugins if name.startswith("no:")}
        for name in plugins:
            if not name.startswith("no:"):
                self.load(name)

    @property
    def decisions(self) -> Sequence[DecisionKind]:
        """The kinds of decision that the loaded plugins declare, in load order."""
        return [kind for kind, _ in self._decisions]

    @property
    def commands(self) -> Sequence[Command]:
        """The commands that the loaded plugins declare, in load order."""
        return [command for command, _ in self._commands]

    @property
    def hook(self) -> pluggy.HookRelay:
        """The hooks of the loaded plugins."""
        return self._manager.hook

    def load(self, name: str) -> None:
        """Load a plugin by its name or as `module:attribute`; one that is loaded already stays as it is.

        Raises:
            PluginError: It cannot be used.
        """
        if ":" in name:
            self._register(Found(name=name, target=name, distribution="", version=""))
        else:
            self._register(self._named(name))

    def store_backend(self, url: str) -> StoreBackend:
        """Return the store backend of the URL's scheme, loading its plugin.

        Raises:
            ConfigError: It is not a URL.
            PluginError: There is none, or it cannot be used.
        """
        backend = self._of_scheme(STORE, self._scheme(STORE, url))
        assert isinstance(backend, StoreBackend), "the host keeps backends by their kind"
        return backend

    def transport_backend(self, url_or_name: str) -> TransportBackend:
        """Return the transport backend of a URL's scheme, or of that name, loading its plugin.

        Raises:
            ConfigError: It is neither a name nor a URL.
            PluginError: There is none, or it cannot be used.
        """
        is_name = NAME.fullmatch(url_or_name) is not None
        backend = (
            self._of_name(TRANSPORT, url_or_name)
            if is_name
            else self._of_scheme(TRANSPORT, self._scheme(TRANSPORT, url_or_name))
        )
        assert isinstance(backend, TransportBackend), "the host keeps backends by their kind"
        return backend

    def discovery_backend(self, name: str) -> DiscoveryBackend:
        """Return the discovery backend of that name, loading its plugin.

        Raises:
            PluginError: There is none, or it cannot be used.
        """
        backend = self._of_name(DISCOVERY, name)
        assert isinstance(backend, DiscoveryBackend), "the host keeps backends by their kind"
        return backend

    def opened(self, backend: Backend, opens: Opens[T], wanted: type[Any]) -> Opened[T]:
        """Return what `opens` calls the backend's `open` for, to be entered: its plugin's mistakes are told as such."""
        for (word, name), (one, found) in self._backends.items():
            if one is backend:
                return Opened(f'{title(found)}: the {word} "{name}"', opens, wanted, backend, found)
        return Opened(f'"{backend.name}"', opens, wanted, backend)

    def installed(self) -> list[Installed]:
        """Return what is installed and what was loaded from an import path, by name, without importing anything."""
        found = [one for some in self._by_name.values() for one in some]
        found += [loaded.found for loaded in self._loaded.values() if not loaded.found.distribution]
        return sorted((self._listed(one) for one in found), key=lambda one: (one.name, one.distribution))

    def loaded(self) -> list[Loaded]:
        """Return what this host has loaded, in load order."""
        return [loaded_from(one.found, one.backends, self._manager) for one in self._loaded.values()]

    def has(self, hook: str) -> bool:
        """Return whether a loaded plugin implements the hook: where none does, nothing need be made for it."""
        return bool(getattr(self._manager.hook, hook).get_hookimpls())

    def observe(self, hook: str, **values: Any) -> None:
        """Call the observers of a hook in load order. One that raises is logged, and changes nothing."""
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            outcome = detached(impl.function, *(values[name] for name in impl.argnames))
            if type(outcome) is Raised:  # an observer must not stop what it observes
                text = "plugin %s: %s failed; what it observed goes on"
                tell(log, logging.ERROR, text, impl.plugin_name, hook, error=outcome.error)

    def guard(self, hook: str, message: Message) -> Message:
        """Pass the message through the guards of a hook, in load order; return it. Whose message it is stays.

        Raises:
            Undeliverable: A guard refused it, or failed; the cause is chained.
        """
        for impl in getattr(self._manager.hook, hook).get_hookimpls():
            answer = detached(impl.function, *(message for _ in impl.argnames))
            if type(answer) is Raised:  # a guard that raises refuses
                raise Undeliverable(f"plugin {impl.plugin_name} refused the message: {answer.text}") from answer.error
            if answer is not None and not issubclass(type(answer), Message):
                raise Undeliverable(
                    f"plugin {impl.plugin_name}: {hook} returned {name_of(type(answer))}, no Message; the message "
                    f"is refused"
                )
            if answer is not None and (answer.id, answer.sender, answer.recipient) != (
                message.id,
                message.sender,
                message.recipient,
            ):
                raise Undeliverable(
                    f"plugin {impl.plugin_name}: {hook} changed id, sender or recipient; the message is refused"
                )
            message = message if answer is None else answer
        return message

    def _named(self, name: str) -> Found:
        found = only(self._by_name.get(name, []), f'plugin "{name}"', is_reserved=name in RESERVED_NAMES)
        if found is None:
            raise missing(f'plugin "{name}"', name, [*self._by_name, *DISTRIBUTIONS.keys()])
        return found

    def _scheme(self, kind: Kind, url: object) -> str:
        try:
            scheme = scheme_of(url, kind.word)
            if kind is STORE:
                check_host(str(url))
            return scheme
        except InvalidValue as error:
            known = [*self._by_scheme, *(known for word, known in self._schemes if word == kind.word)]
            near = difflib.get_close_matches(url, known, n=1) if isinstance(url, str) else []
            raise ConfigError(f'{error}; did you mean "{near[0]}:"?' if near else str(error)) from error

    def _of_scheme(self, kind: Kind, scheme: str) -> Backend:
        base = scheme.partition("+")[0]
        if (
            base != scheme
            and scheme not in self._by_scheme
            and (base in self._by_scheme or (kind.word, base) in self._schemes)
        ):
            # redis+sentinel, postgresql+asyncpg: what stands behind the + is for the backend to open, or to refuse in
            # its own words
            scheme = base
        if (kind.word, scheme) not in self._schemes:
            what = f'{kind.word} with the URL scheme "{scheme}"'
            found = only(self._by_scheme.get(scheme, []), what, is_reserved=scheme in RESERVED_SCHEMES)
            known = [*self._by_scheme, *(known for word, known in self._schemes if word == kind.word), *DISTRIBUTIONS]
            if found is None:
                raise missing(what, scheme, known)
            self._register(self._with_name(found))
            if (kind.word, scheme) not in self._schemes:
                raise PluginMissing(f"{self._title(found)} provides no {what}")
        return self._schemes[kind.word, scheme][0]

    def _of_name(self, kind: Kind, name: str) -> Backend:
        if (kind.word, name) not in self._backends:
            found = self._named(name)
            self._register(found)
            if (kind.word, name) not in self._backends:
                raise PluginMissing(f'{self._title(found)} provides no {kind.word} named "{name}"')
        return self._backends[kind.word, name][0]

    def _register(self, found: Found) -> None:
        if found.target in self._refused:
            raise PluginRefused(
                f'{self._title(found)} is needed, and refused by "no:{self._with_name(found).name}"; take out one '
                f"of the "
                f"two"
            )
        if found.target in self._loaded:
            return
        with loading(found):
            plugin = import_plugin(found)
            own = declared(found, plugin)
        self._check_clashes(found, own.backends)
        self._check_decisions(found, own.decisions)
        self._check_commands(found, own.commands)
        try:
            self._manager.register(plugin, name=found.name)
        except ValueError as error:  # the same object, loaded under another name
            raise PluginDuplicate(f"{title(found)} is loaded already under another name; name it once") from error
        self._loaded[found.target] = _Loaded(found=found, backends=own.backends)
        note_loaded(found)
        for word, some in own.backends.items():
            for backend in some:
                self._backends[word, backend.name] = backend, found
                self._schemes |= {(word, scheme): (backend, found) for scheme in backend.schemes}
        self._decisions += [(kind, found) for kind in own.decisions]
        self._commands += [(command, found) for command in own.commands]
        # What comes with Converge is no news; whose code runs here otherwise is.
        log.log(logging.DEBUG if found.distribution == CORE else logging.INFO, "loaded %s", title(found))

    def _check_decisions(self, found: Found, kinds: Sequence[DecisionKind]) -> None:
        known = list(self._decisions)
        for kind in kinds:
            if kind.name in CORE_DECISIONS:
                raise PluginDuplicate(
                    f'{title(found)} declares the decision "{kind.name}", a name of {CORE}; its author must choose '
                    f"another"
                )
            for other, whose in known:
                if other.name == kind.name or other.type is kind.type:
                    what = (
                        f'the decision "{kind.name}"'
                        if other.name == kind.name
                        else f"a decision of the type {kind.type.__name__}"
                    )
                    raise PluginDuplicate(
                        f"{title(found)} and {title(whose)} both declare {what}; load one of them, or refuse one "
                        f'with "no:NAME"'
                    )
            known.append((kind, found))

    def _check_commands(self, found: Found, commands: Sequence[Command]) -> None:
        known = list(self._commands)
        for command in commands:
            if command.name.partition(" ")[0] in CORE_COMMANDS:
                raise PluginDuplicate(
                    f'{title(found)} declares the command "{command.name}", a name of {CORE}; its author must choose '
                    f"another"
                )
            for other, whose in known:
                # A command is no group: `report` and `report costs` cannot both be there.
                if f"{other.name} ".startswith(f"{command.name} ") or f"{command.name} ".startswith(f"{other.name} "):
                    raise PluginDuplicate(
                        f'{title(found)} and {title(whose)} both declare the command "{command.name}"; load one of '
                        f'them, or refuse one with "no:NAME"'
                    )
            known.append((command, found))

    def _check_clashes(self, found: Found, backends: Mapping[str, Sequence[Backend]]) -> None:
        for word, some in backends.items():
            for backend in some:
                for known, name, reserved in (
                    (self._backends, backend.name, RESERVED_NAMES),
                    *((self._schemes, scheme, RESERVED_SCHEMES) for scheme in backend.schemes),
                ):
                    other = known.get((word, name))
                    if other is None and name in reserved and found.distribution != CORE:
                        raise PluginDuplicate(
                            f'{title(found)} declares the {word} "{name}", a name of {CORE}; its author must choose '
                            f"another"
                        )
                    if other is not None:
                        raise PluginDuplicate(
                            f'{title(found)} and {title(other[1])} both declare the {word} "{name}"; load one of '
                            f"them, or refuse one with "
                            f'"no:NAME"'
                        )

    def _refusal(self, name: str) -> str:
        """Return the target of a refused plugin. Refusing an uninstalled one is a no-op, unless it may be a typo."""
        found = self._by_name.get(name, [])
        if not found and ":" not in name and (near := difflib.get_close_matches(name, self._by_name, n=1)):
            raise PluginMissing(
                f'no plugin "{name}" is installed, so "no:{name}" refuses nothing; did you mean "no:{near[0]}"?'
            )
        return found[0].target if found else name

    def _with_name(self, found: Found) -> Found:
        """Return what was found by a scheme under the name that `--plugin` takes, which is what people know."""
        for some in self._by_name.values():
            for one in some:
                if one.target == found.target:
                    return one
        return found

    def _title(self, found: Found) -> str:
        return title(self._with_name(found))

    def _listed(self, found: Found) -> Installed:
        loaded = self._loaded.get(found.target)
        schemes = {scheme for scheme, some in self._by_scheme.items() for one in some if one.target == found.target}
        kinds: tuple[str, ...] = ()
        backends: tuple[str, ...] = ()
        if loaded is not None:
            schemes |= {scheme for some in loaded.backends.values() for backend in some for scheme in backend.schemes}
            decisions = tuple(kind.name for kind, whose in self._decisions if whose is loaded.found)
            commands = tuple(one.name for one, whose in self._commands if whose is loaded.found)
            kinds = (
                *(kind.word for kind in KINDS if loaded.backends[kind.word]),
                *(("decision",) if decisions else ()),
                *(("command",) if commands else ()),
            )
            backends = (*(one.name for some in loaded.backends.values() for one in some), *decisions, *commands)
        return Installed(
            name=found.name,
            distribution=found.distribution,
            version=found.version,
            schemes=tuple(sorted(schemes)),
            kinds=kinds,
            backends=backends,
            is_loaded=loaded is not None,
        )
