"""Whether what is checked can be opened at all. If not, each test would fail by that, and none would say why."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import attrs

from converge.contracts.discovery import Discovery, DiscoveryBackend
from converge.contracts.store import Store, StoreBackend
from converge.contracts.transport import Transport, TransportBackend
from converge.errors import PluginBroken
from converge.plugins.declaration import Backend
from converge.plugins.found import Found, title
from converge.plugins.loaded import Loaded
from converge.plugins.opened import Opened, Opens
from converge.services.store.opening import open_store
from converge.testing._check.bench import Bench
from converge.testing._store.limits import alarm

OPEN_SEC = 60.0
"""How long opening may take: far more than any backend needs, on a loaded machine, too."""


def try_opening(plugin: Loaded, backend: Backend, bench: Bench) -> None:
    """Open an empty place twice at once, as a node does, and leave it.

    Raises:
        PluginBroken: It cannot be opened, or does not answer; what is wrong with it.
        StoreError, ChannelError: What is behind it refuses, or cannot be reached.
    """
    found = Found(name=plugin.name, target=plugin.target, distribution=plugin.distribution, version=plugin.version)
    whose = f'{title(found)}: "{backend.name}"'
    needed = [field.name for field in attrs.fields(backend.options) if field.init and field.default is attrs.NOTHING]
    if needed and type(bench).options is Bench.options:
        raise PluginBroken(
            f"{whose}: there is no default of {', '.join(needed)}, so that the check cannot make its options; give its "
            "bench (entry-point group converge.testing) a method options that returns some"
        )
    waits = "its open waits for ever, before its yield or after it, or blocks the event loop"
    late = f"{whose} was not opened and left within {OPEN_SEC:g} s: {waits}"
    with alarm(OPEN_SEC, lambda: PluginBroken(late)):
        anyio.run(_open_twice, whose, backend, bench)


async def _open_twice(whose: str, backend: Backend, bench: Bench) -> None:
    async def opened(opens: Opens[Any], wanted: type[Any]) -> None:
        await stack.enter_async_context(Opened(whose, opens, wanted, backend))

    async with AsyncExitStack() as stack:
        if isinstance(backend, StoreBackend):
            url, options = bench.url(), bench.options()
            for _ in range(2):
                await opened(partial(backend.open, url, options), Store)
        elif isinstance(backend, TransportBackend):
            await opened(partial(backend.open, bench.options()), Transport)
        elif isinstance(backend, DiscoveryBackend):
            store = await stack.enter_async_context(open_store("memory:"))
            await opened(partial(backend.open, bench.options(), store=store, poll_sec=1.0), Discovery)
