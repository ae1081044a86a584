"""A process beside the kit's own: opens what is under test and does one kind of work on it until it is told to stop.

    python -m converge.testing._processes.peer < ORDER

The order is one line of JSON (see `Order`). It answers `ready`, waits for another line, then writes a line of JSON for
all that was acknowledged to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial, reduce
from typing import Any

import anyio
import anyio.to_thread
import attrs

from converge import open_store
from converge.contracts.discovery import Sighting
from converge.contracts.store import ABSENT, Batch, Committed, Open, Range, Store, Take, Taken, reopenable
from converge.model.keys import HELD, POOL, READY, STATE
from converge.services.store.handle import StoreHandle
from converge.services.tasks.manager import TaskManager
from converge.settings import structured

COUNTER, BESIDE = POOL("counter"), POOL("beside")
"""Two keys that each batch of `count` puts together."""
WOKEN = "counted"
LANE = b"\xcd" * 16
AGENT = "kit"
THEIRS = Sighting("theirs", ("tcp://h:1",), b"theirs")
LOOK_SEC = 0.05
CLAIM_BATCH = 5
"""Keys of one take, tasks of one claim."""


@attrs.frozen(kw_only=True)
class Name:
    """What another process imports: an attribute, perhaps of a class, of a module. A module that only pytest finds is
    loaded from its file; without a file it is the one that the process finds by its name.
    """

    module: str
    file: str
    attribute: str

    def load(self) -> Any:
        """Import it."""
        return reduce(getattr, self.attribute.split("."), self._module())

    def _module(self) -> Any:
        if self.module in sys.modules:
            return sys.modules[self.module]
        if not self.file:
            return importlib.import_module(self.module)
        with suppress(ModuleNotFoundError):
            found = importlib.import_module(self.module)
            if found.__file__ == self.file:
                return found
        spec = importlib.util.spec_from_file_location(self.module, self.file)
        assert spec is not None and spec.loader is not None, f"{self.file} is a file of Python"
        module = sys.modules[self.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@attrs.frozen(kw_only=True)
class Order:
    """What a peer is told: which backend to open, what to do with it, and for how long at most (seconds)."""

    work: str
    open: Name
    options: Name
    values: dict[str, Any]
    url: str
    limit_sec: float
    inherited: bool = False


def say(*values: Any) -> None:
    """Write a line to the kit."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


async def count(store: Store, until: float) -> None:
    """Count up one key by check-and-put, put another one with it, and wake who watches."""
    while time.monotonic() < until:
        entry, beside = await store.get([COUNTER, BESIDE])
        value, revision = (int(entry.value), entry.revision) if entry else (0, ABSENT)
        other = beside.revision if beside else ABSENT
        seen = await store.time()  # after `value` was seen, before `value + 1` is written
        checks, puts = [(COUNTER, revision), (BESIDE, other)], [(key, b"%d" % (value + 1)) for key in (COUNTER, BESIDE)]
        (outcome,) = await store.commit([Batch(checks, puts)], wake=[WOKEN])
        if isinstance(outcome, Committed):
            # Both checks held at one moment: what was put together was there together, if it was at one revision.
            say(value + 1, outcome.revision, seen, await store.time(), revision == other)


async def take(store: Store, until: float) -> None:
    """Take keys from a lane and finish them, as a worker does with its tasks."""
    lease, nonce = os.urandom(16), os.urandom(16)
    while time.monotonic() < until:
        turned = await store.turn([], Take([Range(READY(LANE))], CLAIM_BATCH, HELD(lease), (nonce,)))
        taken = turned.taken
        if not isinstance(taken, Taken) or not taken.rests:
            return
        for rest in taken.rests:
            held = HELD(lease, *rest, nonce)
            batch = Batch([(held, taken.revision)], [(STATE(rest[-1]), b"1")], [held])
            (outcome,) = await store.commit([batch])
            say(rest[-1].hex(), taken.revision, isinstance(outcome, Committed))


async def work(store: Store, until: float) -> None:
    """Claim tasks of the pool and complete them, until every one has ended."""
    tasks, handle = TaskManager(store), StoreHandle.of(store)
    while time.monotonic() < until:
        claimed = await tasks.claim(AGENT, ["p"], limit=CLAIM_BATCH)
        for task in claimed:
            say("claimed", task.id, task.token, (await handle.lease()).id.hex())
        for task in claimed:
            await tasks.complete(task, task.token)
            say("acknowledged", task.id, task.token)
        if not claimed:
            await anyio.sleep(0.02)  # others hold what is left


WORKS: dict[str, Callable[[Store, float], Awaitable[None]]] = {"count": count, "take": take, "work": work}


async def serve(order: Order) -> None:
    """Open the store, wait for the word, and work."""
    opens: Open = order.open.load()
    options = structured(order.options.load(), order.values, "options")
    async with reopenable(partial(opens, order.url, options)) as store:
        say("ready")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        used: Store = store
        if order.inherited:
            from converge.testing._store.base import Inheriting

            used = Inheriting(store)
        await WORKS[order.work](used, time.monotonic() + order.limit_sec)


async def sight(order: Order) -> None:
    """Open a discovery on a store, publish when asked, say what is known, and leave when asked again."""
    opens, options = order.open.load(), structured(order.options.load(), order.values, "options")
    async with open_store(order.url) as store, opens(options, store=store, poll_sec=LOOK_SEC) as discovery:
        say("ready")
        await anyio.to_thread.run_sync(sys.stdin.readline)
        await discovery.publish([THEIRS])
        say(*sorted(one.id for one in await discovery.snapshot()))
        await anyio.to_thread.run_sync(sys.stdin.readline)


def main() -> None:
    """Run the order."""
    order = json.loads(sys.stdin.readline())
    runs = sight if order["work"] == "sight" else serve
    anyio.run(runs, Order(**order | {name: Name(**order[name]) for name in ("open", "options")}))


if __name__ == "__main__":
    main()
