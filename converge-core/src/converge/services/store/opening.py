"""Opening a store by its URL: its backend, its options, what the caller requires of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import attrs

from converge.contracts.store import Durability, Feature, Inspection, Store, StoreBackend, reopenable
from converge.errors import InvalidValue, Unsupported
from converge.plugins import PluginHost
from converge.secret import without_password
from converge.services.store.formats import check_format
from converge.services.store.handle import StoreHandle
from converge.settings import structured

NETWORK = "converge"
"""The network of those who name none."""


@asynccontextmanager
async def open_store(
    url: str,
    *,
    plugins: Sequence[str] | PluginHost = (),
    options: Mapping[str, Any] | None = None,
    network: str = NETWORK,
    require_durability: str = "",
    must_exist: bool = False,
    may_be_unfinished: bool = False,
) -> AsyncIterator[Store]:
    """Open the store of the URL, and close it when left; the lease that was opened on it ends then.

    Args:
        url: `memory:`, `file:PATH`, or what an installed plugin opens.
        plugins: What else to load, as `--plugin` does; or a host that has loaded it.
        options: By a backend's name, its options: `{"redis": {"timeout_sec": 3.0}}`; those of other backends are left
            alone.
        network: Whose keys to see; several networks share one server.
        require_durability: `D0` to `D3`: a store that has less is refused.
        must_exist: Refuse a place where nothing was ever stored, instead of beginning a store there.
        may_be_unfinished: Open a copy that was broken off, too: for `converge store copy`, which begins it anew.

    Raises:
        ConfigError: Its leaves say what is wrong with a plugin, an option or the store's features.
        SchemaTooNew: Something is used in it that this release does not know.
        NoSuchStore: Nothing was ever stored there, and `must_exist`.
        StoreError: It cannot be reached, or refuses.
    """
    host = plugins if isinstance(plugins, PluginHost) else PluginHost(plugins)
    backend, chosen = _chosen(url, host, options, network)
    check_durability(backend.name, backend.durability, require_durability)
    if must_exist and hasattr(chosen, "must_exist"):
        chosen = attrs.evolve(chosen, must_exist=True)
    async with reopenable(partial(host.opened, backend, partial(backend.open, url, chosen), Store)) as store:
        check_durability(backend.name, store.durability, require_durability)
        await check_format(store, without_password(url), may_be_unfinished=may_be_unfinished)
        try:
            yield store
        finally:
            if isinstance(store.shared, StoreHandle):
                await store.shared.close()


async def pending(
    url: str,
    *,
    plugins: Sequence[str] | PluginHost = (),
    options: Mapping[str, Any] | None = None,
    network: str = NETWORK,
) -> Sequence[str]:
    """Return what opening the store of the URL would add to it, a line each; nothing is changed. Where its backend
    never adds anything it is opened: nobody is told that a store has all that is away, or is another program's.

    Raises:
        As `open_store`; a place where nothing was ever stored is refused, or is told to be new.
    """
    backend, chosen = _chosen(url, plugins, options, network)
    if backend.pending is not None:
        return await backend.pending(url, chosen)
    async with open_store(url, plugins=plugins, options=options, network=network, must_exist=True):
        return ()


async def look(
    url: str,
    *,
    plugins: Sequence[str] | PluginHost = (),
    options: Mapping[str, Any] | None = None,
    network: str = NETWORK,
) -> Inspection | None:
    """Return what the server at the URL is, whether or not anything was stored there; None: the backend does not tell.

    Raises:
        As `open_store`.
    """
    backend, chosen = _chosen(url, plugins, options, network)
    return await backend.look(url, chosen) if backend.look is not None else None


def backend_options(name: str, cls: type[Any], options: Mapping[str, Any]) -> Any:
    """Return the options of the backend of that name: an instance of its class.

    Raises:
        ConfigError: All that is wrong with them.
    """
    for other, some in options.items():
        if not isinstance(some, Mapping) and not attrs.has(type(some)):
            raise InvalidValue(
                f"options.{other}", some, f"options by the backend's name, such as {{{name!r}: {{{other!r}: ...}}}}"
            )
    given = options.get(name, {})
    return given if isinstance(given, cls) else structured(cls, given, f"options.{name}")


def check_loop(name: str, features: frozenset[Feature]) -> None:
    """Refuse a backend that cannot run on this event loop; where none runs, settings are only looked at.

    Raises:
        Unsupported: Its driver runs on asyncio only, and this is another.
    """
    try:
        # anyio tells the loop by nothing else that is public.
        loop = anyio.get_cancelled_exc_class().__module__.partition(".")[0]
    except RuntimeError:
        return
    if Feature.ASYNCIO_ONLY in features and loop != "asyncio":
        raise Unsupported(
            f'"{name}" runs on asyncio only, and this event loop is {loop}; use asyncio, or another backend'
        )


def check_durability(name: str, durability: Durability, required: str) -> None:
    """Refuse a store that has less than the required class.

    Raises:
        InvalidValue: There is no such class.
        Unsupported: The store has less.
    """
    if required and required not in Durability.__members__:
        raise InvalidValue("require_durability", required, f"one of {', '.join(Durability.__members__)}")
    if required and durability < Durability[required]:
        raise Unsupported(
            f'require_durability is {required}, the store "{name}" has {durability.name} here; choose another, '
            f"or its stricter "
            f"settings"
        )


def _chosen(
    url: str, plugins: Sequence[str] | PluginHost, options: Mapping[str, Any] | None, network: str
) -> tuple[StoreBackend, Any]:
    host = plugins if isinstance(plugins, PluginHost) else PluginHost(plugins)
    backend = host.store_backend(url)
    check_loop(backend.name, backend.features)
    return backend, _options(backend, options or {}, network)


def _options(backend: StoreBackend, options: Mapping[str, Any], network: str) -> Any:
    chosen = backend_options(backend.name, backend.options, options)
    fields = {field.name for field in attrs.fields(backend.options)}
    if "network" not in fields:
        # Nobody else sees such a store, or sees it later: it belongs to whatever network its opener is in.
        if network != NETWORK and backend.features & {Feature.SHARED, Feature.PERSISTENT}:
            raise Unsupported(
                f'the store "{backend.name}" keeps one network only; leave out network "{network}", or use another '
                f"store"
            )
        return chosen
    if network != NETWORK and chosen.network not in (NETWORK, network):
        raise InvalidValue(
            f"options.{backend.name}.network", chosen.network, f'"{network}", as network says; name it once'
        )
    return attrs.evolve(chosen, network=network) if network != NETWORK else chosen
