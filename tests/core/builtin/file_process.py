"""Another process at a store's file, for the tests beside it: `python file_process.py
write|take|watch|orphan|destroy PATH [NUMBER]`;
it says what it does.
"""

from __future__ import annotations

import gc
import itertools
import os
import queue
import sys
import threading
import time
from typing import Any

import anyio

from converge.builtin.file.database import Database
from converge.builtin.file.options import FileOptions
from converge.builtin.file.store import FileStore
from converge.contracts.store import ABSENT, Batch, Committed, Range, Store, Take, Taken
from converge.errors import ForkedHandle
from converge.model.keys import HELD, POOL, READY, TASK

LANE = b"lane" * 4


def id_of(writer: int, number: int, part: int) -> bytes:
    """The id of one of the keys that a writer puts in its batch of this number."""
    return b"%03d.%09d.%02d" % (writer, number, part)


def say(*words: object) -> None:
    """Say a line at once: whoever is killed has said it or not."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def write(store: Store, writer: int) -> None:
    """Commit batches of three keys for ever; say each number once it is acknowledged."""
    for number in itertools.count():
        keys = [TASK(id_of(writer, number, part)) for part in range(3)]
        (outcome,) = await store.commit(
            [Batch([(key, ABSENT) for key in keys], [(key, b'"%d"' % number) for key in keys])]
        )
        assert type(outcome) is Committed
        say(number, outcome.revision)


async def take(store: Store, taker: int) -> None:
    """Wait for the start; take and finish until nothing is left; say each task."""
    say("ready")
    while None in await store.get([POOL("start")]):  # noqa: ASYNC110 - another process puts it
        await anyio.sleep(0.005)
    lease = b"%016d" % taker
    batches: list[Batch] = []
    for number in itertools.count():
        nonce = b"%016d" % number
        turned = await store.turn(batches, Take([Range(READY(LANE))], 7, HELD(lease), (nonce,)))
        assert all(type(outcome) is Committed for outcome in turned.outcomes)
        assert type(turned.taken) is Taken
        if not turned.taken.rests:
            return
        keys = [HELD(lease, *rest, nonce) for rest in turned.taken.rests]
        batches = [Batch([(key, turned.taken.revision)], (), [key]) for key in keys]
        say(*(rest[-1].hex() for rest in turned.taken.rests))


async def watch(store: Store, _: int) -> None:
    """Say when the watch is in force, then for each wake-up the value that it found."""
    async for _nothing in store.watch(["lane.x"]):
        (entry,) = await store.get([POOL("docs")])
        say("none" if entry is None else entry.value.decode())


async def orphan(store: Store, _: int) -> None:
    """Hold the lock of a write, watch, and leave a child, which says its number; wait to be killed."""
    written = Database._transact

    def held(self: Database, *call: Any) -> Any:
        turned = written(self, *call)
        if os.fork() == 0:
            say(os.getpid())  # itself: it has laid down by now what it inherited
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
        return turned

    await anext(aiter(store.watch(["lane.x"])))
    Database._transact = held  # type: ignore[method-assign, assignment]
    await store.commit([Batch(puts=[(POOL("docs"), b"{}")])])


async def write_on(store: Store, told: queue.SimpleQueue[FileStore], stop: threading.Event) -> None:
    """Commit a key at a time until told to stop; say how many."""
    assert isinstance(store, FileStore)
    told.put(store)
    number = 0
    while not stop.is_set():
        (outcome,) = await store.commit([Batch(puts=[(TASK(b"%016d" % number), b"{}")])])
        assert type(outcome) is Committed
        number += 1
    say(number)


def destroy(path: str, children: int) -> None:
    """Fork amid writes: each child tries what it inherited, collects garbage, and ends as any program does."""

    async def work() -> None:
        async with FileStore.open(f"file:{path}") as store:
            await write_on(store, told, stop)

    told: queue.SimpleQueue[FileStore] = queue.SimpleQueue()
    stop = threading.Event()
    thread = threading.Thread(target=anyio.run, args=(work,), daemon=True)
    thread.start()
    store = told.get(timeout=30)
    for _ in range(children):
        child = os.fork()
        if child == 0:
            try:
                store.get([POOL("docs")]).send(None)
            except ForkedHandle:
                del store
                gc.collect()
                sys.exit(0)
            os._exit(3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
    stop.set()
    thread.join(30)


async def main(what: str, path: str, number: int = 0) -> None:
    """Open the store and work on it."""
    async with FileStore.open(f"file:{path}", FileOptions(poll_sec=60.0)) as store:
        await {"write": write, "take": take, "watch": watch, "orphan": orphan}[what](store, number)


if __name__ == "__main__" and sys.argv[1] == "destroy":
    destroy(sys.argv[2], int(sys.argv[3]))
elif __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0)
