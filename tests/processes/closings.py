"""Handles of stores whose end is cut short by whoever waits for it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from converge.contracts.store import Store
from converge.model.keys import LEASE
from converge.testing.fixtures import wait_until

MOST_TURNS = 60
"""How many turns of the event loop an end is given at most before it is cancelled."""


def sockets_to(port: int) -> int:
    """Return how many connections this process has to a port of this machine."""
    own = set[str]()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            own.update(re.findall(r"^socket:\[(\d+)\]", os.readlink(f"/proc/self/fd/{descriptor}")))
    tables = [Path(f"/proc/self/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    return sum(words[9] in own and words[2].endswith(f":{port:04X}") for words in lines)


async def leaves_nothing(url: str, opened: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
    """Fail where an end that is cancelled, after ever more turns of the loop, leaves connections to the server."""
    port = urlsplit(url).port
    assert port is not None
    before, turns, is_over = sockets_to(port), 1, False  # what was not begun cannot end
    while not is_over and turns < MOST_TURNS:
        handle = opened()
        store = await handle.__aenter__()
        await asyncio.gather(*(store.get([LEASE(bytes(16))]) for _ in range(3)))
        watch: Any = store.watch(["a"])
        await anext(watch)
        await watch.aclose()
        assert sockets_to(port) > before
        closing = asyncio.create_task(handle.__aexit__(None, None, None))
        for _ in range(turns):
            await asyncio.sleep(0)
        is_over = closing.done()
        closing.cancel()
        with suppress(asyncio.CancelledError):
            await closing
        await wait_until(lambda: sockets_to(port) == before, what=f"the end after {turns} turns")
        turns += 1
    assert turns > 2
